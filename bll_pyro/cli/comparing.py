"""Many runs of one experiment: every combination of some values, in parallel processes, on features that are made once."""

from __future__ import annotations

import itertools
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

import bll_pyro as bll
from bll_pyro.cli import run_folder
from bll_pyro.cli.backbones import make_backbone
from bll_pyro.cli.console import Console
from bll_pyro.cli.data.base import Opened
from bll_pyro.cli.experiment import Draft
from bll_pyro.cli.importing import importable
from bll_pyro.cli.job import Job, Machine
from bll_pyro.cli.overrides import overridden
from bll_pyro.cli.running import run_job
from bll_pyro.cli.usage import UsageError
from bll_pyro.cli.yaml_file import Document, scalar

FITS, COMPARISON = "fits", "comparison.json"
BROKEN = (ValueError, TypeError, RuntimeError, ArithmeticError)


@dataclass(frozen=True)
class Variation:
    """A key, and the values that it takes in turn.

    Parameters
    ----------
    key
        Names with dots between them.
    values
        As on the command line.
    """

    key: str
    values: tuple[str, ...]

    @classmethod
    def of(cls, text: str) -> Variation:
        """From ``key=value,value``; commas inside of brackets belong to a value."""
        key, equals, rest = text.partition("=")
        values = tuple(value.strip() for value in split(rest))
        if not equals or not key or not all(values):
            raise UsageError(
                f"--vary: expected key=value,value such as layer.prior=Normal,Horseshoe, got {text!r}"
            )
        if len(set(values)) < len(values):
            raise UsageError(f"--vary {key}: expected values that differ, got {rest!r}")
        return cls(key, values)


def split(text: str) -> Iterator[str]:
    """The parts between commas that are not inside of brackets."""
    depth, part = 0, ""
    for letter in text:
        depth += (letter in "[{(") - (letter in "]})")
        if letter == "," and depth == 0:
            yield part
            part = ""
        else:
            part += letter
    yield part


def combinations(document: Document, variations: Sequence[Variation]) -> dict[str, Draft]:
    """The drafts of all combinations, by what they vary: ``Normal, LowRank``."""
    found = {}
    for values in itertools.product(*(variation.values for variation in variations)):
        given = {variation.key: value for variation, value in zip(variations, values, strict=True)}
        names = ", ".join(
            readable(scalar(value, variation.key))
            for variation, value in zip(variations, values, strict=True)
        )
        found[", ".join(values) if names in found else names] = Draft(overridden(document, given))
    return found


def readable(value: Any) -> str:
    """A value as it is called: ``{class: Laplace, scale: 0.5}`` is ``Laplace(scale=0.5)``."""
    if isinstance(value, list):
        return f"[{', '.join(map(readable, value))}]"
    if not isinstance(value, dict):
        return str(value)
    fields = [f"{key}={readable(one)}" for key, one in value.items() if key != "class"]
    return f"{value.get('class', '')}({', '.join(fields)})"


def jobs_of(drafts: Mapping[str, Draft]) -> dict[str, Job]:
    """Check every draft, open the data once each, and make the jobs."""
    declared = {name: draft.check() for name, draft in drafts.items()}
    opened: dict[Any, Opened] = {}
    jobs = {}
    for name, draft in drafts.items():
        source = declared[name].data
        if source not in opened:
            with importable(draft.document.folder):
                opened[source] = source.open()
        jobs[name] = Job.of(draft, opened[source])
    return jobs


