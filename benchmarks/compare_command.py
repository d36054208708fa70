"""``bll compare`` of three priors and three guides beside nine runs of ``bll fit``, all as commands in processes of their own.

The rows are the stored features of Fashion-MNIST. In front of them stands a backbone that hands its rows on and leaves a mark
in a file whenever it is called, so that "zero times" is counted and not assumed. A first fit, which is not part of the
figures, fills the store of features that all others are given.
"""

import json
import os
import resource
import subprocess
import sys
import time
from contextlib import chdir, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from benchmarks.data import fashion_features, made_up
from benchmarks.options import Options
from benchmarks.report import Report, Table, Target

PRIORS, GUIDES = ("Normal", "Laplace", "StudentT"), ("Diagonal", "LowRank", "MatrixNormal")
YAML = """data: {class: Arrays, path: rows.npz}
backbone: marking.Marking
layer: {likelihood: Categorical}
splits: {calibration: 0.07, test: 0.14}
"""
BACKBONE = """
from torch import nn


class Marking(nn.Module):
    def forward(self, rows):
        with open("marks", "a") as marks:
            marks.write(f"{len(rows)}\\n")
        return rows
"""
COLUMNS = {
    "method": "command",
    "wall": "wall s",
    "processor": "s of the processor",
    "cores": "cores in use",
    "rows": "rows through the backbone",
}
NOTES = [
    "Splits, fit, evaluation beside the plain head, leave-one-out and detector are part of every run, and so are the start of "
    "Python and the imports, nine times of the single runs. Every command has all cores; of the comparison each fit has one.",
    "Both are given a store of features that a first run has filled. The backbone hands on stored features of Fashion-MNIST and "
    "counts the rows that it sees.",
    "Largest difference: over all scores of all fits, and the leave-one-out density, nats. Sums that are split over other numbers "
    "of threads round differently.",
]


@dataclass(frozen=True)
class Done:
    """What a command took, and what it printed."""

    wall: float
    processor: float
    rows: int
    printed: dict[str, Any]


def run(options: Options) -> Report:
    """Nine single runs, then the comparison."""
    priors, guides = (PRIORS[:1], GUIDES[:1]) if options.small else (PRIORS, GUIDES)
    with TemporaryDirectory() as name:
        folder = Path(name)
        _write(folder, options.small)
        if not options.small:
            _command(folder, False, "fit", "e.yaml", "-o", "first", "--no-tree")
        single = {
            f"{prior}, {guide}": _command(
                folder, options.small, "fit", "e.yaml", "-o", f"single/{prior}-{guide}", "--no-tree",
                "--layer.prior", prior, "--inference.guide", guide,
            )
            for prior in priors for guide in guides
        }  # fmt: skip
        together = _command(
            folder, options.small, "compare", "e.yaml", "-o", "together", *(["--processes", "1"] if options.small else []),
            "--vary", f"layer.prior={','.join(priors)}", "--vary", f"inference.guide={','.join(guides)}",
        )  # fmt: skip
    return _report(single, together, options)


def _report(single: dict[str, Done], together: Done, options: Options) -> Report:
    all_of_them = Done(
        sum(one.wall for one in single.values()),
        sum(one.processor for one in single.values()),
        sum(one.rows for one in single.values()),
        {},
    )
    table = Table(f"{len(single)} fits, Fashion-MNIST features (70,000 x 128, 10 classes)", COLUMNS)
    done = {f"bll fit, {name}": one for name, one in single.items()}
    done |= {f"bll fit, {len(single)} runs": all_of_them, f"bll compare, {len(single)} fits": together}
    for name, one in done.items():
        figures = {"wall": one.wall, "processor": one.processor, "cores": one.processor / one.wall}
        table.rows.append({"method": name, **figures, "rows": one.rows})
    fits = together.printed["fits"]
    apart = [_apart(fits[name], one.printed) for name, one in single.items()]
    values = {
        "method": "fit",
        "elpd": "leave-one-out, nats a row",
        "accuracy": "test accuracy",
        "nll": "test NLL",
        "apart": "largest difference",
    }
    scores = Table("The same fits by both", values)
    scores.rows += [
        {
            "method": name,
            "elpd": one["leave_one_out"]["elpd"],
            "accuracy": one["quality"]["Bayesian"]["accuracy"],
            "nll": one["quality"]["Bayesian"]["NLL"],
            "apart": difference,
        }
        for (name, one), difference in zip(fits.items(), apart, strict=True)
    ]
    report = Report("compare_command", "bll compare beside single runs", [table, scores], notes=NOTES)
    report.targets += [
        Target("rows through the backbone in bll compare", float(together.rows), 0.0),
        Target("wall time of bll compare over that of the single runs", together.wall / all_of_them.wall, 1.0),
        Target("cores in use by bll compare", None if options.small else together.processor / together.wall, 1.5, ">="),
        Target("largest difference between a fit of bll compare and its single run", max(apart), 1e-3),
    ]  # fmt: skip
    return report


def _write(folder: Path, is_small: bool) -> None:
    task = made_up(400, 6, 10, num_test_rows=100) if is_small else fashion_features()
    features = np.concatenate([task.train_features, task.test_features])
    targets = np.concatenate([task.train_targets, task.test_targets])
    np.savez(folder / "rows.npz", features=features, targets=targets)
    (folder / "marking.py").write_text(BACKBONE)
    (folder / "e.yaml").write_text(YAML + ("detector: null\n" if is_small else ""))


def _command(folder: Path, is_small: bool, *arguments: str) -> Done:
    """Run ``bll``, in a process of its own; a small run, of which only the result counts, here."""
    marks = folder / "marks"
    marks.write_text("")
    call = _here if is_small else _in_a_process
    began, before = time.perf_counter(), _processor()
    printed = call(folder, [*arguments, "--store", "features", "--json"])
    wall, processor = time.perf_counter() - began, _processor() - before
    return Done(wall, processor, sum(map(int, marks.read_text().split())), json.loads(printed))


def _in_a_process(folder: Path, arguments: list[str]) -> str:
    root = str(Path(__file__).resolve().parents[1])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "bll_pyro", *arguments]
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"bll {' '.join(arguments)}: {done.stderr}")
    return done.stdout


def _here(folder: Path, arguments: list[str]) -> str:
    from bll_pyro.cli import main

    with chdir(folder), redirect_stdout(StringIO()) as printed:
        if main(arguments):
            raise RuntimeError(f"bll {' '.join(arguments)} failed")
    return printed.getvalue()


def _processor() -> float:
    """Seconds of the processor, of this process and of all that it began and that have ended, with theirs."""
    used = [resource.getrusage(whose) for whose in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def _apart(one: dict[str, Any], other: dict[str, Any]) -> float:
    """The largest difference of the scores of two runs."""

    def scores(run: dict[str, Any]) -> np.ndarray:
        quality = [value for method in run["quality"].values() for value in method.values()]
        return np.array([run["leave_one_out"]["elpd"], *(value for value in quality if value is not None)])

    return float(np.abs(scores(one) - scores(other)).max())
