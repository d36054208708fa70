"""Seconds of a fit of few rows, ours and scikit-learn's in turn, on one thread."""

import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from sklearn.linear_model import BayesianRidge, LogisticRegressionCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks.data import made_up
from benchmarks.harness import interleave
from benchmarks.options import Options
from benchmarks.report import Report, Table, Target
from benchmarks.scales import classes

COLUMNS = {"work": "fit", "method": "method", "wall": "seconds (quartiles)", "over": "over scikit-learn's"}

Rows = tuple[torch.Tensor, torch.Tensor]
Case = tuple[str, Rows, Any, Callable[[], Any], float]


def noisy(num_rows: int, num_features: int, seed: int = 0) -> Rows:
    """Linear values whose noise depends on the features."""
    random = torch.Generator().manual_seed(seed)
    features = torch.randn(num_rows, num_features, generator=random)
    weights = torch.randn(num_features, 2, generator=random) / num_features**0.5
    mean, log_scale = (features @ weights).unbind(-1)
    return features, mean + log_scale.exp() * torch.randn(num_rows, generator=random)


def cases() -> list[Case]:
    """Name, rows, likelihood, scikit-learn's estimator, and the limit of ours in seconds."""
    import bll_pyro as bll

    def search() -> Any:
        head = LogisticRegressionCV(
            Cs=10, cv=5, scoring="neg_log_loss", l1_ratios=(0,), use_legacy_attributes=False
        )
        return make_pipeline(StandardScaler(), head)

    def ridge() -> Any:
        return make_pipeline(StandardScaler(), BayesianRidge())

    made, two = made_up(200, 128, 10), classes(80, 8, 160, 60.0, 0, num_classes=2, num_test=1)
    likelihoods = bll.likelihoods
    return [
        ("200 rows x 128 columns, 10 classes", (made.train_features, made.train_targets), likelihoods.Categorical(10), search, 1.5),
        ("80 rows x 160 columns, 2 classes", (two.features, two.labels), likelihoods.Bernoulli(), search, 1.5),
        ("180 rows x 41 columns, HeteroscedasticGaussian", noisy(180, 41), likelihoods.HeteroscedasticGaussian(), ridge, 1.0),
    ]  # fmt: skip


def add(report: Report, options: Options) -> None:
    """Add the table of seconds and its targets."""
    import bll_pyro as bll

    table = Table("Seconds of a fit, one thread", dict(COLUMNS))
    report.tables.append(table)
    chosen = cases()[1:2] if options.small else cases()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for name, (features, targets), likelihood, estimator, limit in chosen:

            def ours() -> float:
                return _seconds(lambda: bll.fit(bll.LastLayer(likelihood), (features, targets)))  # noqa: B023

            def theirs() -> float:
                rows = features.numpy().astype(float), targets.numpy()  # noqa: B023
                return _seconds(lambda: estimator().fit(*rows))  # noqa: B023

            label = f"scikit-learn, {type(estimator()[-1]).__name__}"
            timings = interleave(
                {"bll_pyro": ours, label: theirs}, options.num_runs, num_warm_ups=0 if options.small else 1
            )
            base = timings[label].spread.median
            for method, timing in timings.items():
                spread = timing.spread
                table.rows.append(
                    {"work": name, "method": method, "wall": spread, "over": spread.median / base}
                )
            report.targets.append(Target(f"seconds, {name}", timings["bll_pyro"].spread.median, limit))
    finally:
        torch.set_num_threads(threads)


def _seconds(work: Callable[[], object]) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of iterations that ran out
        began = time.perf_counter()
        work()
        return time.perf_counter() - began
