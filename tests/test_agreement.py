"""Output space and weight space say the same: predictions in closed form against averages over draws of the weights."""

import math
from functools import partial

import pytest
import torch

import bll_pyro as bll
from bll_pyro.scope import generator

plain_fit = partial(bll.fit, calibration=None)  # predictions of the posterior itself


NUM_DRAWS = 6000
RANDOM = generator(0)
FEATURES = torch.randn(40, 3, generator=RANDOM, dtype=torch.float64)
SIGNAL = FEATURES @ torch.tensor([1.0, -0.5, 0.2], dtype=torch.float64)
VALUES = SIGNAL + 0.4 * torch.randn(40, generator=RANDOM, dtype=torch.float64)
LABELS = torch.bucketize(VALUES, torch.tensor([-0.7, 0.6], dtype=torch.float64))
TARGETS = {
    bll.likelihoods.Categorical(3): LABELS,
    bll.likelihoods.Gaussian(): VALUES,
    bll.likelihoods.Gaussian(0.4): torch.stack([VALUES, -VALUES], 1),
    bll.likelihoods.HeteroscedasticGaussian(): VALUES,
    bll.likelihoods.MultivariateGaussian(): torch.stack([VALUES, SIGNAL.flip(0) - VALUES], 1),
    bll.likelihoods.StudentT(): VALUES,
    bll.likelihoods.Bernoulli(): (LABELS > 0).double(),
    bll.likelihoods.Poisson(): LABELS,
    bll.likelihoods.NegativeBinomial(): LABELS,
    bll.likelihoods.Ordinal(3): LABELS,
}
GUIDES = [
    bll.guides.MAP(),
    bll.guides.Diagonal(),
    bll.guides.Diagonal(principal_axes=False),
    bll.guides.BlockDiagonal(),
    bll.guides.LowRank(rank=2),
    bll.guides.MatrixNormal(),
    bll.guides.FullRank(),
]
NEW = torch.randn(10, 3, generator=generator(1), dtype=torch.float64)


@pytest.mark.parametrize("guide", GUIDES, ids=repr)
@pytest.mark.parametrize("likelihood", TARGETS, ids=repr)
@pytest.mark.thinned(6)
def test_predictions_agree(likelihood: bll.likelihoods.Likelihood, guide: bll.guides.Guide) -> None:
    layer = bll.LastLayer(likelihood=likelihood, prior=bll.priors.Normal(1.0))
    fit = plain_fit(layer, (FEATURES, TARGETS[likelihood]), inference=bll.SVI(guide=guide, num_epochs=30))
    posterior = fit.posterior
    draws = posterior.sample(NUM_DRAWS, seed=2)
    outputs = posterior.draw_outputs(draws, NEW)
    closed = posterior.outputs(NEW)
    # five standard errors of a mean over independent draws, and of a variance of Gaussian draws
    error = 5 * closed.variance.sqrt() / math.sqrt(NUM_DRAWS) + 1e-9
    assert bool(((outputs.mean(0) - closed.mean).abs() < error).all())
    spread = 5 * math.sqrt(2 / NUM_DRAWS) * closed.variance + 1e-9
    assert bool(((outputs.var(0) - closed.variance).abs() < spread).all())
    noise = {
        k: v[0, :, None]
        for k, v in posterior.global_sites.from_user(draws).items()
        if k in posterior.global_sites.noise_names
    }
    inside = posterior.layer.likelihood
    prediction = fit.predict(NEW)
    if likelihood.is_discrete or likelihood.is_binary:
        rule = inside.class_probs if likelihood.is_discrete else inside.label_probs
        probs = rule(outputs, **noise)
        expected = prediction.probs if likelihood.is_discrete else prediction.probs[:, None]
        assert bool(((probs.mean(0) - expected).abs() < 5 * probs.std(0) / math.sqrt(NUM_DRAWS) + 2e-3).all())
    else:
        frame = posterior.frame
        mean = inside.marginals(outputs, **noise).mean * frame.target_scale + frame.target_center
        expected = prediction.mean.view(10, -1)
        # the quasi-random average of the prediction has an error of its own, near 1 / 256 of the spread
        assert bool(
            (
                (mean.mean(0) - expected).abs()
                < 5 * mean.std(0) / math.sqrt(NUM_DRAWS) + 0.02 * mean.std(0) + 1e-9
            ).all()
        )


@pytest.mark.slow
def test_defaults_on_real_features(data_dir: object) -> None:
    """Fashion-MNIST features of a small network, all defaults: the figures that plain Pyro misses (0.40, 0.875, 0.050)."""
    import numpy as np

    from bll_pyro.metrics import accuracy, ece

    stored = np.load(data_dir / "fashion_features" / "cnn128.npz", allow_pickle=False)  # type: ignore[operator]
    train, test = (stored[f"H_{part}"].astype(np.float32) for part in ("train", "test"))
    labels, targets = (stored[f"y_{part}"].astype(np.int64) for part in ("train", "test"))
    fit = plain_fit(bll.LastLayer(likelihood=bll.likelihoods.Categorical(10)), (train, labels))
    prediction = fit.predict(test)
    assert -float(prediction.log_prob(targets).mean()) <= 0.285
    assert accuracy(prediction.probs, targets) >= 0.898
    assert ece(prediction.probs, targets, num_bins=15) <= 0.012
