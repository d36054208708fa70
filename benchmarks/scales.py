"""The prior scale that the library chooses, compared with a grid of given scales, in regimes with different optima."""

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.data import data_folder, fashion_features
from benchmarks.options import Options
from benchmarks.report import Report, Table, Target

GRID = (0.03, 0.06, 0.12, 0.25, 0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0)
LIMIT = 0.02
NUM_TEST = 4_000
COLUMNS = {
    "regime": "rows",
    "method": "method",
    "excess": "test NLL over the best of the grid, mean",
    "each": "of each data set",
    "chosen": "scale picked",
    "best": "best of the grid",
    "nll": "test NLL at it",
    "epistemic": "least spread of epistemic uncertainty over the inputs, nats",
    "fit": "fit, s",
}


@dataclass(frozen=True)
class Regime:
    """A family of data sets; ``rows(seed)`` returns training and test rows."""

    name: str
    rows: Callable[[int], "Split"]
    num_classes: int = 3


@dataclass(frozen=True)
class Split:
    """Training rows and test rows: features ``[N, D]`` and labels ``[N]``."""

    features: Tensor
    labels: Tensor
    test_features: Tensor
    test_labels: Tensor


def classes(
    num_rows: int,
    rank: int,
    num_features: int,
    signal: float,
    seed: int,
    wrong: float = 0.0,
    num_classes: int = 3,
    num_test: int = NUM_TEST,
) -> Split:
    """Features near a subspace of dimension ``rank`` with softmax labels, of which a share ``wrong`` is random.

    The log odds have the scale ``signal``: with 0 labels are pure noise, with 60 almost separable.
    """
    random = torch.Generator().manual_seed(seed)
    num_all = num_rows + num_test
    inner = torch.randn(num_all, rank, generator=random)
    mixing = torch.randn(rank, num_features, generator=random) / rank**0.5
    features = inner @ mixing + 0.3 * torch.randn(num_all, num_features, generator=random)
    logits = signal * (inner @ torch.randn(rank, num_classes, generator=random)) / rank**0.5
    noise = -torch.empty(logits.shape).exponential_(generator=random).log()  # Gumbel
    labels = (logits + noise).argmax(-1)
    spoiled = torch.rand(num_all, generator=random) < wrong
    labels = labels.where(~spoiled, torch.randint(num_classes, labels.shape, generator=random))
    return Split(features[:num_rows], labels[:num_rows], features[num_rows:], labels[num_rows:])


def few_of_fashion(num_rows: int) -> Callable[[int], Split]:
    """Some rows of network features."""
    task = fashion_features()

    def rows(seed: int) -> Split:
        index = torch.randperm(len(task.train_targets), generator=torch.Generator().manual_seed(seed))[
            :num_rows
        ]
        return Split(
            task.train_features[index], task.train_targets[index],
            task.test_features[:NUM_TEST], task.test_targets[:NUM_TEST],
        )  # fmt: skip

    return rows


REGIMES = (
    Regime("many rows: 3,000 x 10", lambda seed: classes(3000, 10, 10, 3.0, seed)),
    Regime("few rows, almost separable: 80 x 160", lambda seed: classes(80, 8, 160, 60.0, seed)),
    Regime("noisy labels: 300 x 20, 40% random", lambda seed: classes(300, 20, 20, 30.0, seed, wrong=0.4)),
    Regime("pure noise: 200 x 30", lambda seed: classes(200, 30, 30, 0.0, seed)),
)
LARGER = (Regime("three rows a column: 480 x 160", lambda seed: classes(480, 8, 160, 60.0, seed)),)


