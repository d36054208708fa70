"""The search for the mode: conjugate gradients, preconditioners, and a gradient that vanishes in Pyro's own log joint."""

from typing import Any

import numpy as np
import pyro
import pytest
import torch
from torch import Tensor

import bll_pyro as bll
from bll_pyro.frame import Frame
from bll_pyro.inference import row_likelihood as row_likelihood_file
from bll_pyro.inference.laplace import evidence as evidence_file
from bll_pyro.inference.laplace import preconditioner as preconditioner_file
from bll_pyro.inference.laplace.evidence import LaplaceEvidence
from bll_pyro.inference.laplace.mode import conjugate_gradients
from bll_pyro.inference.row_likelihood import RowLikelihood
from bll_pyro.inference.rows import DesignRows
from bll_pyro.scope import generator, isolated

NUM_ROWS, NUM_FEATURES = 150, 4


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


FEATURES = random(NUM_ROWS, NUM_FEATURES, seed=0) * torch.tensor([1.0, 3.0, 0.3, 1.0]) + 0.5
SIGNAL = FEATURES @ torch.tensor([1.0, -0.4, 2.0, 0.0], dtype=torch.float64)
VALUES = SIGNAL + 0.5 * random(NUM_ROWS, seed=1)
LABELS = torch.bucketize(VALUES, torch.tensor([-0.7, 0.9], dtype=torch.float64))
ONE, TWO = VALUES[:, None], torch.stack([VALUES, -2 * VALUES], 1)
CASES: list[tuple[bll.likelihoods.Likelihood, Tensor, tuple[int, ...]]] = [
    (bll.likelihoods.Categorical(3), LABELS, ()),
    (bll.likelihoods.Gaussian(), TWO, (2,)),
    (bll.likelihoods.HeteroscedasticGaussian(), ONE, ()),
    (bll.likelihoods.StudentT(), ONE, ()),
    (bll.likelihoods.Bernoulli(), (ONE > 0).double(), ()),
    (bll.likelihoods.Poisson(), LABELS[:, None].double(), ()),
    (bll.likelihoods.NegativeBinomial(), LABELS[:, None].double(), ()),
    (bll.likelihoods.Ordinal(3), LABELS, ()),
    (bll.likelihoods.MultivariateGaussian(), TWO + 0.3 * random(NUM_ROWS, 2, seed=2), (2,)),
]
CASE_IDS = [type(case[0]).__name__ for case in CASES]
PRIORS = [
    bll.priors.Normal(0.8),
    bll.priors.Normal(per_output=True),
    bll.priors.HierarchicalNormal(per_feature=True),
]


def evidence_of(
    likelihood: bll.likelihoods.Likelihood,
    targets: Tensor,
    shape: tuple[int, ...],
    prior: bll.priors.Prior,
    curvature: bll.curvatures.Curvature | None = None,
    tolerance: float = 1e-8,
) -> LaplaceEvidence:
    layer = bll.LastLayer(likelihood=likelihood, prior=prior, bias_scale=3.0)
    frame = Frame.identity(
        NUM_FEATURES, targets.dim() if targets.dim() == 1 else targets.shape[1], VALUES[:0]
    )
    rows = DesignRows(FEATURES, targets, frame)
    return LaplaceEvidence(layer, rows, shape, curvature or bll.curvatures.Kronecker(), tolerance, 100)


def some_psi(evidence: LaplaceEvidence) -> Tensor:
    with isolated(3, torch.float64):
        start = evidence.settings.start(evidence.like[0, 0])
    return start + 0.3 * random(len(start), seed=4)


@pytest.mark.parametrize("prior", PRIORS, ids=repr)
@pytest.mark.parametrize(("likelihood", "targets", "shape"), CASES, ids=CASE_IDS)
def test_pyro_finds_no_slope_at_the_mode(
    likelihood: bll.likelihoods.Likelihood, targets: Tensor, shape: tuple[int, ...], prior: bll.priors.Prior
) -> None:
    with isolated(0, torch.float64):
        evidence = evidence_of(likelihood, targets, shape, prior)
        psi = some_psi(evidence)
        at = evidence.fit_at(psi)
        assert at.mode.converged and at.mode.distance <= 1e-8
        model = bll.Model(evidence.layer, NUM_FEATURES, shape)
        for name, value in evidence.settings.learned(psi).items():
            setattr(model, name, value)
        sites = evidence.settings.global_sites.constrain(psi[evidence.settings.num_learned :])[0]

        def log_joint(weights: Tensor) -> Tensor:
            known = {**sites, "weight": weights[:, :-1], "bias": weights[:, -1]}
            conditioned = pyro.poutine.condition(model, data=known)
            return pyro.poutine.trace(conditioned).get_trace(FEATURES, targets).log_prob_sum()

        point = at.mode.weights.clone().requires_grad_()
        value = log_joint(point)
        (slope,) = torch.autograd.grad(value, point)
    steps = at.mode.precondition(slope)
    # in posterior standard deviations
    assert float((slope * steps).sum().clamp_min(0).sqrt()) < 1e-6
    log_globals = sum(
        float(distribution.log_prob(sites[name]))
        for name, distribution in evidence.settings.global_sites.priors.items()
    )
    assert at.mode.log_joint + log_globals == pytest.approx(float(value.detach()), abs=1e-7)


