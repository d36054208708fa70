"""Densities in the tree of a fit against SciPy: every likelihood, every prior, in the user's units."""

import dataclasses

import numpy as np
import pyro.distributions as dist
import pytest
import torch
import yaml
from scipy import special, stats

import bll_pyro as bll
from bll_pyro.likelihoods import Likelihood
from bll_pyro.priors import Prior

NUM_ROWS, NUM_FEATURES, NUM_DRAWS = 30, 4, 25
QUICK = bll.SVI(num_epochs=20)


def features(seed=0):
    random = np.random.default_rng(seed)
    return random.normal(2.0, 3.0, (NUM_ROWS, NUM_FEATURES)) * [1.0, 2.0, 0.7, 1.5]


def signal(num_outputs=1, seed=1):
    random = np.random.default_rng(seed)
    return (features() - 2.0) @ random.normal(0, 0.3, (NUM_FEATURES, num_outputs))


def outputs_of(tree):
    """Outputs ``[S, N, K]`` from the tree's own weights and constants."""
    constants, posterior = tree["constant_data"], tree["posterior"]
    rows = (features() - constants["feature_center"].values) / constants["feature_scale"].values
    return (
        np.einsum("nd,skd->snk", rows, posterior["weight"].values[0]) + posterior["bias"].values[0][:, None]
    )


def in_units(tree, loc, scale):
    """Location and scale of the targets in the user's units."""
    center, spread = (tree["constant_data"][f"target_{name}"].values for name in ("center", "scale"))
    return loc * spread + center, scale * spread


def site(tree, name):
    """Draws of a noise site that broadcast against ``[S, N, T]``."""
    values = tree["posterior"][name].values[0]
    return values[:, None, None] if values.ndim == 1 else values[:, None]


def gaussian(tree, f, y):
    scale = site(tree, "noise_scale") if "noise_scale" in tree["posterior"] else None
    if scale is None:
        loc, _ = in_units(tree, f, 1.0)
        return stats.norm(loc, 0.5).logpdf(y)
    return stats.norm(*in_units(tree, f, scale)).logpdf(y)


def heteroscedastic(tree, f, y):
    num_targets = f.shape[-1] // 2
    return stats.norm(*in_units(tree, f[..., :num_targets], np.exp(f[..., num_targets:]))).logpdf(y)


def multivariate_gaussian(tree, f, y):
    loc, scale = in_units(tree, f, site(tree, "noise_scale"))
    if f.shape[-1] == 1:
        return stats.norm(loc, scale).logpdf(y)
    found = np.empty(f.shape[:2])
    for s, rho in enumerate(hyper(tree, "partial_correlation")[:, 0]):  # of two targets, the correlation
        covariance = np.outer(scale[s], scale[s]) * np.array([[1, rho], [rho, 1]])
        found[s] = stats.multivariate_normal(np.zeros(2), covariance).logpdf(y - loc[s])
    return found


def student_t(tree, f, y):
    loc, scale = in_units(tree, f, site(tree, "noise_scale"))
    return stats.t(site(tree, "df"), loc, scale).logpdf(y)


def categorical(tree, f, y):
    return np.take_along_axis(special.log_softmax(f / 1.5, -1), y[None, :, None].repeat(len(f), 0), -1)


def ordinal(tree, f, y):
    cuts = tree["posterior"]["cutpoints"].values[0]
    edges = np.concatenate([np.full((len(cuts), 1), -np.inf), cuts, np.full((len(cuts), 1), np.inf)], 1)
    below = special.expit(edges[:, None] - f)
    return np.log(np.take_along_axis(np.diff(below), y[None, :, None].repeat(len(f), 0), -1))


def negative_binomial(tree, f, y):
    size = site(tree, "concentration")
    return stats.nbinom(size, size / (size + np.exp(f))).logpmf(y)


def targets(kind, num_targets):
    random = np.random.default_rng(2)
    f = signal(max(num_targets, 3))
    if kind == "real":
        y = 40.0 + 8.0 * f[:, :num_targets] + random.normal(0, 3, (NUM_ROWS, num_targets))
    elif kind == "binary":
        y = (f[:, :num_targets] + random.logistic(size=(NUM_ROWS, num_targets)) > 0).astype(int)
    elif kind == "count":
        y = random.poisson(np.exp(0.3 * f[:, :num_targets] + 1))
    else:
        return (2 * special.expit(f[:, 0])).round().astype(int)
    return y[:, 0] if num_targets == 1 else y