def run_all(
    jobs: Mapping[str, Job], work: Path, machine: Machine, console: Console, num_processes: int
) -> dict[str, dict[str, Any]]:
    """Run every job in a folder of its own below ``work``; return the metrics by name, of a job that failed its message."""
    from joblib import Parallel, delayed, parallel_config

    num_processes = max(min(num_processes, len(jobs)), 1)
    names = unique_folders(jobs)
    folder = next(iter(jobs.values())).draft.document.folder
    with importable(folder):
        machine = replace(machine, store=shared_features(jobs, machine, work / run_folder.FEATURES, console))
        calls = [(name, job, work / FITS / names[name], machine, console.quiet) for name, job in jobs.items()]
        done: dict[str, dict[str, Any]] = {}
        if num_processes == 1:
            results: Iterator[tuple[str, dict[str, Any]]] = itertools.starmap(run_one, calls)
        else:
            threads = max((os.cpu_count() or 1) // num_processes, 1)
            with parallel_config(backend="loky", inner_max_num_threads=threads):
                pool = Parallel(n_jobs=num_processes, mmap_mode="c", return_as="generator_unordered")
                results = pool(delayed(run_one)(*call) for call in calls)
        for name, metrics in results:
            done[name] = metrics
            console.status(f"{len(done)}/{len(jobs)} {name}")
    return {name: done[name] for name in jobs}


def run_one(name: str, job: Job, path: Path, machine: Machine, quiet: bool) -> tuple[str, dict[str, Any]]:
    """One job; that of an interrupted comparison which has ended is read."""
    if (path / run_folder.RECORD).is_file():
        return name, json.loads((path / run_folder.METRICS).read_text(encoding="utf-8"))
    console = Console(f"bll compare: {name}", quiet=quiet)
    try:
        with console.watching():
            return name, run_job(job, path, machine, console, overwrite=False, tree=False)
    except BROKEN as error:
        return name, {"failed": str(error) or type(error).__name__}


def shared_features(jobs: Mapping[str, Job], machine: Machine, folder: Path, console: Console) -> Path | None:
    """The store with the features of every frozen backbone, each made once, before the processes share it."""
    made: set[Any] = set()
    store = machine.store or folder
    for job in jobs.values():
        experiment = job.experiment
        rows = {part: job.rows(part) for part in job.parts}
        key = (experiment.backbone, experiment.data, experiment.splits, experiment.seed)
        backbone = None
        if not experiment.inference.trains_backbone and key not in made:
            backbone = make_backbone(experiment.backbone, experiment.seed)
        if not isinstance(backbone, nn.Module):  # random features are found from the rows of each fit
            continue
        made.add(key)
        console.status("features of the backbone")
        opened = job.record.ready(job.opened, backbone)
        for numbers in rows.values():
            if numbers is not None:
                inputs = opened.inputs_of(numbers)
                bll.extract(
                    backbone, inputs, store=store, batch_size=machine.batch_size, device=machine.device
                )
    return store if made or machine.store else None


def unique_folders(names: Mapping[str, Any]) -> dict[str, str]:
    """A folder's name for each combination: its letters and digits, and a number where that is not enough."""
    found: dict[str, str] = {}
    for name in names:
        plain = re.sub(r"[^\w.=-]+", "-", name).strip("-")[:80] or "fit"
        taken = set(found.values())
        number = next(n for n in itertools.count(1) if (plain if n == 1 else f"{plain}-{n}") not in taken)
        found[name] = plain if number == 1 else f"{plain}-{number}"
    return found


def comparison_table(metrics: Mapping[str, Mapping[str, Any]]) -> str:
    """One line for each combination: leave-one-out density, and the scores on the test rows."""
    lines: dict[str, list[str]] = {}
    scores: list[str] = []
    for one in metrics.values():
        scores = list((one.get("quality") or {}).get("Bayesian", {})) or scores
    for name, one in metrics.items():
        if "failed" in one:
            lines[name] = [f"failed: {one['failed']}"]
            continue
        left = one["leave_one_out"]
        cells = ["-" if left is None else f"{left['elpd']:.4f} ± {left['se']:.4f}"]
        quality = (one["quality"] or {}).get("Bayesian", {})
        cells += ["-" if quality.get(score) is None else f"{quality[score]:.4f}" for score in scores]
        lines[name] = [*cells, "yes" if one["converged"] else "no"]
    heads = ["leave-one-out", *scores, "converged"]
    whole = [cells for cells in lines.values() if len(cells) == len(heads)]
    widths = [
        max(len(head), *(len(cells[i]) for cells in whole)) if whole else len(head)
        for i, head in enumerate(heads)
    ]
    first = max(map(len, lines))
    said = [" " * first + "".join(f"  {head:>{width}}" for head, width in zip(heads, widths, strict=True))]
    for name, cells in lines.items():
        padded = (
            [f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=False)]
            if len(cells) > 1
            else cells
        )
        said.append("  ".join([f"{name:<{first}}", *padded]))
    return "\n".join(said)
