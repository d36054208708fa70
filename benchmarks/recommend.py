"""What ``bll.recommend`` rests on: costs of fits beside its estimates, and a full covariance of few weights beside the default."""

import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_breast_cancer, load_iris, load_wine

import bll_pyro as bll
from benchmarks.fresh_process import GIB, measure
from benchmarks.options import Options
from benchmarks.report import Report, Table, Target
from bll_pyro.comparison.costs import FitSize, cost

INFERENCES = {
    "Exact": bll.Exact(),
    "SVI, FullRank": bll.SVI(bll.guides.FullRank()),
    "SVI, Diagonal": bll.SVI(),
    "SVI, Diagonal in plain axes": bll.SVI(bll.guides.Diagonal(principal_axes=False)),
    "Laplace, Kronecker": bll.Laplace(),
}
# (inference, N, D, K): K classes; 1 stands for real values of Exact, and else for counts
CASES = [
    ("Exact", 1_000, 10, 1),
    ("Exact", 100_000, 30, 1),
    ("Exact", 2_000_000, 20, 1),
    ("Exact", 50_000, 300, 1),
    ("Exact", 10_000, 1_500, 1),
    ("SVI, FullRank", 300, 10, 2),
    ("SVI, FullRank", 300, 10, 3),
    ("SVI, FullRank", 5_000, 8, 5),
    ("SVI, Diagonal", 100, 4, 3),
    ("SVI, Diagonal", 2_000, 64, 10),
    ("SVI, Diagonal", 20_000, 30, 1),
    ("SVI, Diagonal", 60_000, 128, 10),
    ("SVI, Diagonal", 100_000, 512, 10),
    ("SVI, Diagonal", 10_000, 256, 200),
    ("SVI, Diagonal", 1_000_000, 32, 5),
    ("SVI, Diagonal in plain axes", 10_000, 3_000, 5),
    ("Laplace, Kronecker", 2_000, 128, 10),
    ("Laplace, Kronecker", 60_000, 128, 10),
    ("Laplace, Kronecker", 10_000, 256, 50),
]
MOST_APART = 3.0  # largest factor between estimated and measured seconds
NUM_SPLITS, NUM_FITTED = 5, 60  # of each small data set
MOST_WORSE = 0.02  # excess of the NLL by which the default may be worse, in the mean over data sets
NOTES = [
    "Seconds are of the processor, which a loaded machine disturbs less; the first fit of a process is not counted. "
    "Rows are made up: Normal features, classes or counts that depend on them; K = 1 is a Gaussian for Exact and else a "
    "NegativeBinomial.",
    "Memory: peak of the fit above the peak that the making of the rows had reached, which hides some of it. Estimates are "
    "meant as upper bounds.",
    f"Few weights: {NUM_FITTED} rows are fitted and the rest is predicted, {NUM_SPLITS} splits, prior scale and temperature as "
    "by default.",
]
COLUMNS = {
    "inference": "inference",
    "size": "N, D, K",
    "seconds": "s of the processor",
    "estimated_seconds": "estimated, s",
    "gib": "memory of the work, GiB",
    "estimated_gib": "estimated, GiB",
}


def case(inference: str, num_rows: int, num_features: int, num_outputs: int) -> Callable[[], float]:
    """A fit of rows with a signal, after a first one that imports what is needed; it returns processor seconds."""
    random = torch.Generator().manual_seed(0)
    likelihood, declared = likelihood_of(inference, num_outputs), INFERENCES[inference]

    def rows(number: int) -> tuple[torch.Tensor, torch.Tensor]:
        features = torch.randn(number, num_features, generator=random)
        weight = torch.randn(num_outputs, num_features, generator=random) / num_features**0.5
        noise = torch.randn(number, num_outputs, generator=random)
        if num_outputs > 1:
            return features, (2 * features @ weight.mT + noise).argmax(1)
        signal = (features @ weight.mT)[:, 0]
        return features, signal + noise[:, 0] if inference == "Exact" else torch.poisson((1 + signal).exp())

    bll.fit(bll.LastLayer(likelihood), rows(max(200, 3 * num_outputs)), inference=declared)
    data = rows(num_rows)

    def work() -> float:
        began = time.process_time()
        bll.fit(bll.LastLayer(likelihood), data, inference=declared)
        return time.process_time() - began

    return work