def run(options: Options) -> Report:
    """Judge the scale that SVI and Laplace pick on their own, and the one of the evidence beside it."""
    import bll_pyro as bll

    evidence = bll.criteria.Evidence()
    # name, picks by itself, and the same with scales that are given
    methods = {
        "SVI()": (bll.SVI(), bll.SVI()),
        "SVI(), evidence": (bll.SVI(scale_criterion=evidence), bll.SVI()),
        "SVI(), leave-one-out": (bll.SVI(scale_criterion=bll.criteria.LeaveOneOut()), bll.SVI()),
        "Laplace()": (bll.Laplace(), bll.Laplace()),
        "Laplace(), evidence": (bll.Laplace(scale_criterion=evidence), bll.Laplace()),
    }
    methods = {name: both for name, both in methods.items() if options.keeps(name)}
    num_sets = 1 if options.small else options.num_runs
    regimes = list(REGIMES[1:2] if options.small else REGIMES + LARGER)
    try:
        data_folder()
        if not options.small:
            regimes += [
                Regime(f"{n} rows of network features x 128", few_of_fashion(n), 10) for n in (80, 240)
            ]
        missing = False
    except FileNotFoundError:
        missing = True
    table = Table(f"{num_sets} data sets of each kind", dict(COLUMNS))
    report = Report("scales", "The prior scale that is picked, against a grid", [table])
    for regime in regimes:
        sets = [regime.rows(seed) for seed in range(num_sets)]
        grids: dict[str, list[list[float]]] = {}
        table.rows.append({"regime": regime.name, "method": "best of the grid", "excess": 0.0})
        for name, (own, given) in methods.items():
            kind = type(given).__name__
            if kind not in grids:
                grid = GRID[4:6] if options.small else GRID
                grids[kind] = [[_judge(rows, regime, given, s)["nll"] for s in grid] for rows in sets]
            found = [_judge(rows, regime, own, None) for rows in sets]
            table.rows.append(_row(regime, name, found, grids[kind]))
            if regime in REGIMES and name in ("SVI()", "Laplace()"):
                excess = table.rows[-1]["excess"]
                report.targets.append(
                    Target(f"{name}, {regime.name}: excess of test NLL, mean", excess, LIMIT)
                )
    report.notes += [
        f"Grid: {', '.join(f'{s:g}' for s in GRID)}, given to the same inference. Excess: NLL at the scale that was picked, "
        "over the lowest of the grid, less 1; below 0 where the scale between two of the grid is better.",
        "With 80 rows no criterion knows the best scale: the held-out density of 80 rows is itself uncertain by about a tenth. "
        "So the mean over data sets is judged, and each is shown.",
        "Scales: medians over data sets. Spread: standard deviation over the test inputs, of the data set with the least.",
    ]
    if missing:
        report.notes.append("Network features are not there, left out.")
    return report


def _judge(rows: Split, regime: Regime, inference: Any, scale: float | None) -> dict[str, float]:
    import bll_pyro as bll

    layer = bll.LastLayer(bll.likelihoods.Categorical(regime.num_classes), bll.priors.Normal(scale))
    began = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit = bll.fit(layer, (rows.features, rows.labels), inference=inference)
    seconds = time.perf_counter() - began
    prediction = fit.predict(rows.test_features)
    return {
        "nll": -float(prediction.log_prob(rows.test_labels).mean()),
        "scale": scale if scale is not None else float(fit.posterior.learned["tau"]),
        "epistemic": float(prediction.epistemic.std()),
        "fit": seconds,
    }


def _row(
    regime: Regime, name: str, found: list[dict[str, float]], grids: list[list[float]]
) -> dict[str, Any]:
    excesses = [one["nll"] / min(grid) - 1 for one, grid in zip(found, grids, strict=True)]
    best = [GRID[grid.index(min(grid))] if len(grid) == len(GRID) else float("nan") for grid in grids]
    return {
        "regime": regime.name,
        "method": f"bll_pyro, {name}",
        "excess": sum(excesses) / len(excesses),
        "excesses": excesses,
        "each": ", ".join(f"{100 * excess:.1f}%" for excess in excesses),
        "chosen": _median([one["scale"] for one in found]),
        "best": _median(best),
        "nll": _median([min(grid) for grid in grids]),
        "epistemic": min(one["epistemic"] for one in found),
        "fit": _median([one["fit"] for one in found]),
    }


def _median(values: list[float]) -> float:
    return float(torch.tensor(values, dtype=torch.float64).median())
