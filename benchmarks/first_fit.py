"""What the first fit of a process costs over a later one, and which heavy libraries it imports.

Every run is a fresh process that has imported torch and Pyro. The first fit and prediction import this package's modules
and start torch's own machinery; nothing else should be in the difference.
"""

import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.fresh_process import measure
from benchmarks.harness import Spread
from benchmarks.options import Options
from benchmarks.report import Report, Table, Target

NEVER = (
    "torch._dynamo",
    "torch._inductor",
    "sympy",
    "sklearn",
    "timm",
    "transformers",
    "torchvision",
    "matplotlib",
    "lightning",
    "lightning_fabric",
    "arviz",
    "xarray",
    "pandas",
    "narwhals",
    "polars",
    "pyarrow",
)
"""What a frozen fit and its predictions must not import."""
LIMIT = 1.0  # seconds of the first fit over a later one
NUM_LATER = 3  # fits after the first; their median counts

# inference, rows, likelihood, whether there is a backbone; the fit with all defaults first
CASES = {
    "SVI, few rows, classes": ("SVI", 150, "Categorical", False),
    "SVI, few rows, real values": ("SVI", 150, "Gaussian", False),
    "SVI, many rows, classes": ("SVI", 5000, "Categorical", False),
    "SVI, a frozen backbone": ("SVI", 1000, "Categorical", True),
    "Laplace": ("Laplace", 150, "Categorical", False),
    "Exact": ("Exact", 150, "Gaussian", False),
}


def first_and_later(case: str, num_later: int = NUM_LATER) -> Callable[[], dict[str, Any]]:
    """Seconds, and those of the processor, of the first fit and prediction and of later ones; what was imported."""
    import pyro  # noqa: F401
    import torch

    inference, num_rows, likelihood, has_backbone = CASES[case]
    random = torch.Generator().manual_seed(0)
    features = torch.randn(num_rows, 16, generator=random)
    noisy = features[:, :5] + torch.randn(num_rows, 5, generator=random)
    targets = noisy.argmax(-1) if likelihood == "Categorical" else noisy[:, 0]
    backbone = torch.nn.Sequential(torch.nn.Linear(16, 8), torch.nn.ReLU()) if has_backbone else None
    before = set(sys.modules)

    def once() -> tuple[float, float]:
        began = time.perf_counter(), time.process_time()
        import bll_pyro as bll

        kinds = {"Categorical": lambda: bll.likelihoods.Categorical(5), "Gaussian": bll.likelihoods.Gaussian}
        settings = {} if inference == "SVI" else {"inference": getattr(bll, inference)()}
        layer = bll.LastLayer(likelihood=kinds[likelihood]())
        prediction = bll.fit(layer, (features, targets), backbone=backbone, **settings).predict(features)
        prediction.log_prob(targets)
        return time.perf_counter() - began[0], time.process_time() - began[1]

    def work() -> dict[str, Any]:
        first = once()
        imported = sorted({name for name in NEVER if name in sys.modules} - before)
        return {"first": first, "later": [once() for _ in range(num_later)], "imported": imported}

    return work


def run(options: Options) -> Report:
    """Fresh processes, case by case in rounds, so that the load of the machine falls on all of them."""
    cases = list(CASES)[:2] if options.small else CASES
    num_later = 1 if options.small else NUM_LATER
    outcomes: dict[str, list[dict[str, Any]]] = {case: [] for case in cases}
    for _ in range(options.num_runs):
        for case, found in outcomes.items():
            outcome = measure(
                "benchmarks.first_fit:first_and_later",
                {"case": case, "num_later": num_later},
                num_threads=1,
                is_small=options.small,
            )
            if outcome.failure is not None:
                raise RuntimeError(f"{case}: {outcome.failure}")
            found.append(outcome.value)
    columns = {
        "method": "fit and prediction",
        "first": "first, s",
        "later": "later, s",
        "over": "first over later, s",
        "processor": "the same, s of the processor",
    }
    table = Table("The first fit of a process that has imported torch and Pyro; medians (quartiles)", columns)
    report = Report("first_fit", "The first fit of a process", [table])
    imported: set[str] = set()
    for case, found in outcomes.items():
        first = np.array([one["first"] for one in found])  # [rounds, 2]: wall time, and that of the processor
        later = np.array([np.median(one["later"], axis=0) for one in found])
        figures = {"first": first[:, 0], "later": later[:, 0]}
        figures |= {"over": first[:, 0] - later[:, 0], "processor": first[:, 1] - later[:, 1]}
        row = {name: Spread.of(values) for name, values in figures.items()}
        table.rows.append({"method": case, **row, "rounds": found})
        report.targets.append(Target(f"{case}: first over later, s", row["over"].median, LIMIT))
        imported |= {name for one in found for name in one["imported"]}
    report.targets.append(Target("heavy libraries imported by a first fit", float(len(imported)), 0))
    report.notes.append(f"Looked for: {', '.join(NEVER)}. Imported: {', '.join(sorted(imported)) or 'none'}.")
    return report
