"""The density of every prior, and of its hyper-parameters, against SciPy."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from prior_cases import COVARIANCE, ELEMENTWISE, LOC, PRIORS, D, K, hyper_of
from pyro import poutine
from scipy import stats
from scipy.integrate import quad

import bll_pyro as bll
from bll_pyro import priors
from bll_pyro.scope import isolated

Hyper = dict[str, np.ndarray]


@pytest.fixture(autouse=True)
def double_precision() -> Iterator[None]:
    """Constants are made in torch's default precision, as in a fit on double-precision features."""
    with isolated(dtype=torch.float64):
        yield


def horseshoe_log_prob(weight: float, tau: float, c2: float) -> float:
    """The local scale integrated out: ``sech(log lambda) / pi`` is the density of ``log lambda``."""

    def integrand(log_lambda: float) -> float:
        variance = 1 / (1 / c2 + np.exp(-2 * log_lambda) / tau**2)
        return stats.norm.pdf(weight, 0, np.sqrt(variance)) / np.cosh(log_lambda) / np.pi

    peak = np.log(abs(weight) / tau)
    total = sum(quad(integrand, a, b, limit=500, epsabs=0)[0] for a, b in ((-40, peak), (peak, 40)))
    return float(np.log(total))


def scipy_log_prob(prior: Any, weight: np.ndarray, hyper: Hyper) -> np.ndarray:
    """Log density of every weight ``[K, D]``, from SciPy alone."""
    loc = 0.0 if getattr(prior, "loc", None) is None else prior.loc.double().numpy()
    match prior:
        case priors.Normal():
            tau = hyper.get("tau", prior.scale)
            return stats.norm.logpdf(weight, loc, tau[:, None] if prior.per_output else tau)
        case priors.Laplace():
            given = stats.laplace(loc, hyper.get("tau", prior.scale) / np.sqrt(2))
            np.testing.assert_allclose(given.std(), hyper.get("tau", prior.scale), rtol=1e-12)
            return given.logpdf(weight)
        case priors.StudentT():
            std = hyper.get("tau", prior.scale)
            given = stats.t(prior.df, loc, std * np.sqrt((prior.df - 2) / prior.df))
            np.testing.assert_allclose(given.std(), std, rtol=1e-12)
            return given.logpdf(weight)
        case priors.HierarchicalNormal():
            groups = (K if prior.per_output else 1, D if prior.per_feature else 1)
            return stats.norm.logpdf(weight, loc, hyper["tau"].reshape(groups))
        case priors.Horseshoe():
            each = [horseshoe_log_prob(w, hyper["tau"], hyper["c2"]) for w in (weight - loc).flat]
            return np.reshape(each, weight.shape)
        case priors.SpikeAndSlab():
            prob, slab = hyper.get("slab_prob", prior.slab_prob), hyper.get("slab_scale", prior.slab_scale)
            spike = 0.1 / np.sqrt(D) if prior.spike_scale is None else prior.spike_scale
            free = prob * stats.norm.pdf(weight, loc, slab)
            return np.log(free + (1 - prob) * stats.norm.pdf(weight, loc, spike))
        case _:
            known = {
                "any, Normal": stats.norm(0.2, 0.5),
                "any, heavy tails": stats.t(1.5, 0, [0.2, 0.5, 1.0]),
                "any, one for each": stats.laplace(LOC.double().numpy(), 0.5),
            }
            (name,) = [name for name in known if PRIORS[name] is prior]
            return known[name].logpdf(weight)


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_density_given_hyper_parameters(name: str) -> None:
    prior = ELEMENTWISE[name]
    random = torch.Generator().manual_seed(1)
    for size in (0.01, 0.3, 3.0):
        weight = size * torch.randn(K, D, generator=random, dtype=torch.float64)
        for seed in range(3):
            hyper = hyper_of(prior, seed)
            given = prior.distribution((K, D), **hyper)
            assert tuple(given.batch_shape) == (K, D)
            expected = scipy_log_prob(prior, weight.numpy(), {k: v.numpy() for k, v in hyper.items()})
            # the horseshoe's local scale is summed over nodes, the others are formulas in closed form
            tolerance = 2e-4 if isinstance(prior, priors.Horseshoe) else 2e-6
            np.testing.assert_allclose(
                given.log_prob(weight).numpy(), expected, rtol=tolerance, atol=tolerance
            )


