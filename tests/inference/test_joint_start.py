"""The start of a guide with one covariance: the exact posterior where that is Normal, the best Gaussian elsewhere."""

import pytest
import torch

import bll_pyro as bll
from bll_pyro.frame import Frame
from bll_pyro.gaussian import flatten
from bll_pyro.guides import Start
from bll_pyro.inference.joint_start import joint_start
from bll_pyro.inference.rows import Rows
from bll_pyro.inference.start import warm_start
from bll_pyro.model import Model
from bll_pyro.scope import generator

NUM_FEATURES = 3


def started(layer: bll.LastLayer, targets: torch.Tensor, features: torch.Tensor) -> tuple[Start, Start]:
    """The warm start of a layer, and what becomes of it."""
    shape = tuple(targets.shape[1:]) if not layer.likelihood.is_discrete else ()
    frame = Frame.identity(NUM_FEATURES, layer.likelihood.num_outputs(shape), features)
    rows = Rows(features, layer.likelihood.check_targets(targets), frame)
    model = Model(layer, NUM_FEATURES, shape)
    learned = {name: value.detach() for name, value in model.learned.items()}
    first = warm_start(layer, model.globals, rows, model.num_outputs, learned)
    return first, joint_start(layer, model.globals, rows, first, learned)


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
    monkeypatch.setattr("bll_pyro.inference.joint_start.MAX_WEIGHTS", 5)
    layer = bll.LastLayer(bll.likelihoods.Categorical(3), bll.priors.Normal(1.0))
    first, start = started(layer, torch.arange(30) % 3, features_of(30))
    assert start is first
