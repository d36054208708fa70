"""A last layer over 200,000 classes, shared by 2 processes: peak memory of each, and the time of steps and predictions."""

import json
import sys
import time
from typing import Any

import torch

import bll_pyro as bll
from benchmarks.fresh_process import GIB, peak_bytes
from benchmarks.launching import launch, say
from benchmarks.options import Options
from benchmarks.report import Report, Table, Target

COLUMNS = {
    "guide": "guide",
    "size": "C, D, rows",
    "before": "imports and rows, GiB",
    "peak": "peak of a process, GiB",
    "step": "s a step of 128 rows",
    "predicted": "rows predicted a second",
}
LIMIT_GIB = 2.0  # of each process
NUM_PROCESSES = 2
SIZES = (200_000, 256, 2_048, 64)  # classes, features, rows, rows predicted
SMALL = (3_000, 8, 256, 16)
SEEN = 512  # classes that have rows


def rank_main(arguments: dict[str, Any]) -> None:
    """Fit and predict on one rank."""
    torch.set_num_threads(1)
    num_classes, num_features, num_rows, num_predicted = arguments["sizes"]
    is_point = arguments["guide"] == "MAP"
    guide, scale = (bll.guides.MAP(), 0.25) if is_point else (bll.guides.Diagonal(), None)
    random = torch.Generator().manual_seed(0)
    seen = torch.randperm(num_classes, generator=random)[:SEEN]
    centers = torch.randn(SEEN, num_features, generator=random)

    def rows(number: int) -> tuple[torch.Tensor, torch.Tensor]:
        which = torch.randint(SEEN, (number,), generator=random)
        return centers[which] + torch.randn(number, num_features, generator=random), seen[which]

    data, x = rows(num_rows), rows(num_predicted)[0]
    with bll.distributed.Ranks(timeout=300) as ranks:
        before, began = peak_bytes(), time.perf_counter()
        layer = bll.distributed.fit_outputs(
            data, num_classes, ranks, guide=guide, prior_scale=scale, num_epochs=1
        )
        fitted = time.perf_counter()
        layer.predict(x)
        seconds = time.perf_counter() - fitted
        say(
            {
                "before": before / GIB,
                "peak": peak_bytes() / GIB,
                "step": (fitted - began) / len(layer.elbo),
                "predicted": num_predicted / seconds,
            }
        )


def run(options: Options) -> Report:
    """Measure both guides."""
    report = Report(
        "outputs", "Outputs over processes: memory", [Table("200,000 classes, 2 processes", COLUMNS)]
    )
    sizes = SMALL if options.small else SIZES
    for guide in ("Diagonal", "MAP"):
        if not options.keeps(guide) or (options.small and guide == "MAP"):
            continue
        found = launch("benchmarks.outputs", {"guide": guide, "sizes": sizes}, NUM_PROCESSES, options.small)
        worst = max(found, key=lambda one: one["peak"])
        size = ", ".join(f"{number:,}" for number in sizes[:3])
        report.tables[0].rows.append({"guide": guide, "size": size, **worst})
        peak = None if options.small else worst["peak"]
        report.targets.append(Target(f"{guide}: peak of a process, GiB", peak, LIMIT_GIB))
    return report


if __name__ == "__main__":
    rank_main(json.loads(sys.argv[1]))