L = bll.likelihoods
LIKELIHOODS = {
    "gaussian": (L.Gaussian(), "real", gaussian),
    "gaussian, known noise": (L.Gaussian(noise_scale=0.5), "real", gaussian),
    "heteroscedastic": (L.HeteroscedasticGaussian(), "real", heteroscedastic),
    "multivariate gaussian": (L.MultivariateGaussian(concentration=2.0), "real", multivariate_gaussian),
    "student-t": (L.StudentT(), "real", student_t),
    "categorical": (L.Categorical(3, temperature=1.5), "class", categorical),
    "bernoulli": (
        L.Bernoulli(),
        "binary",
        lambda tree, f, y: stats.bernoulli(special.expit(f)).logpmf(y.astype(int)),
    ),
    "poisson": (L.Poisson(), "count", lambda tree, f, y: stats.poisson(np.exp(f)).logpmf(y)),
    "negative binomial": (L.NegativeBinomial(), "count", negative_binomial),
    "ordinal": (L.Ordinal(3), "class", ordinal),
}


def members(room, family):
    """Classes of a family that a user can declare, as the room lists them."""
    found = [getattr(room, name) for name in room.__all__]
    return {cls for cls in found if issubclass(cls, family) and dataclasses.is_dataclass(cls)}


def test_every_likelihood_is_in_the_table():
    assert {type(likelihood) for likelihood, _, _ in LIKELIHOODS.values()} == members(L, Likelihood)


def cutpoints(tree):
    """Independent Normals on the first cutpoint and on the logarithms of the gaps; the tree has the cutpoints."""
    cuts = hyper(tree, "cutpoints").astype(float)
    gaps = np.diff(cuts)
    centre = special.logit(np.arange(1, 3) / 3)
    start = np.concatenate([centre[:1], np.log(np.diff(centre))])
    free = np.concatenate([cuts[:, :1], np.log(gaps)], 1)
    return stats.norm(start, L.Ordinal(3).cutpoint_scale).logpdf(free).sum(1) - np.log(gaps).sum(1)


NOISES = {  # log prior of each site of noise
    "noise_scale": lambda tree: stats.halfnorm().logpdf(hyper(tree, "noise_scale")),
    "df": lambda tree: stats.gamma(2.0, loc=2.0, scale=10.0).logpdf(hyper(tree, "df")),
    "concentration": lambda tree: stats.lognorm(1.5, scale=np.e).logpdf(hyper(tree, "concentration")),
    "cutpoints": cutpoints,
    "partial_correlation": lambda tree: stats.beta(2.0, 2.0, -1, 2).logpdf(
        hyper(tree, "partial_correlation")
    ),
}
CASES = [(name, 1) for name in LIKELIHOODS]
CASES += [(name, 2) for name, (_, kind, _) in LIKELIHOODS.items() if kind != "class"]


@pytest.mark.parametrize(("name", "num_targets"), CASES)
@pytest.mark.thinned(3)
def test_log_likelihood_equals_scipy(name, num_targets):
    likelihood, kind, by_hand = LIKELIHOODS[name]
    if likelihood == L.Gaussian(noise_scale=0.5) and num_targets > 1:
        likelihood = L.Gaussian(noise_scale=(0.5, 0.5))
    y = targets(kind, num_targets)
    layer = bll.LastLayer(likelihood, prior=bll.priors.Normal(0.7))
    tree = bll.fit(layer, (features(), y), inference=QUICK).to_datatree(features(), y, num_draws=NUM_DRAWS)
    rows = y.reshape(NUM_ROWS, -1) if kind != "class" else y
    expected = by_hand(tree, outputs_of(tree), rows)
    found = tree["log_likelihood"]["y"].values[0]
    by_target = num_targets > 1 and likelihood.independent_targets
    assert found.shape == ((NUM_DRAWS, NUM_ROWS, 2) if by_target else (NUM_DRAWS, NUM_ROWS))
    np.testing.assert_allclose(found.reshape(expected.shape), expected, rtol=1e-6, atol=1e-6)
    assert np.array_equal(tree["observed_data"]["y"].values, y)
    posterior, log_prior = tree["posterior"], tree["log_prior"]
    by_site = {k: summed(NOISES[k](tree)) for k in posterior.data_vars if k not in ("weight", "bias")}
    by_site["weight"] = summed(stats.norm(0, 0.7).logpdf(posterior["weight"].values[0]))
    by_site["bias"] = summed(stats.norm(0, 10.0).logpdf(posterior["bias"].values[0]))
    assert set(log_prior.data_vars) == set(by_site)
    for key, value in by_site.items():
        np.testing.assert_allclose(log_prior[key].values[0], value, rtol=1e-6, atol=1e-6, err_msg=key)
    joint = summed(expected) + sum(by_site.values())
    np.testing.assert_allclose(tree["sample_stats"]["log_p"].values[0], joint, rtol=1e-6, atol=1e-6)


