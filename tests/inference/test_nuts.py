"""NUTS against posteriors that are known: closed form, published reference draws, and the same seed twice."""

import math
from pathlib import Path

import numpy as np
import pyro.distributions as dist
import pytest
import torch

import bll_pyro as bll
from bll_pyro.scope import generator

pytestmark = pytest.mark.nuts


def test_conjugate_model() -> None:
    """Means and standard deviations within five Monte-Carlo errors of the exact posterior."""
    random = generator(0)
    mix = torch.randn(4, 4, generator=random, dtype=torch.float64)
    features = torch.randn(60, 4, generator=random, dtype=torch.float64) @ mix
    weight = torch.tensor([1.0, -0.5, 0.3, 0.0], dtype=torch.float64)
    targets = features @ weight + 0.5 * torch.randn(60, generator=random, dtype=torch.float64)
    layer = bll.LastLayer(
        likelihood=bll.likelihoods.Gaussian(noise_scale=0.5), prior=bll.priors.Normal(1.0), standardize=False
    )
    inference = bll.NUTS(num_warmup=200, num_samples=600, num_chains=2, num_processes=1)
    fit = bll.fit(layer, (features, targets), inference=inference)
    exact = bll.fit(layer, (features, targets), inference=bll.Exact()).posterior.sample(20_000, seed=1)
    draws = fit.posterior.sample()
    for name in ("weight", "bias"):
        found, known = draws[name].flatten(0, 1), exact[name].flatten(0, 1)
        # whitened chains of a Gaussian: at least a third of the draws count as independent
        error = 5 * known.std(0) / math.sqrt(len(found) / 3)
        assert bool(((found.mean(0) - known.mean(0)).abs() < error).all())
        assert bool(((found.std(0) / known.std(0) - 1).abs() < 5 / math.sqrt(2 * len(found) / 3)).all())
    assert fit.trace.converged and not fit.posterior.independent_draws
    again = bll.fit(layer, (features, targets), inference=inference).posterior.sample()
    assert torch.equal(again["weight"], draws["weight"])


def test_published_reference_draws(data_dir: Path) -> None:
    """posteriordb's sblri-blr: means within 0.1 reference standard deviations, scales within 10%."""
    stored = np.load(data_dir / "posteriordb" / "sblri-blr.npz", allow_pickle=False)
    layer = bll.LastLayer(
        likelihood=bll.likelihoods.Gaussian(noise_scale=dist.HalfNormal(torch.tensor(10.0))),
        prior=bll.priors.Normal(10.0),
        bias=False,
        standardize=False,
    )
    inference = bll.NUTS(num_warmup=200, num_samples=1000, num_chains=2, num_processes=1)
    draws = bll.fit(layer, (stored["X"], stored["y"]), inference=inference).posterior.sample()
    pairs = [
        (draws["weight"].flatten(0, 1)[:, 0], stored["beta"]),
        (draws["noise_scale"].flatten(), stored["sigma"]),
    ]
    for found, reference in pairs:
        known = torch.as_tensor(reference)
        assert bool(((found.mean(0) - known.mean(0)).abs() < 0.1 * known.std(0)).all())
        assert bool(((found.std(0) / known.std(0) - 1).abs() < 0.1).all())
