"""The last rounds of a fit reach the optimum: where columns are nearly the same, where classes are rare, for every guide."""

from functools import partial

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

import bll_pyro as bll
from bll_pyro.gaussian.precision import expected_quadratic
from bll_pyro.guides import BlockDiagonal, Diagonal, FullRank, Guide, LowRank, MatrixNormal, Start
from bll_pyro.model import Model
from bll_pyro.scope import generator

plain_fit = partial(bll.fit, calibration=None)  # predictions of the posterior itself


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


def check_agreement(
    seed: int, condition: float, inference: bll.SVI | bll.Laplace, layer: bll.LastLayer
) -> None:
    data = correlated(seed, condition)
    fit, exact = plain_fit(layer, data, inference=inference), plain_fit(layer, data, inference=bll.Exact())
    (mean, scale), (best, width) = moments(fit), moments(exact)
    assert fit.trace.converged
    assert np.abs((mean - best) / width).max() < 0.1
    assert np.abs(scale / width - 1).max() < 0.1


INFERENCES = {
    "FullRank": bll.SVI(FullRank()),
    "LowRank": bll.SVI(LowRank(2)),
    "MatrixNormal": bll.SVI(MatrixNormal()),
    "Laplace": bll.Laplace(),
}


@pytest.mark.parametrize("name", INFERENCES)
@pytest.mark.thinned(4)
def test_correlated_columns(name: str) -> None:
    """Means and scales of weights and noise are those of the exact posterior, which steps on noisy gradients had missed by 0.7."""
    layer = bll.LastLayer(L.Gaussian(), P.Normal(100.0), standardize=False)
    check_agreement(3, 1e4, INFERENCES[name], layer)


@pytest.mark.slow
@pytest.mark.thinned(60)
@pytest.mark.parametrize("condition", [10.0, 1e2, 1e3, 1e4])
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", INFERENCES)
def test_correlated_columns_of_many_sets(name: str, seed: int, condition: float) -> None:
    """Of the 80 cases every inference runs at conditions 1e2 and 1e4, with a seed of its own each."""
    check_agreement(seed, condition, INFERENCES[name], bll.LastLayer(L.Gaussian(), P.Normal(1.0)))


def test_a_guide_that_cannot_hold_the_correlations_says_so() -> None:
    layer = bll.LastLayer(L.Gaussian(), P.Normal(1.0))
    with pytest.warns(RuntimeWarning, match="cannot hold the correlations"):
        fit = plain_fit(layer, correlated(3, 1e3), inference=bll.SVI(LowRank(1, principal_axes=False)))
    assert not fit.trace.converged


def rare(num_positive: int, num_rows: int = 20_000) -> tuple[np.ndarray, np.ndarray]:
    """Rows of two features with few positive labels, which are more frequent where the first feature is large."""
    random = np.random.default_rng(0)
    x = random.normal(size=(num_rows, 2)).astype("float32")
    y = np.zeros(num_rows)
    y[np.argsort(-(x[:, 0] + random.gumbel(size=num_rows)))[:num_positive]] = 1
    return x, y


def sum_at_the_optimum(x: np.ndarray, y: np.ndarray) -> float:
    """Sum of the probabilities at the optimum of the ELBO over independent Normals of weights and bias, and the prior's scale.

    By SciPy, with Gauss-Hermite quadrature over the output of each row. The layer's defaults: weights ``N(0, tau^2)`` on
    standardised features in their principal axes, with tau at its optimum, and a bias ``N(0, 10^2)``.
    """
    h = (x - x.mean(0)) / x.std(0)
    h = h @ np.linalg.eigh(h.T @ h)[1]
    design = np.c_[h, np.ones(len(h))]
    nodes, weights = np.polynomial.hermite_e.hermegauss(20)
    weights = weights / weights.sum()

    def outputs(free: np.ndarray) -> np.ndarray:
        spread = np.sqrt(design**2 @ np.exp(2 * free[3:6]))
        return np.asarray((design @ free[:3])[:, None] + spread[:, None] * nodes)

    def loss(free: np.ndarray) -> float:
        f, square = outputs(free), free[:3] ** 2 + np.exp(2 * free[3:6])
        fit = y @ (f @ weights) - (np.logaddexp(0, f) @ weights).sum()
        of_prior = 0.5 * square[:2].sum() * np.exp(-2 * free[6]) + 2 * free[6] + 0.5 * square[2] / 100
        return float(-fit + of_prior - free[3:6].sum())

    start = np.array([0.5, 0.5, np.log(y.mean()), -1.0, -1.0, -1.0, 0.0])
    best = minimize(loss, start, method="BFGS", options={"gtol": 1e-3}).x
    return float(((1 / (1 + np.exp(-outputs(best)))) @ weights).sum())


@pytest.mark.slow
@pytest.mark.parametrize("num_positive", [2, 20, 200])
@pytest.mark.thinned(3)
def test_rare_labels(num_positive: int) -> None:
    """By all defaults the sum of the probabilities is that of the optimum, whatever is in which batch.

    3% are 0.04 posterior standard deviations of the bias where two labels are positive.
    """
    x, y = rare(num_positive)
    expected = sum_at_the_optimum(x, y)
    found = [
        float(plain_fit(bll.LastLayer(L.Bernoulli()), (x, y), seed=s).predict(x).probs.sum())
        for s in range(3)
    ]
    assert np.abs(np.array(found) / expected - 1).max() < 0.03


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
