"""Graphs in files say what ``fit.predict`` says: every likelihood and every kind of posterior, for batches of any size.

Eagerly, where it costs little, over priors x guides x likelihoods x inferences; as ONNX once for each form that a graph takes.
"""

import json
import warnings
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor, nn

import bll_pyro as bll
from bll_pyro import guides, likelihoods, ood, priors, runtime
from bll_pyro.export import as_module, graph
from bll_pyro.likelihoods import special
from bll_pyro.scope import generator

D, POINTS = 3, bll.QuasiMonteCarlo(32)
ROWS = torch.randn(1300, D, generator=generator(1))
SIGNAL = ROWS @ torch.tensor([1.0, -0.5, 0.3])
NOISE = torch.randn(1300, generator=generator(2))
NUMBER, CLASS = SIGNAL + 0.5 * NOISE, torch.bucketize(SIGNAL + NOISE, torch.tensor([-1.0, 0.5]))
COUNT = torch.poisson((SIGNAL / 2 + 1).exp(), generator=generator(3))
PAIR = torch.stack([NUMBER, 0.3 * SIGNAL - NOISE], -1)
TARGETS: dict[str, tuple[likelihoods.Likelihood, Tensor]] = {
    "classes": (likelihoods.Categorical(3, temperature=1.5), CLASS),
    "ordered": (likelihoods.Ordinal(3), CLASS),
    "label": (likelihoods.Bernoulli(), (NUMBER > 0).float()),
    "labels": (likelihoods.Bernoulli(), (PAIR > 0).float()),
    "known noise": (likelihoods.Gaussian(0.5), NUMBER),
    "numbers": (likelihoods.Gaussian(), 100 + 7 * PAIR),
    "tied": (likelihoods.MultivariateGaussian(), PAIR),
    "own noise": (likelihoods.HeteroscedasticGaussian(), NUMBER),
    "outliers": (likelihoods.StudentT(), NUMBER),
    "count": (likelihoods.Poisson(), COUNT),
    "counts": (likelihoods.NegativeBinomial(), COUNT),
}
QUICK = {"num_epochs": 5, "batch_size": 32}
GUIDES = {
    "point": guides.MAP(),
    "diagonal": guides.Diagonal(),
    "blocks": guides.BlockDiagonal(),
    "low rank": guides.LowRank(rank=2),
    "matrix": guides.MatrixNormal(),
    "full": guides.FullRank(),
    "flow": guides.Flow(),
    "custom": guides.Custom("AutoNormal"),
}
PRIORS = {
    "normal": priors.Normal(),
    "hierarchical": priors.HierarchicalNormal(),
    "horseshoe": priors.Horseshoe(),
}


@cache
def fit_of(target: str, guide: str = "diagonal", prior: str = "normal") -> bll.Fit:
    """A small fit; ``guide`` may name another inference."""
    likelihood, targets = TARGETS[target]
    inference: Any = {"exact": bll.Exact(), "laplace": bll.Laplace(curvature=bll.curvatures.Full())}.get(
        guide
    )
    if guide == "nuts":
        inference = bll.NUTS(num_warmup=30, num_samples=10, num_chains=1)
    elif inference is None:
        inference = bll.SVI(guide=GUIDES[guide], **QUICK)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", bll.FitWarning)
        return bll.fit(
            bll.LastLayer(likelihood, PRIORS[prior]), (ROWS[:80], targets[:80]), inference=inference
        )


def expected(
    fit: bll.Fit, rows: Tensor, quantiles: tuple[float, ...], integration: Any = POINTS
) -> dict[str, Any]:
    """What ``fit.predict`` says, by the names of a graph."""
    found = fit.predict(rows, integration=integration)
    names = ("probs", "mean", "scale", "total", "aleatoric", "epistemic")
    said = {name: getattr(found, name).numpy() for name in names if hasattr(found, name)}
    if hasattr(found, "quantile") and "mean" in said:
        said["quantiles"] = np.stack([found.quantile(q).numpy() for q in quantiles], -1)
    if found.ood is not None:
        said |= {name: getattr(found.ood, name).numpy() for name in ("score", "p_value", "is_ood")}
    return said


def compare(found: dict[str, Any], said: dict[str, Any]) -> None:
    assert set(found) == set(said)
    for name, value in said.items():
        size = max(1.0, float(np.abs(value).max()))
        np.testing.assert_allclose(np.asarray(found[name]), value, rtol=1e-5, atol=1e-5 * size, err_msg=name)


PRODUCT = [
    *product(TARGETS, GUIDES, PRIORS),
    *product(TARGETS, ["laplace"], PRIORS),
    *product(["known noise", "numbers"], ["exact"], ["normal"]),
]


@pytest.mark.parametrize("case", PRODUCT, ids=" - ".join)
@pytest.mark.thinned(90, 19)
def test_the_module_of_a_graph_predicts_as_the_fit(case: tuple[str, str, str]) -> None:
    try:
        fit = fit_of(*case)
    except (TypeError, ValueError):  # a pair that cannot be fitted; test_contract.py reads what it says
        return
    module = as_module(fit, integration=POINTS, quantiles=(0.1, 0.9)).requires_grad_(False)
    for num in (1, 150):  # graphs have batches of more sizes below
        said = expected(fit, ROWS[-num:], (0.1, 0.9))
        compare({name: value.numpy() for name, value in module(ROWS[-num:]).items()}, said)