@pytest.mark.parametrize("name", [n for n in PRIORS if n.startswith(("horseshoe", "spike", "student"))])
def test_density_of_the_square_is_the_same(name: str) -> None:
    prior, hyper = PRIORS[name], hyper_of(PRIORS[name])
    assert isinstance(prior, priors.ScaleMixturePrior)
    weight = torch.randn(K, D, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    centre = 0.0 if prior.loc is None else prior.loc.double()
    actual = prior.log_prob_of_square((weight - centre).square(), **hyper)
    torch.testing.assert_close(
        actual, prior.distribution((K, D), **hyper).log_prob(weight), rtol=1e-9, atol=1e-9
    )


HYPER_PRIORS = {
    "hierarchical": {"tau": stats.halfcauchy(scale=1 / np.sqrt(D))},
    "hierarchical, per output": {"tau": stats.halfnorm()},
    "hierarchical, per feature": {"tau": stats.halfcauchy(scale=1 / np.sqrt(D))},
    "hierarchical, both": {"tau": stats.lognorm(0.5, scale=np.exp(-1))},
    "horseshoe": {"tau": stats.halfcauchy(), "c2": stats.invgamma(2, scale=8)},
    # tau_0 = 1 / (3 - 1) * 0.1, and c^2 ~ InverseGamma(5 / 2, 5 * 1.5^2 / 2)
    "horseshoe, given": {"tau": stats.halfcauchy(scale=0.05), "c2": stats.invgamma(2.5, scale=5.625)},
    "spike and slab": {"slab_prob": stats.uniform(), "slab_scale": stats.halfcauchy()},
    "spike and slab, own priors": {"slab_prob": stats.beta(2, 5), "slab_scale": stats.lognorm(0.3)},
}
SHAPES = {"hierarchical, per output": (K,), "hierarchical, per feature": (D,), "hierarchical, both": (K, D)}


@pytest.mark.parametrize("name", PRIORS)
def test_program(name: str) -> None:
    """Sites, shapes and log densities of the Pyro program."""
    prior = PRIORS[name]
    layer = bll.LastLayer(bll.likelihoods.Categorical(K), prior=prior, bias=False)
    features = torch.randn(5, D, generator=torch.Generator().manual_seed(3))
    with isolated(4):
        trace = poutine.trace(bll.Model(layer, D)).get_trace(features, torch.tensor([0, 1, 1, 0, 1]))
        trace.compute_log_prob()
    sites = {
        n: node for n, node in trace.nodes.items() if node["type"] == "sample" and n not in ("data", "y")
    }
    expected = HYPER_PRIORS.get(name, {})
    assert list(sites) == [*expected, "weight"]
    assert sites["weight"]["value"].shape == (K, D)
    values = {n: node["value"].detach().double().numpy() for n, node in sites.items()}
    for site, given in expected.items():
        assert values[site].shape == SHAPES.get(name, ())
        assert float(sites[site]["log_prob_sum"]) == pytest.approx(
            given.logpdf(values[site]).sum(), rel=1e-5, abs=1e-5
        )
    learned = {n: value.double().numpy() for n, value in prior.learned_start((K, D)).items()}
    assert all(np.all(value == 1) for value in learned.values())
    if prior.has_density:
        log_prob = scipy_log_prob(prior, values["weight"], values | learned).sum()
    else:
        log_prob = stats.multivariate_normal(cov=COVARIANCE.numpy()).logpdf(values["weight"]).sum()
    tolerance = 2e-3 if isinstance(prior, priors.Horseshoe) else 1e-5
    assert float(sites["weight"]["log_prob_sum"].detach()) == pytest.approx(
        log_prob, rel=tolerance, abs=tolerance
    )


def test_draws_have_the_density() -> None:
    """Mixtures draw from what they score: quantiles of draws against the distribution function by quadrature."""
    num_draws = 20_000
    for name in ("horseshoe", "spike and slab, given"):
        prior, hyper = PRIORS[name], {k: v.float() for k, v in hyper_of(PRIORS[name]).items()}
        given = prior.distribution((K, D), **hyper)
        with isolated(5):
            drawn = given.sample((num_draws,))[:, 1, 2].sort().values
        # Kolmogorov's distance exceeds 1.95 / sqrt(n) with a probability of 1 in 1,000
        distance = (
            given.cdf(drawn[:, None, None].expand(-1, K, D))[:, 1, 2] - torch.arange(num_draws) / num_draws
        ).abs()
        assert float(distance.max()) < 1.95 / num_draws**0.5 + 1 / num_draws


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_isotropic_priors_and_no_others_stay_under_rotation(name: str) -> None:
    prior, hyper = ELEMENTWISE[name], hyper_of(ELEMENTWISE[name])
    random = torch.Generator().manual_seed(6)
    weight = torch.randn(K, D, generator=random, dtype=torch.float64)
    rotation = torch.linalg.qr(torch.randn(D, D, generator=random, dtype=torch.float64)).Q
    before = prior.distribution((K, D), **hyper).log_prob(weight).sum()
    after = prior.distribution((K, D), **hyper).log_prob(weight @ rotation).sum()
    assert prior.isotropic == bool((before - after).abs() < 1e-9)
    if prior.can_rotate:
        turned = prior.rotated(rotation).distribution((K, D), **hyper).log_prob(weight @ rotation).sum()
        torch.testing.assert_close(turned, before, rtol=1e-9, atol=1e-9)
    else:
        with pytest.raises(ValueError, match="expected an isotropic prior"):
            prior.rotated(rotation)
