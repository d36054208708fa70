"""``bll.fit_from_draws``: draws of ``bll.Model`` by any inference of Pyro, as a fit."""

from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from pyro.infer import SVI, Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoMultivariateNormal
from torch import nn

import bll_pyro as bll
from bll_pyro import likelihoods
from bll_pyro.scope import generator, isolated

N, D, S = 60, 3, 400
RANDOM = generator(0)
X = 5 + 2 * torch.randn(N, D, generator=RANDOM)
Y = 100 + 10 * (X[:, 0] - 5) + 4 * torch.randn(N, generator=RANDOM)
LAYER = bll.LastLayer(likelihoods.Gaussian(4.0), bll.priors.Normal(1.0))
EXACT = bll.fit(LAYER, (X, Y), inference=bll.Exact())
FRAME = EXACT.posterior.frame
CONSTANTS = {name: getattr(FRAME, name) for name in ("center", "scale", "target_center", "target_scale")}
MODEL = bll.Model(LAYER.in_frame(FRAME), D)
DRAWS = {name: value[0] for name, value in EXACT.posterior.sample(S, seed=1).items()}


def test_draws_of_a_known_posterior_predict_as_it_does(tmp_path: Path) -> None:
    fit = bll.fit_from_draws(MODEL, DRAWS, N, **CONSTANTS)
    assert fit.layer.likelihood.noise_scale == pytest.approx(4.0)
    found, expected = fit.predict(X), EXACT.predict(X)
    error = expected.epistemic.sqrt() / S**0.5
    assert bool(((found.mean - expected.mean).abs() < 4.5 * error).all())
    torch.testing.assert_close(found.aleatoric, expected.aleatoric, rtol=1e-4, atol=0)
    # a variance of S draws varies by sqrt(2 / S) of itself
    torch.testing.assert_close(found.epistemic, expected.epistemic, rtol=4.5 * (2 / S) ** 0.5, atol=0)
    tree = fit.to_datatree(X, Y)
    assert tree.attrs["independent_draws"] == 1 and tree.log_likelihood.y.shape == (1, S, N)
    fit.save(tmp_path / "fit")
    torch.testing.assert_close(bll.load(tmp_path / "fit").predict(X).mean, found.mean)
    assert "OwnLoop()" in str(fit)


def test_chains() -> None:
    chains = {name: value.reshape(4, S // 4, *value.shape[1:]) for name, value in DRAWS.items()}
    fit = bll.fit_from_draws(MODEL, chains, N, markov_chain=True, **CONSTANTS)
    assert fit.to_datatree(X, Y).posterior.sizes["chain"] == 4 and not fit.posterior.independent_draws


def test_draws_of_a_guide_in_the_shapes_of_the_program() -> None:
    """Unknown noise, a sampled prior scale and a network: predictions are the averages over the draws."""
    network = nn.Linear(D, 2)
    layer = bll.LastLayer(likelihoods.Gaussian(), bll.priors.HierarchicalNormal())
    with isolated(0):
        model = bll.Model(layer, 2, backbone=network)
        guide = AutoMultivariateNormal(model, init_scale=0.1)
        SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO()).step(X[:20], Y[:20] / 100, N)
        draws = Predictive(model, guide=guide, num_samples=30)(X)
    fit = bll.fit_from_draws(model, draws, N, target_center=100.0, target_scale=10.0)
    assert fit.backbone is network and "y" in draws
    assert fit.posterior.sample()["noise_scale"].shape == (1, 30)
    with torch.no_grad():
        outputs = network(X) @ draws["weight"].view(30, 2).mT + draws["bias"].view(30)
    found = fit.predict(X)
    torch.testing.assert_close(found.mean, 100 + 10 * outputs.mean(1), rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(
        found.aleatoric, 100 * draws["noise_scale"].square().mean().expand(N), rtol=1e-4, atol=0
    )
    tree = bll.from_pyro(model, guide=guide, args=(X, Y / 100), num_draws=5, prior=False)
    assert tree.log_likelihood.y.shape == (1, 5, N)


BAD: dict[str, tuple[Any, str]] = {
    "no bias": ({"weight": DRAWS["weight"]}, "got none of bias"),
    "another width": (DRAWS | {"weight": torch.zeros(S, 1, D + 1)}, r"draws of weight of shape \[S, 1, 3\]"),
    "one draw without an axis": (DRAWS | {"bias": torch.zeros(1)}, "draws of bias of shape"),
    "another number": (DRAWS | {"bias": torch.zeros(S - 1, 1)}, "as many draws of each site"),
    "not a number": (DRAWS | {"bias": torch.full((S, 1), torch.nan)}, "draws of bias"),
}


@pytest.mark.parametrize("kind", BAD)
def test_draws_that_do_not_fit_are_named(kind: str) -> None:
    draws, message = BAD[kind]
    with pytest.raises(ValueError, match=message):
        bll.fit_from_draws(MODEL, draws, N)


@pytest.mark.unchecked
def test_other_arguments() -> None:
    with pytest.raises(TypeError, match=r"expected a bll\.Model, got LastLayer"):
        bll.fit_from_draws(LAYER, DRAWS, N)
    with pytest.raises(ValueError, match="num_rows"):
        bll.fit_from_draws(MODEL, DRAWS, 0)
    with pytest.raises(ValueError, match="expected center as a finite number, or one for each of 3"):
        bll.fit_from_draws(MODEL, DRAWS, N, center=torch.zeros(2))
    with pytest.raises(ValueError, match="expected scale above 0"):
        bll.fit_from_draws(MODEL, DRAWS, N, scale=0.0)