def learned(tree, name):
    return np.asarray(yaml.safe_load(tree.attrs["learned"])[name])


def hyper(tree, name):
    """Draws of a hyper-parameter ``[S, *event]``."""
    return tree["posterior"][name].values[0]


def horseshoe(tree, w):
    nodes = np.linspace(-12, 10, 45)
    share = 1 / np.cosh(nodes)
    tau, c2 = hyper(tree, "tau")[:, None], hyper(tree, "c2")[:, None]
    variance = 1 / (1 / c2 + 1 / (tau * np.exp(nodes)) ** 2)
    density = stats.norm(0, np.sqrt(variance)[:, None, None]).pdf(w[..., None]) @ (share / share.sum())
    return {
        "weight": np.log(density),
        "tau": stats.halfcauchy(scale=0.3).logpdf(hyper(tree, "tau")),
        "c2": stats.invgamma(2.0, scale=8.0).logpdf(hyper(tree, "c2")),
    }


def spike_and_slab(tree, w):
    prob = hyper(tree, "slab_prob")
    part = prob[:, None, None]
    density = (1 - part) * stats.norm(0, 0.05).pdf(w) + part * stats.norm(0, 1.0).pdf(w)
    return {"weight": np.log(density), "slab_prob": stats.beta(1, 1).logpdf(prob)}


def by_output(tree, w):
    tau = hyper(tree, "tau")
    return {
        "weight": stats.norm(0, tau[:, :, None]).logpdf(w),
        "tau": stats.halfcauchy(scale=0.5).logpdf(tau),
    }


def by_feature(tree, w):
    tau = hyper(tree, "tau")
    return {"weight": stats.norm(0, tau[:, None, :]).logpdf(w), "tau": stats.halfnorm(0, 2.0).logpdf(tau)}


def multivariate(tree, w):
    return {"weight": stats.multivariate_normal(np.zeros(NUM_FEATURES), COVARIANCE).logpdf(w)}


COVARIANCE = np.eye(NUM_FEATURES) * 0.5 + 0.2
P = bll.priors
PRIORS = {
    "normal": (P.Normal(0.7), lambda tree, w: {"weight": stats.norm(0, 0.7).logpdf(w)}),
    "normal, learned": (
        P.Normal(),
        lambda tree, w: {"weight": stats.norm(0, learned(tree, "tau")).logpdf(w)},
    ),
    "normal, by output": (
        P.Normal(per_output=True),
        lambda tree, w: {"weight": stats.norm(0, learned(tree, "tau")[:, None]).logpdf(w)},
    ),
    "normal, off centre": (
        P.Normal(0.7, loc=torch.full((2, NUM_FEATURES), 0.3)),
        lambda tree, w: {"weight": stats.norm(np.float32(0.3), 0.7).logpdf(w)},
    ),
    "laplace": (P.Laplace(0.7), lambda tree, w: {"weight": stats.laplace(0, 0.7 / np.sqrt(2)).logpdf(w)}),
    "student-t": (
        P.StudentT(df=5.0, scale=0.7),
        lambda tree, w: {"weight": stats.t(5, 0, 0.7 * np.sqrt(3 / 5)).logpdf(w)},
    ),
    "horseshoe": (P.Horseshoe(global_scale=0.3), horseshoe),
    "hierarchical, by output": (P.HierarchicalNormal(per_output=True), by_output),
    "hierarchical, by feature": (
        P.HierarchicalNormal(dist.HalfNormal(2.0), per_feature=True),
        by_feature,
    ),
    "student-t, learned": (
        P.StudentT(),
        lambda tree, w: {"weight": stats.t(4, 0, learned(tree, "tau") * np.sqrt(2 / 4)).logpdf(w)},
    ),
    "laplace, learned": (
        P.Laplace(),
        lambda tree, w: {"weight": stats.laplace(0, learned(tree, "tau") / np.sqrt(2)).logpdf(w)},
    ),
    "spike and slab": (P.SpikeAndSlab(slab_scale=1.0), spike_and_slab),
    "any distribution": (
        P.Distribution(dist.Laplace(0.0, 0.5)),
        lambda tree, w: {"weight": stats.laplace(0, 0.5).logpdf(w)},
    ),
    "rows together": (
        P.Distribution(
            dist.MultivariateNormal(torch.zeros(NUM_FEATURES), torch.as_tensor(COVARIANCE).float())
        ),
        multivariate,
    ),
}


