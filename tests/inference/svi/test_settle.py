"""The last rounds of a fit reach the optimum: where columns are nearly the same, where classes are rare, for every guide."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

import bll_pyro as bll
from bll_pyro.gaussian.precision import expected_quadratic
from bll_pyro.guides import BlockDiagonal, Diagonal, FullRank, Guide, LowRank, MatrixNormal, Start
from bll_pyro.model import Model
from bll_pyro.scope import generator

L, P = bll.likelihoods, bll.priors


def correlated(seed: int, condition: float) -> tuple[np.ndarray, np.ndarray]:
    """100 rows of 5 columns whose singular values fall by ``condition``, and targets with noise of 1."""
    random = np.random.default_rng(seed)
    axes = np.linalg.qr(random.normal(size=(5, 5)))[0]
    features = 3 * random.normal(size=(100, 5)) * np.geomspace(1, 1 / condition, 5) @ axes.T
    return features, features @ random.normal(size=5) + 0.5 + random.normal(size=100)


def moments(fit: bll.Fit) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of weights, bias and noise."""
    draws = fit.posterior.sample(20_000, seed=1)
    flat = np.concatenate([v.flatten(0, 1).reshape(20_000, -1).numpy() for _, v in sorted(draws.items())], 1)
    return flat.mean(0), flat.std(0)


def check_agreement(seed: int, condition: float, guide: Guide, layer: bll.LastLayer) -> None:
    data = correlated(seed, condition)
    fit, exact = bll.fit(layer, data, inference=bll.SVI(guide)), bll.fit(layer, data, inference=bll.Exact())
    (mean, scale), (best, width) = moments(fit), moments(exact)
    assert fit.trace.converged
    assert np.abs((mean - best) / width).max() < 0.1
    assert np.abs(scale / width - 1).max() < 0.1


GUIDES = [FullRank(), LowRank(2), MatrixNormal()]


@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: type(guide).__name__)
def test_correlated_columns(guide: Guide) -> None:
    """Means and scales of weights and noise are those of the exact posterior, which steps on noisy gradients had missed by 0.7."""
    layer = bll.LastLayer(L.Gaussian(), P.Normal(100.0), standardize=False)
    check_agreement(3, 1e4, guide, layer)


@pytest.mark.slow
@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: type(guide).__name__)
@pytest.mark.parametrize("condition", [10.0, 1e2, 1e3, 1e4])
def test_correlated_columns_of_many_sets(guide: Guide, condition: float) -> None:
    for seed in range(5):
        check_agreement(seed, condition, guide, bll.LastLayer(L.Gaussian(), P.Normal(1.0)))


def test_a_guide_that_cannot_hold_the_correlations_says_so() -> None:
    layer = bll.LastLayer(L.Gaussian(), P.Normal(1.0))
    with pytest.warns(RuntimeWarning, match="cannot hold the correlations"):
        fit = bll.fit(layer, correlated(3, 1e3), inference=bll.SVI(LowRank(1, principal_axes=False)))
    assert not fit.trace.converged


@pytest.mark.parametrize("num_positive", [2, 20])
def test_rare_labels(num_positive: int) -> None:
    """The sum of the probabilities is that of the optimum, whatever is in which batch.

    The optimum of the ELBO over independent Normals of weight and bias is found by SciPy, with Gauss-Hermite quadrature over
    the output of each row. 3% are 0.04 posterior standard deviations of the bias.
    """
    random = np.random.default_rng(0)
    x = random.normal(size=20_000)
    y = np.zeros(len(x))
    y[np.argsort(-(x + random.gumbel(size=len(x))))[:num_positive]] = 1
    h = (x - x.mean()) / x.std()
    nodes, weights = np.polynomial.hermite_e.hermegauss(24)
    weights = weights / weights.sum()

    def outputs(free: np.ndarray) -> np.ndarray:
        spread = np.sqrt(np.exp(2 * free[2]) * h**2 + np.exp(2 * free[3]))
        return np.asarray((free[0] * h + free[1])[:, None] + spread[:, None] * nodes)

    def loss(free: np.ndarray) -> float:
        f, square = outputs(free), free[:2] ** 2 + np.exp(2 * free[2:])
        fit = y @ (f @ weights) - (np.logaddexp(0, f) @ weights).sum()
        return float(-fit + 0.5 * square[0] + 0.5 * square[1] / 100 - free[2:].sum())

    start = np.array([1.0, np.log(num_positive / len(x)), -1.0, -1.0])
    best = minimize(loss, start, method="BFGS", options={"gtol": 1e-3}).x
    expected = float(((1 / (1 + np.exp(-outputs(best)))) @ weights).sum())
    layer = bll.LastLayer(L.Bernoulli(), P.Normal(1.0))
    for seed in range(2):
        fit = bll.fit(layer, (x[:, None].astype("float32"), y), seed=seed)
        assert float(fit.predict(x[:, None].astype("float32")).probs.sum()) == pytest.approx(
            expected, rel=0.03
        )


@pytest.mark.parametrize(
    "guide",
    [Diagonal(), BlockDiagonal(), FullRank(), LowRank(2), MatrixNormal()],
    ids=lambda g: type(g).__name__,
)
def test_the_covariance_is_the_nearest_of_the_family(guide: Guide) -> None:
    """It maximises ``H[q] - tr(P S) / 2``: its gradient in every free number is zero, and in closed forms it is known."""
    num_outputs, num_features, num = 2, 3, 2
    random = generator(1)
    model = Model(bll.LastLayer(L.Gaussian()), num_features, (num_outputs,))
    size = num + num_outputs * (num_features + 1)
    start = Start(
        torch.zeros(num),
        torch.zeros(num_outputs, num_features + 1),
        0.3 * torch.ones(num_outputs, num_features + 1),
        3,
    )
    built = guide.build(model, start)
    root = torch.randn(size, size, generator=random, dtype=torch.float64)
    precision = root @ root.mT + 3 * torch.eye(size)
    with torch.no_grad():
        for _ in range(3):
            built.fit_covariance(precision)
    latents = built.latents()
    order = torch.tensor([0, 1, 2, 6, 3, 4, 5, 7]) + num  # of the rows of A in Pyro's latent vector
    own = precision[order[:, None], order]
    matrix = own.view(num_outputs, num_features + 1, num_outputs, num_features + 1).float()
    weights = latents.weights
    value = weights.entropy() - 0.5 * expected_quadratic(matrix, weights, weights.loc.detach())
    scale = latents.marginal_scale().detach().double().flatten()
    if isinstance(guide, FullRank):
        torch.testing.assert_close(scale, precision.inverse().diagonal()[order].sqrt(), rtol=1e-3, atol=0)
    else:
        within = precision.diagonal()[:num].rsqrt()
        torch.testing.assert_close(latents.globals_scale().detach().double(), within, rtol=1e-4, atol=0)
        free = [p for name, p in built.named_parameters() if "loc" not in name and "globals" not in name]
        for slope in torch.autograd.grad(value, free, allow_unused=True):
            assert slope is None or float(slope.abs().max()) < 0.02
    if isinstance(guide, BlockDiagonal):
        torch.testing.assert_close(scale[:4], own[:4, :4].inverse().diagonal().sqrt(), rtol=5e-3, atol=0)