def likelihood_of(inference: str, num_outputs: int) -> Any:
    """Real values for Exact, else counts for one output and classes for several."""
    if num_outputs > 1:
        return bll.likelihoods.Categorical(num_outputs)
    return bll.likelihoods.Gaussian() if inference == "Exact" else bll.likelihoods.NegativeBinomial()


def run(options: Options) -> Report:
    """Every case in a fresh process with one thread, one after the other; then the small data sets."""
    report = Report("recommend", "What a recommendation rests on")
    report.tables += [_costs(options, report), _few_weights(options, report)]
    report.notes += NOTES
    return report


def _costs(options: Options, report: Report) -> Table:
    table, apart, above = Table("Cost of a fit, one thread", COLUMNS), [1.0], [0.0]
    shrink = 100 if options.small else 1
    for inference, num_rows, num_features, num_outputs in CASES[:1] if options.small else CASES:
        if not options.keeps(inference):
            continue
        least = min(num_outputs, 2)
        size = FitSize(
            max(num_rows // shrink, 60), max(num_features // shrink, 3), max(num_outputs // shrink, least)
        )
        sizes = {name: getattr(size, name) for name in ("num_rows", "num_features", "num_outputs")}
        given = {"inference": inference, **sizes}
        outcome = measure("benchmarks.recommend:case", given, num_threads=1, is_small=options.small)
        assert outcome.failure is None, outcome.failure
        assert outcome.peak_bytes is not None
        assert outcome.before_bytes is not None
        estimated = cost(INFERENCES[inference], likelihood_of(inference, size.num_outputs), size)
        row: dict[str, Any] = {
            "inference": inference,
            "size": ", ".join(f"{number:,}" for number in sizes.values()),
            "seconds": outcome.value,
            "estimated_seconds": estimated.seconds,
            "gib": (outcome.peak_bytes - outcome.before_bytes) / GIB,
            "estimated_gib": estimated.num_bytes / GIB,
        }
        table.rows.append(row | {"sizes": list(sizes.values())})
        ratio = row["estimated_seconds"] / row["seconds"]
        apart.append(max(ratio, 1 / ratio))
        above.append(row["gib"] / row["estimated_gib"])
    report.targets += [
        Target("largest factor between estimated and measured seconds", max(apart), MOST_APART),
        Target("largest ratio of measured to estimated memory", max(above), 1.0),
    ]
    return table


def small_sets() -> dict[str, tuple[Any, NDArray[Any], NDArray[Any]]]:
    """Data sets with few weights: likelihood, rows and targets."""
    flowers, wines = load_iris(return_X_y=True), load_wine(return_X_y=True)
    cells = load_breast_cancer(return_X_y=True)
    likelihoods = bll.likelihoods
    return {
        "iris": (likelihoods.Categorical(3), *flowers),
        "wine, 6 columns": (likelihoods.Categorical(3), wines[0][:, :6], wines[1]),
        "breast cancer, 5 columns": (likelihoods.Bernoulli(), cells[0][:, :5], cells[1]),
        "breast cancer, 20 columns": (likelihoods.Bernoulli(), cells[0][:, :20], cells[1]),
    }


def _few_weights(options: Options, report: Report) -> Table:
    columns = {"data": "data set", "weights": "weights", "full": "full covariance", "default": "default"}
    table = Table("Few weights: mean test NLL", columns)
    for name, (likelihood, rows, targets) in small_sets().items():
        found: dict[str, list[float]] = {"full": [], "default": []}
        for split in range(1 if options.small else NUM_SPLITS):
            order = np.random.default_rng(split).permutation(len(rows))
            fitted, new = order[:NUM_FITTED], order[NUM_FITTED:]
            for method, inference in (("full", INFERENCES["SVI, FullRank"]), ("default", bll.SVI())):
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", bll.FitWarning)
                    fit = bll.fit(
                        bll.LastLayer(likelihood), (rows[fitted], targets[fitted]), inference=inference
                    )
                log_prob = fit.predict(rows[new]).log_prob(torch.as_tensor(targets[new]))
                found[method].append(-float(log_prob.double().mean()))
        num_weights = (rows.shape[1] + 1) * likelihood.num_outputs(())
        means = {method: float(np.mean(values)) for method, values in found.items()}
        table.rows.append({"data": name, "weights": num_weights, **means, "splits": found})
        print(table.rows[-1], flush=True)
        if options.small:
            break
    excess = np.mean([row["default"] / row["full"] - 1 for row in table.rows])
    report.targets.append(
        Target("default over a full covariance: mean excess of the NLL", float(excess), MOST_WORSE)
    )
    return table