def test_every_prior_is_in_the_table():
    with_own_test = {P.Posterior}
    assert {type(prior) for prior, _ in PRIORS.values()} | with_own_test == members(P, Prior)


def summed(values):
    return values.reshape(len(values), -1).sum(1)


@pytest.mark.parametrize("name", PRIORS)
@pytest.mark.thinned(3)
def test_log_prior_and_joint_equal_scipy(name):
    prior, by_hand = PRIORS[name]
    y = targets("real", 2)
    layer = bll.LastLayer(L.Gaussian(noise_scale=(4.0, 2.0)), prior=prior, bias_scale=3.0)
    fit = bll.fit(layer, (features(), y), inference=QUICK)
    tree = fit.to_datatree((features(), y), num_draws=NUM_DRAWS)
    expected = {k: summed(v) for k, v in by_hand(tree, tree["posterior"]["weight"].values[0]).items()}
    expected["bias"] = summed(stats.norm(0, 3.0).logpdf(tree["posterior"]["bias"].values[0]))
    assert set(tree["log_prior"].data_vars) == set(expected)
    for key, value in expected.items():
        np.testing.assert_allclose(tree["log_prior"][key].values[0], value, rtol=1e-6, atol=1e-6)
    loc, _ = in_units(tree, outputs_of(tree), 1.0)
    joint = stats.norm(loc, [4.0, 2.0]).logpdf(y).sum((1, 2)) + sum(expected.values())
    np.testing.assert_allclose(tree["sample_stats"]["log_p"].values[0], joint, rtol=1e-6)


def test_the_posterior_of_earlier_rows_as_a_prior():
    """Bayes' rule in one line: log p of the second fit is log q of the first plus the new rows' log likelihood."""
    y = targets("real", 1)
    known = L.Gaussian(noise_scale=2.0)
    first = bll.fit(bll.LastLayer(known, prior=P.Normal(0.7)), (features(), y), inference=bll.Exact())
    second = bll.fit(
        bll.LastLayer(known, prior=first.as_prior()), (features(3), y + 1), inference=bll.Exact()
    )
    tree = second.to_datatree(features(3), y + 1, num_draws=NUM_DRAWS)
    draws = second.posterior.sample(NUM_DRAWS, 0)
    expected = first.posterior.log_prob(draws).numpy() + tree["log_likelihood"]["y"].values.sum(-1)
    np.testing.assert_allclose(tree["sample_stats"]["log_p"].values, expected, rtol=1e-6)
    difference = tree["sample_stats"]["log_p"] - tree["sample_stats"]["log_q"]
    np.testing.assert_allclose(
        difference.values, float(difference[0, 0]), atol=1e-6
    )  # the evidence, at every draw


@pytest.mark.parametrize(
    "noise", [bll.noises.Integrated(), bll.noises.Conjugate(), bll.noises.Maximized()], ids=str
)
def test_exact_inference_knows_its_evidence_at_every_draw(noise):
    y = targets("real", 2)
    layer = bll.LastLayer(L.Gaussian(), prior=P.Normal(0.7))
    fit = bll.fit(layer, (features(), y), inference=bll.Exact(noise))
    stats_ = fit.to_datatree(features(), y, num_draws=NUM_DRAWS)["sample_stats"]
    np.testing.assert_allclose((stats_["log_p"] - stats_["log_q"]).values, fit.log_evidence, atol=1e-5)
