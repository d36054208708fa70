"""Sums of blocks and their fit; outputs of a graph as the columns of a prediction. Without Ray."""

import pickle
import sys
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import ray_cases as cases
import torch

import bll_pyro as bll
from bll_pyro.distributed.on_ray.columns import RowColumns
from bll_pyro.distributed.on_ray.graph_columns import check_interval, frame_of_outputs
from bll_pyro.distributed.on_ray.sums import SumsAssignment, SumsWorker
from bll_pyro.distributed.on_ray.workers import Workers
from bll_pyro.export.describing import described
from bll_pyro.export.kinds import graph_outputs
from bll_pyro.inference.exact.statistics import SufficientStatistics
from bll_pyro.runtime import Predictor

LAYER = bll.LastLayer(bll.likelihoods.Gaussian())
COLUMNS = RowColumns.of("inputs", row_id="row_id", targets="targets")


def close(got: Any, expected: Any, tolerance: float) -> bool:
    """Whether numbers agree, relative to the largest of them."""
    got, expected = (torch.as_tensor(value, dtype=torch.float64) for value in (got, expected))
    return bool((got - expected).abs().max() <= tolerance * expected.abs().max())


@pytest.fixture
def actor(monkeypatch) -> SumsWorker:
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(get=lambda given: given))
    return SumsWorker([SumsAssignment(cases.Network().double(), COLUMNS, Workers(batch_size=64))])


def features_of(rows: dict[str, np.ndarray]) -> torch.Tensor:
    return cases.Network().double()(torch.from_numpy(rows["inputs"]).double()).detach()


def test_the_fit_of_sums_is_that_of_the_rows(tmp_path, actor):
    rows = cases.columns()
    cuts = [0, 7, 200, 201, cases.N]
    parts = [
        pickle.loads(actor({name: values[start:stop] for name, values in rows.items()})["found"][0])
        for start, stop in pairwise(cuts)
    ]
    sums = sum(parts[1:], parts[0])
    x, y = features_of(rows), torch.from_numpy(rows["targets"])
    alone = SufficientStatistics.of(x, y[:, None])
    assert sums.num_rows == alone.num_rows == cases.N
    for name in ("weight", "feature_mean", "target_mean", "gram", "cross", "square"):
        assert close(getattr(sums, name), getattr(alone, name), 1e-10), name

    bll.Features.writer(tmp_path / "f").write("one", x, y, row_ids=rows["row_id"])
    store = bll.Features.commit(tmp_path / "f", read="ahead")
    prior = bll.priors.Normal(scale=1.0)
    for layer in (LAYER, bll.LastLayer(bll.likelihoods.Gaussian(noise_scale=1.0), prior, standardize=False)):
        expected = bll.fit(layer, store, inference=bll.Exact())
        found = bll.distributed.fit_statistics(layer, sums, backbone=cases.Network().double(), dtype=x.dtype)
        assert found.num_rows == cases.N
        assert found.log_evidence == pytest.approx(expected.log_evidence, rel=1e-10)
        ours, theirs = found.predict(rows["inputs"][:50]), expected.predict(x[:50])
        for name in ("mean", "total", "epistemic"):
            assert close(getattr(ours, name), getattr(theirs, name), 1e-10), name
        more = found.update((rows["inputs"][:20], y[:20]))  # as every exact fit
        assert more.num_rows == cases.N + 20


def test_large_constants_are_in_float64():
    x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0)).double() * 1e20
    y = x.sum(1) * 1e-20 + torch.randn(50, generator=torch.Generator().manual_seed(1))
    made = bll.distributed.fit_statistics(LAYER, SufficientStatistics.of(x, y[:, None]), dtype=torch.float64)
    expected = bll.fit(LAYER, bll.Features.from_tensors(x, y), inference=bll.Exact())
    assert close(made.predict(x).mean, expected.predict(x).mean, 1e-8)


def test_what_sums_do_not_hold_is_refused(actor):
    rows = {name: values[:20].copy() for name, values in cases.columns().items()}
    sums = pickle.loads(actor(rows)["found"][0])
    for layer, inference, message in (
        (LAYER, bll.SVI(), r"expected bll\.Exact\(\), which needs sums over rows alone, got SVI"),
        (
            bll.LastLayer(bll.likelihoods.Gaussian(), standardize="columns"),
            None,
            "expected one scale of all features",
        ),
        (bll.LastLayer(bll.likelihoods.Categorical(2)), None, "expected likelihoods.Gaussian"),
    ):
        with pytest.raises(ValueError, match=message):
            bll.distributed.fit_statistics(layer, sums, inference=inference)
    rows["inputs"][3, 2] = np.inf
    rows["inputs"][3, 1] = np.nan
    assert "with the ids 1003;" in str(pickle.loads(actor(rows)["found"][0]))
    assert pickle.loads(actor({name: values[:0] for name, values in rows.items()})["found"][0]) is None


# ---- columns of graphs

X = torch.randn(120, 3, generator=torch.Generator().manual_seed(1))
NOISE = torch.randn(120, 2, generator=torch.Generator().manual_seed(2))
NUMBERS = (X[:, 0] > 0).long() + (X[:, 1] > 1).long()
KINDS = {
    "classes": (bll.likelihoods.Categorical(), NUMBERS, bll.Laplace()),
    "classes by name": (
        bll.likelihoods.Categorical(),
        np.array(["ant", "bee", "cat"])[NUMBERS],
        bll.Laplace(),
    ),
    "labels": (bll.likelihoods.Bernoulli(), (X[:, 0] > 0).long(), bll.Laplace()),
    "value": (bll.likelihoods.Gaussian(), X[:, 0] + NOISE[:, 0], bll.Exact()),
    "values": (bll.likelihoods.Gaussian(), X[:, :2] * 2 + NOISE, bll.Exact()),
}


@pytest.mark.parametrize("kind", KINDS)
def test_columns_of_a_graph_are_those_of_the_prediction(kind):
    """What the graph computes is a test of its own; here it gives the outputs of the prediction."""
    likelihood, targets, inference = KINDS[kind]
    fit = bll.fit(bll.LastLayer(likelihood), (X, targets), inference=inference)
    fit = fit.with_detector(bll.ood.Detector(bll.ood.Leverage()).calibrate(fit, X[:60]))
    prediction, quantiles = fit.predict(X[:40]), (0.05, 0.5, 0.95)
    outputs = graph_outputs(prediction, ())
    if "mean" in outputs:
        ends = [prediction.interval(prob) for prob in (0.9, 1e-6)]
        outputs["quantiles"] = torch.stack([ends[0][0], ends[1][0], ends[0][1]], -1)
    verdict = prediction.ood
    outputs |= {"score": verdict.score, "p_value": verdict.p_value, "is_ood": verdict.is_ood}
    given = {name: value.numpy() for name, value in outputs.items()}
    graph = Predictor(lambda _: given, described(fit, quantiles, [3], "float32", list(given)))
    pd.testing.assert_frame_equal(
        frame_of_outputs(graph, given, 0.9), prediction.to_pandas(0.9), check_dtype=False
    )
    if "mean" in outputs:
        with pytest.raises(ValueError, match=r"interval=0\.8: expected a graph with the quantile 0\.1"):
            check_interval(graph, 0.8)