SIZES = {
    "outputs' blocks": (preconditioner_file, "MAX_BLOCK_NUMBERS", 2**25),
    "product axes": (preconditioner_file, "MAX_BLOCK_NUMBERS", 0),
    "many outputs": (preconditioner_file, "MAX_ROTATED_OUTPUTS", 0),
    "many columns": (preconditioner_file, "MAX_ROTATED_COLUMNS", 0),
    "few rows for the blocks": (preconditioner_file, "NUM_BLOCK_ROWS", 60),
    "start on some rows": (evidence_file, "NUM_FIRST_ROWS", 50),
    "outputs not kept": (row_likelihood_file, "CACHE_NUMBERS", 0),
    "small blocks": (row_likelihood_file, "BLOCK_NUMBERS", 1),
}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("likelihood", "targets", "shape"), CASES[:2], ids=CASE_IDS[:2])
def test_every_way_leads_to_the_same_mode(
    likelihood: bll.likelihoods.Likelihood,
    targets: Tensor,
    shape: tuple[int, ...],
    size: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prior = bll.priors.HierarchicalNormal()
    with isolated(0, torch.float64):
        plain = evidence_of(likelihood, targets, shape, prior)
        psi = some_psi(plain)
        expected = plain.fit_at(psi)
        slope = plain.gradient(expected)
        where, name, value = SIZES[size]
        if size in ("many outputs", "many columns"):
            monkeypatch.setattr(preconditioner_file, "MAX_BLOCK_NUMBERS", 0)
        monkeypatch.setattr(where, name, value)
        other = evidence_of(likelihood, targets, shape, prior)
        found = other.fit_at(psi)
        assert found.mode.converged
        torch.testing.assert_close(found.mode.weights, expected.mode.weights, rtol=0, atol=1e-7)
        assert found.log_evidence == pytest.approx(expected.log_evidence, abs=1e-8)
        torch.testing.assert_close(other.gradient(found), slope, rtol=1e-3, atol=1e-4)


def test_conjugate_gradients_solve() -> None:
    root = random(12, 12, seed=5)
    matrix = root @ root.mT + 0.1 * torch.eye(12)
    right = random(3, 4, seed=6)

    def product(vectors: Tensor) -> Tensor:
        return (matrix @ vectors.flatten()).view(3, 4)

    scale = matrix.diagonal().reciprocal().view(3, 4)
    found = conjugate_gradients(product, right, lambda vectors: scale * vectors, 1e-12)
    expected = torch.linalg.solve(matrix, right.flatten()).view(3, 4)
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9)
    rough = conjugate_gradients(product, right, lambda vectors: scale * vectors, 0.1)
    residual = right - product(rough)
    assert float((residual * scale * residual).sum()) <= 0.01 * float((right * scale * right).sum())
    assert not conjugate_gradients(product, torch.zeros(3, 4).double(), lambda v: v, 1e-12).any()


def test_a_search_that_is_cut_short_says_so() -> None:
    layer = bll.LastLayer(likelihood=bll.likelihoods.Categorical(3), prior=bll.priors.Normal(5.0))
    with pytest.warns(RuntimeWarning, match="the mode was not found within 2 steps"):
        fit = bll.fit(layer, (FEATURES, LABELS), inference=bll.Laplace(max_steps=2))
    assert not fit.trace.converged
    assert fit.trace.statistics["distance"] > 1e-8


def test_steps_that_overflow_are_halved() -> None:
    """From weights of 0 a full Newton step of a Poisson model with large counts overshoots by far."""
    counts = (torch.exp(2.5 * FEATURES[:, :1]) * 10).round()
    layer = bll.LastLayer(
        likelihood=bll.likelihoods.Poisson(), prior=bll.priors.Normal(5.0), standardize=False
    )
    fit = bll.fit(layer, (FEATURES, counts), inference=bll.Laplace(bll.curvatures.Full()))
    assert fit.trace.converged
    weight = fit.posterior.latents.weights.loc[0]
    torch.testing.assert_close(weight, torch.tensor([2.5, 0, 0, 0, 2.302585]).double(), rtol=0, atol=0.05)


@pytest.mark.filterwarnings("ignore:the mode was not found")
@pytest.mark.filterwarnings("ignore:the search for the maximum of the evidence did not converge")
@pytest.mark.slow
def test_a_line_search_ends_where_rounding_hides_the_rise(monkeypatch: pytest.MonkeyPatch) -> None:
    """One target of a million beside 39 near 0: line searches along directions without a rise had taken half a minute."""
    count, at = [0], RowLikelihood.at

    def counted(self: RowLikelihood, *args: Any) -> Any:
        count[0] += 1
        return at(self, *args)

    monkeypatch.setattr(RowLikelihood, "at", counted)
    random = np.random.default_rng(0)
    features = random.normal(size=(40, 1)).astype("float32")
    targets = features[:, 0] + random.normal(size=40)
    targets[0] = 1e6
    bll.fit(bll.LastLayer(bll.likelihoods.StudentT()), (features, targets), inference=bll.Laplace())
    assert count[0] < 10_000