GRAPHS = {
    "classes by draws": ("classes", "flow"),
    "classes, tied": ("classes", "full"),
    "ordered, tied to cutpoints": ("ordered", "laplace"),
    "labels": ("labels", "low rank"),
    "numbers": ("numbers", "matrix"),
    "numbers, a mixture of noises": ("numbers", "exact"),
    "own noise": ("own noise", "blocks"),
    "tied numbers": ("tied", "diagonal"),
}
SLOW_GRAPHS = {
    "outliers": ("outliers", "diagonal"),
    "count": ("count", "diagonal"),
    "counts": ("counts", "diagonal"),
}


def check_graph(fit: bll.Fit, path: Path, integration: Any = POINTS) -> runtime.Predictor:
    fit.export(path, integration=integration, quantiles=(0.1, 0.9))
    predictor = runtime.load(path, threads=1)
    for num in (1, 2, 7, 1000):
        said = expected(fit, ROWS[-num:], (0.1, 0.9), integration)
        compare(predictor.predict(ROWS[-num:].numpy()), said)
    assert set(predictor.outputs) == set(said)
    return predictor


@pytest.mark.unchecked  # torch traces loops, and no checks in them
@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.thinned(8)
def test_onnx_and_fit_agree(name: str, tmp_path: Path) -> None:
    fit = fit_of(*GRAPHS[name])
    if name == "classes, all scores":  # the default detector joins them
        fit = bll.calibrate(fit, ROWS[80:180], CLASS[80:180])
        fit = fit.with_detector(ood.Detector().calibrate(fit, ROWS[180:280], train=(ROWS[:80], CLASS[:80])))
    predictor = check_graph(fit, tmp_path / "m.onnx", POINTS if fit.detector is None else None)
    assert predictor.metadata["fingerprint"] == fit.fingerprint
    assert predictor.quantiles == ((0.1, 0.9) if "quantiles" in predictor.outputs else ())


@pytest.mark.unchecked  # torch traces loops, and no checks in them
@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW_GRAPHS)
def test_onnx_and_fit_agree_where_graphs_are_long(name: str, tmp_path: Path) -> None:
    check_graph(fit_of(*SLOW_GRAPHS[name]), tmp_path / "m.onnx")


def test_closed_forms_and_torch_graphs(tmp_path: Path) -> None:
    """The probit approximation, a backbone inside, ``.pt2``, and no row of the user's in any file."""
    network = nn.Sequential(nn.Linear(D, 4), nn.Tanh()).requires_grad_(False)
    layer = bll.LastLayer(likelihoods.Categorical(classes=["ash", "elm", "oak"]))
    names = np.array(["ash", "elm", "oak"])[CLASS[:80].numpy()]
    fit = bll.fit(layer, (ROWS[:80], names), network, bll.SVI(**QUICK))
    path = tmp_path / "m.pt2"
    fit.export(path, inputs=ROWS[:2], integration=bll.Probit())
    notes = {graph.NOTES: ""}
    found = torch.export.load(path, extra_files=notes).module()(ROWS[-7:])
    compare({k: v.detach().numpy() for k, v in found.items()}, expected(fit, ROWS[-7:], (), bll.Probit()))
    assert json.loads(notes[graph.NOTES])["classes"] == ["ash", "elm", "oak"]
    assert not any(row.numpy().tobytes() in path.read_bytes() for row in ROWS[:2])
    with pytest.raises(ValueError, match=r"expected inputs=\.\.\., a few rows"):
        fit.export(tmp_path / "m.onnx")
    with pytest.raises(ValueError, match="no bfloat16 on a CPU"):
        fit.export(tmp_path / "m.onnx", inputs=ROWS[:2], dtype="bfloat16")
    assert [file.name for file in tmp_path.iterdir()] == ["m.pt2"]


def test_what_it_refuses(tmp_path: Path) -> None:
    fit = fit_of("numbers")
    with pytest.raises(TypeError, match="Probit: expected a fit with Categorical or Bernoulli"):
        fit.export(tmp_path / "m.onnx", integration=bll.Probit())
    with pytest.raises(ValueError, match=r"expected a name that ends in .onnx or .pt2, got m.bin"):
        fit.export(tmp_path / "m.bin")
    with pytest.raises(ValueError, match="expected a fit with a backbone"):
        fit.export(tmp_path / "m.onnx", dtype="float16")
    with pytest.raises(ValueError, match="a number between 0 and 1"):
        fit.export(tmp_path / "m.onnx", quantiles=(1.5,))
    assert not list(tmp_path.iterdir())


COUNTS = torch.cat([torch.arange(40), torch.tensor([150, 999, 123_456])]).double()


@pytest.mark.parametrize("factor", [0.3, 1.0, 1.3, 4.0])
def test_distribution_functions_of_graphs(factor: float) -> None:
    mean = factor * (COUNTS + 1)
    found = special.poisson_cdf(COUNTS, mean).numpy()
    np.testing.assert_allclose(found, scipy.stats.poisson.cdf(COUNTS, mean), rtol=0, atol=1e-8)
    for concentration in (0.05, 0.9, 7.0, 1e4):
        size = torch.full_like(mean, concentration)
        found = special.negative_binomial_cdf(COUNTS, size, (mean / size).log()).numpy()
        said = scipy.stats.nbinom.cdf(COUNTS, concentration, (size / (size + mean)).numpy())
        np.testing.assert_allclose(found, said, rtol=0, atol=1e-8)
    z = torch.linspace(-30, 30, 301).double()
    for freedom in (2.05, 3.0, 30.0, 1e5):
        found = special.student_t_cdf(factor * z, torch.full_like(z, freedom)).numpy()
        np.testing.assert_allclose(found, scipy.stats.t.cdf(factor * z, freedom), rtol=0, atol=2e-6)
    below = torch.tensor([-1.0, -3.0]).double()
    assert not special.poisson_cdf(below, below.abs()).any()
