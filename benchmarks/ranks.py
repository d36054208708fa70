"""Weak scaling of fits whose rows are shared: as many rows for each process, by 1 and by 2 processes with one thread each.

The time is that of the whole call of ``bll.fit``, with the checks that ranks agree. Efficiency is the time of one process with its
rows over that of two with twice as many. What the machine itself loses when both of its cores work shows in two processes at once
that fit their rows each alone.
"""

import json
import sys
import time
import warnings
from collections.abc import Callable
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch

import bll_pyro as bll
from benchmarks.harness import Spread
from benchmarks.launching import launch, say
from benchmarks.options import Options
from benchmarks.report import Report, Table, Target

# name: rows a process, features, classes (0 for values)
CASES = {
    "Exact": (100_000, 256, 0),
    "Laplace, Kronecker": (50_000, 128, 10),
    "SVI, Diagonal": (50_000, 256, 100),
}
COLUMNS = {
    "case": "fit",
    "size": "rows a process, D, C",
    "one": "1 process, s",
    "apart": "2 at once, each alone, s",
    "two": "2 processes, s",
    "efficiency": "efficiency",
    "shared": "over 2 at once",
}
EFFICIENCY = 0.6  # set before the measurement: two processes share the machine's memory bandwidth


def inference_of(case: str, num_processes: int) -> Any:
    """What is timed; batches grow with the processes, so that each has as many rows of a step."""
    if case == "SVI, Diagonal":
        return bll.SVI(num_epochs=3, batch_size=512 * num_processes)
    return bll.Exact() if case == "Exact" else bll.Laplace()


def rank_main(arguments: dict[str, Any]) -> None:
    """Time the fits of one rank, after one that is not timed."""
    torch.set_num_threads(1)
    case, (num_rows, num_features, num_classes) = arguments["case"], arguments["sizes"]
    with bll.distributed.Ranks(timeout=300) as ranks:
        random = torch.Generator().manual_seed(ranks.rank)
        x = torch.randn(num_rows, num_features, generator=random)
        weights = torch.randn(num_features, max(1, num_classes), generator=torch.Generator().manual_seed(9))
        score = x @ weights / num_features**0.5 + torch.randn(num_rows, max(1, num_classes), generator=random)
        y = score.argmax(1) if num_classes else score[:, 0]
        likelihood = bll.likelihoods.Categorical(num_classes) if num_classes else bll.likelihoods.Gaussian()
        layer, found = bll.LastLayer(likelihood), Times([], [])
        for _ in range(arguments["num_runs"] + 1):
            found.alone.append(
                timed(lambda: bll.fit(layer, (x, y), None, inference_of(case, 1), calibration=None), ranks)
            )
            found.shared.append(timed(lambda: fitted_with(ranks, layer, (x, y), case), ranks))
    say([found.alone[1:], found.shared[1:]])


class Times(NamedTuple):
    """Seconds of fits of own rows alone, and of fits whose rows are shared, both in all processes at once."""

    alone: list[float]
    shared: list[float]


def timed(fit: Callable[[], object], ranks: bll.distributed.Ranks) -> float:
    """Seconds of a fit that all processes begin at once."""
    ranks.gather(None)
    began = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", bll.FitWarning)  # three passes are few
        fit()
    return time.perf_counter() - began


def fitted_with(ranks: bll.distributed.Ranks, layer: bll.LastLayer, rows: Any, case: str) -> None:
    """Fit the rows of all processes."""
    fit = bll.fit(layer, rows, None, inference_of(case, ranks.size), calibration=None, ranks=ranks)
    assert fit.num_rows == len(rows[0]) * ranks.size


def run(options: Options) -> Report:
    """Measure every case."""
    report = Report(
        "ranks", "Fits over processes: weak scaling", [Table("Rows shared by processes", COLUMNS)]
    )
    for case, sizes in CASES.items():
        if not options.keeps(case) or (options.small and case != "Exact"):
            continue
        sizes = (400, 8, min(sizes[2], 4)) if options.small else sizes
        arguments = {"case": case, "sizes": sizes, "num_runs": 1 if options.small else 3}
        one, two = (
            Times(*launch("benchmarks.ranks", arguments, number, options.small)[0]) for number in (1, 2)
        )
        efficiency = median(one.shared) / median(two.shared)
        report.tables[0].rows.append(
            {
                "case": case,
                "size": ", ".join(f"{size:,}" for size in sizes),
                "one": Spread.of(np.array(one.shared)),
                "apart": Spread.of(np.array(two.alone)),
                "two": Spread.of(np.array(two.shared)),
                "efficiency": efficiency,
                "shared": median(two.alone) / median(two.shared),
            }
        )
        report.targets.append(
            Target(
                f"{case}: efficiency of two processes",
                None if options.small else efficiency,
                EFFICIENCY,
                ">=",
            )
        )
    return report


if __name__ == "__main__":
    rank_main(json.loads(sys.argv[1]))
