"""The start of a guide with one covariance: the exact posterior where that is Normal, the best Gaussian elsewhere."""

import math

import pytest
import torch
from scipy.optimize import minimize_scalar

import bll_pyro as bll
from bll_pyro.frame import Frame
from bll_pyro.gaussian import flatten
from bll_pyro.guides import Start
from bll_pyro.inference.rows import DesignRows
from bll_pyro.inference.start import warm_start
from bll_pyro.inference.svi.gaussian_start import ahead, dense_start
from bll_pyro.model import Model
from bll_pyro.scope import generator

NUM_FEATURES = 3


def started(layer: bll.LastLayer, targets: torch.Tensor, features: torch.Tensor) -> tuple[Start, Start]:
    """The warm start of a layer, and what becomes of it."""
    shape = tuple(targets.shape[1:]) if not layer.likelihood.is_discrete else ()
    frame = Frame.identity(NUM_FEATURES, layer.likelihood.num_outputs(shape), features)
    rows = DesignRows(features, layer.likelihood.check_targets(targets), frame)
    model = Model(layer, NUM_FEATURES, shape)
    learned = {name: value.detach() for name, value in model.learned.items()}
    first = warm_start(layer, model.global_sites, rows, model.num_outputs, learned)
    return first, dense_start(layer, model.global_sites, rows, first, learned)


def features_of(num_rows: int) -> torch.Tensor:
    """Correlated features, in double precision."""
    mix = torch.randn(NUM_FEATURES, NUM_FEATURES, generator=generator(1), dtype=torch.float64)
    return torch.randn(num_rows, NUM_FEATURES, generator=generator(0), dtype=torch.float64) @ mix


def test_known_noise_gives_the_exact_posterior() -> None:
    features = features_of(40)
    noise = 0.5 * torch.randn(40, 2, generator=generator(2), dtype=torch.float64)
    targets = features[:, :2] + 0.3 + noise
    layer = bll.LastLayer(
        bll.likelihoods.Gaussian(noise_scale=0.5), bll.priors.Normal(0.8), bias_scale=3.0, standardize=False
    )
    start = started(layer, targets, features)[1]
    design = torch.cat([features, torch.ones(40, 1)], -1)
    precision = design.mT @ design / 0.25 + torch.diag(
        torch.tensor([0.8] * NUM_FEATURES + [3.0]).double() ** -2
    )
    mean = torch.linalg.solve(precision, design.mT @ targets / 0.25).mT
    # half of what is missing is left by each round, and the last step is below 0.01 standard deviations
    scale = torch.linalg.inv(precision).diagonal().sqrt()
    assert bool(((start.loc - mean).abs() < 0.03 * scale).all())
    assert start.tril is not None
    order = flatten(features.new_zeros(0), torch.arange(8).view(2, 4), NUM_FEATURES).long()
    expected = torch.block_diag(*[torch.linalg.inv(precision)] * 2)[order][:, order]
    torch.testing.assert_close(start.tril @ start.tril.mT, expected, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(start.scale, precision.diagonal().rsqrt().expand(2, 4), rtol=1e-6, atol=0.0)


@pytest.mark.slow
def test_classes_start_near_the_highest_elbo() -> None:
    """A long fit gains next to nothing over one step from the start."""
    features = features_of(60)
    noise = torch.randn(60, generator=generator(3))
    targets = torch.bucketize((features[:, 0] + noise).contiguous(), torch.tensor([-0.7, 0.7]))
    layer = bll.LastLayer(bll.likelihoods.Categorical(3), bll.priors.Normal(1.0))
    first, start = started(layer, targets, features)
    assert first.tril is None and start.tril is not None
    one, long = (
        bll.fit(layer, (features, targets), inference=bll.SVI(guide=bll.guides.FullRank(), num_epochs=number))
        for number in (1, 1000)
    )
    # eight draws a row: each ELBO has an error of about a tenth of a nat
    assert one.elbo == pytest.approx(long.elbo, abs=0.5)


def test_too_many_weights_come_back_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bll_pyro.inference.svi.gaussian_start.MAX_WEIGHTS", 5)
    layer = bll.LastLayer(bll.likelihoods.Categorical(3), bll.priors.Normal(1.0))
    first, start = started(layer, torch.arange(30) % 3, features_of(30))
    assert start is first


def test_a_learned_scale_is_where_the_evidence_is_highest() -> None:
    """Few noisy rows: the prior holds the weights, and setting its scale to theirs again and again would take very long."""
    features = features_of(12)
    weight = torch.tensor([[1.0, -2.0, 1.5], [-1.0, 0.5, 2.0]], dtype=torch.float64)
    noise = 3.0 * torch.randn(12, 2, generator=generator(2), dtype=torch.float64)
    targets = features @ weight.mT + noise
    layer = bll.LastLayer(
        bll.likelihoods.Gaussian(noise_scale=3.0), bll.priors.Normal(scale=None), standardize=False
    )

    def negative_evidence(log_scale: float) -> float:
        covariance = (
            9.0 * torch.eye(12) + math.exp(2 * log_scale) * features @ features.mT + 100.0
        )  # the bias
        at = torch.distributions.MultivariateNormal(torch.zeros(12).double(), covariance)
        return -float(at.log_prob(targets.mT).sum())

    best = math.exp(minimize_scalar(negative_evidence, bounds=(-4, 4), method="bounded").x)
    start = started(layer, targets, features)[1]
    assert start.tril is not None
    order = flatten(features.new_zeros(0), torch.arange(8).view(2, 4), NUM_FEATURES).long()
    scale = torch.empty(8, dtype=torch.float64)
    scale[order] = (start.tril @ start.tril.mT).diagonal().sqrt()
    (found,) = layer.prior.learned_update(
        start.loc[:, :NUM_FEATURES], scale.view(2, 4)[:, :NUM_FEATURES]
    ).values()
    assert float(found) == pytest.approx(best, rel=0.02)


def test_what_moves_geometrically_is_seen_to_its_end() -> None:
    end, logs = torch.tensor([2.0, 0.3]), torch.tensor([[1.0, -0.5]]) * 0.8 ** torch.arange(3.0)[:, None]
    steps = [{"tau": end * step.exp()} for step in logs]
    torch.testing.assert_close(ahead(*steps)["tau"], end, rtol=1e-4, atol=0.0)
    still = {"tau": end}
    assert torch.equal(ahead(still, still, still)["tau"], end)
