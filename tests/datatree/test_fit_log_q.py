"""``log_q`` in the tree of a fit: the density of what is drawn, for every guide, curvature and kind of unknown.

A draw of a Gaussian posterior is linear in the standard normals that it is made of. So its covariance is read off its
draws, with unit vectors for normals; SciPy has the density of that, and the change of variables of every positive or
ordered unknown is written out by hand. Nothing of ``log_prob`` is used.
"""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import special, stats

import bll_pyro as bll
from bll_pyro.datatree.row_evaluation import in_double
from bll_pyro.gaussian import centred, kronecker, latents, weights
from bll_pyro.inference.rows import DesignRows
from bll_pyro.inference.start import warm_start
from bll_pyro.inference.svi import guide_draws
from bll_pyro.model import Model
from bll_pyro.scope import isolated

NUM_ROWS, NUM_FEATURES, NUM_DRAWS = 30, 3, 20
L, G, P = bll.likelihoods, bll.guides, bll.priors


def data(kind):
    random = np.random.default_rng(3)
    inputs = random.normal(2.0, 3.0, (NUM_ROWS, NUM_FEATURES))
    f = (inputs - 2.0) @ random.normal(0, 0.4, (NUM_FEATURES, 3))
    match kind:
        case "number":
            return inputs, 40 + 8 * f[:, 0] + random.normal(0, 3, NUM_ROWS)
        case "numbers":
            return inputs, 40 + 8 * f[:, :2] + random.normal(0, 3, (NUM_ROWS, 2))
        case "count":
            return inputs, random.poisson(np.exp(0.3 * f[:, 0] + 1))
        case "binary":
            return inputs, (f[:, 0] + random.logistic(size=NUM_ROWS) > 0).astype(int)
    return inputs, (f + random.gumbel(size=f.shape)).argmax(1)


def svi(guide):
    return bll.SVI(guide, num_epochs=30)


CASES = {
    # every Gaussian guide
    "diagonal": (L.Gaussian(), P.Normal(0.7), "number", svi(G.Diagonal())),
    "diagonal, plain axes": (L.Gaussian(), P.Normal(), "numbers", svi(G.Diagonal(principal_axes=False))),
    "block-diagonal": (L.Categorical(3), P.Normal(), "class", svi(G.BlockDiagonal())),
    "low rank": (L.Categorical(3), P.Normal(0.7), "class", svi(G.LowRank(2))),
    "full rank": (L.Gaussian(), P.Normal(0.7), "number", svi(G.FullRank())),
    "matrix-normal": (L.Categorical(3), P.Normal(0.7), "class", svi(G.MatrixNormal())),
    # every curvature, and exact inference with a Gaussian posterior
    "laplace, diagonal": (L.Bernoulli(), P.Normal(), "binary", bll.Laplace(bll.curvatures.Diagonal())),
    "laplace, kronecker": (L.Categorical(3), P.Normal(0.7), "class", bll.Laplace()),
    "laplace, full": (L.Categorical(3), P.Normal(0.7), "class", bll.Laplace(bll.curvatures.Full())),
    "exact, known noise": (L.Gaussian(noise_scale=3.0), P.Normal(0.7), "number", bll.Exact()),
    "exact, learned noise": (L.Gaussian(), P.Normal(), "numbers", bll.Exact(bll.noises.Maximized())),
    # every unknown that is not a weight
    "student-t": (L.StudentT(), P.Normal(0.7), "number", svi(G.FullRank())),
    "heteroscedastic": (L.HeteroscedasticGaussian(), P.Normal(0.7), "number", svi(G.FullRank())),
    "negative binomial": (L.NegativeBinomial(), P.Normal(0.7), "count", svi(G.Diagonal())),
    "poisson": (L.Poisson(), P.Normal(0.7), "count", svi(G.FullRank())),
    "ordinal": (L.Ordinal(3), P.Normal(0.7), "class", svi(G.FullRank())),
    "horseshoe": (L.Gaussian(), P.Horseshoe(), "number", svi(G.FullRank())),
    "spike and slab": (L.Gaussian(), P.SpikeAndSlab(slab_scale=1.0), "number", svi(G.Diagonal())),
    "hierarchical": (L.Categorical(3), P.HierarchicalNormal(per_output=True), "class", svi(G.Diagonal())),
    "laplace prior": (L.Gaussian(), P.Laplace(), "number", svi(G.FullRank())),
    "student-t prior": (L.Gaussian(), P.StudentT(), "number", svi(G.FullRank())),
    "any prior": (L.Gaussian(), P.Distribution(dist.Laplace(0.0, 0.5)), "number", svi(G.Diagonal())),
}


def linear_map(gaussian, monkeypatch):
    """Mean ``[n]`` of ``(u, vec A)``, and the factor ``[n, E]`` by which it depends on the standard normals."""
    sizes = []

    def count(shape, like, generator):
        sizes.append(int(np.prod(shape)))
        return torch.zeros(shape, dtype=like.dtype)

    def unit_vectors(shape, like, generator):
        start = sum(taken)
        taken.append(int(np.prod(shape[1:])))
        return torch.eye(shape[0], dtype=like.dtype)[:, start : start + taken[-1]].reshape(shape)

    def draw(normals, num_draws):
        for room in (weights, latents, kronecker, centred):
            if hasattr(room, "standard_normals"):
                monkeypatch.setattr(room, "standard_normals", normals)
        u, drawn = gaussian.rsample(num_draws)
        return torch.cat([u, drawn.flatten(1)], 1).numpy()

    mean, taken = draw(count, 1)[0], []
    return mean, (draw(unit_vectors, sum(sizes)) - mean).T


def free(name, value):
    """Unconstrained numbers ``[S, n]`` of a site's draws, and ``log |d value / d u|``, ``[S]``."""
    value = value.reshape(len(value), -1).astype(float)
    if name == "cutpoints":
        gaps = np.log(np.diff(value))
        return np.concatenate([value[:, :1], gaps], 1), gaps.sum(1)
    if name == "slab_prob":
        return special.logit(value), (np.log(value) + np.log1p(-value)).sum(1)
    above = value - 2.0 if name == "df" else value
    return np.log(above), np.log(above).sum(1)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.thinned(5)
def test_log_q_is_the_density_of_the_draws(case, monkeypatch):
    likelihood, prior, kind, inference = CASES[case]
    rows = data(kind)
    fit = bll.fit(bll.LastLayer(likelihood, prior=prior), rows, inference=inference)
    tree = fit.to_datatree(*rows, num_draws=NUM_DRAWS)
    posterior, rotation = tree["posterior"], fit.posterior.frame.rotation
    weight = posterior["weight"].values[0].astype(float)
    if rotation is not None:
        weight = weight @ rotation.double().numpy()
    parts = [free(name, posterior[name].values[0]) for name in fit.posterior.global_sites.priors]
    values = np.concatenate([weight, posterior["bias"].values[0][..., None]], -1).reshape(NUM_DRAWS, -1)
    values = np.concatenate([*(part for part, _ in parts), values], 1)
    mean, factor = linear_map(in_double(fit.posterior).latents, monkeypatch)
    expected = stats.multivariate_normal(mean, factor @ factor.T).logpdf(values)
    expected = expected - sum((jacobian for _, jacobian in parts), np.zeros(NUM_DRAWS))
    np.testing.assert_allclose(tree["sample_stats"]["log_q"].values[0], expected, rtol=1e-6, atol=1e-6)


def test_every_guide_and_curvature_is_in_the_table():
    tried = {type(case[-1].guide) for case in CASES.values() if isinstance(case[-1], bll.SVI)}
    members = {getattr(G, name) for name in G.__all__}
    gaussian = {cls for cls in members if isinstance(cls, type) and issubclass(cls, G.Guide)} - {
        G.Guide, G.MAP, G.Flow, G.Custom,
    }  # fmt: skip
    assert gaussian <= tried
    curvatures = {type(case[-1].curvature) for case in CASES.values() if isinstance(case[-1], bll.Laplace)}
    assert len(curvatures) == 3


FLOWS = {
    "autoregressive": G.Flow(layer=G.InverseAutoregressive()),
    "spline": G.Flow(layer=G.Spline()),
    "pyro's": G.Custom("AutoMultivariateNormal"),
}


@pytest.mark.parametrize("name", FLOWS)
def test_log_q_of_flows_by_the_jacobian_of_the_whole_map(name):
    """Base density and the determinant of one big Jacobian, from the base draw to the values of the sites."""
    inputs, targets = (torch.as_tensor(value) for value in data("number"))
    layer = bll.LastLayer(L.Gaussian(), prior=P.Normal(0.7))
    with isolated(0, dtype=torch.float64):
        model = Model(layer, NUM_FEATURES)
        arguments = (inputs, targets[:, None], NUM_ROWS)
        rows = bll.Features.from_tensors(inputs, targets)
        frame = bll.fit(layer, rows, inference=bll.Exact()).posterior.frame
        start = starting_point(layer, model, rows, frame)
        guide = FLOWS[name].build(model, start)
        guide(*arguments)
        with torch.no_grad():
            for parameter in guide.parameters():  # away from the identity
                parameter += 0.1 * torch.randn_like(parameter)
        sizes = {"noise_scale": 1, "weight": NUM_FEATURES, "bias": 1}
        draws, log_q = guide_draws.draw_guide(guide, arguments, sizes, 4)
        posterior = guide.get_posterior()
        base, transform = parts_of_map(posterior)
        for index in range(4):
            values = torch.cat(
                [draws["noise_scale"][0, index], draws["weight"][0, index].flatten(), draws["bias"][0, index]]
            )
            latent = torch.cat([values[:1].log(), values[1:]])
            z = transform.inv(latent)
            jacobian = torch.autograd.functional.jacobian(
                lambda z: torch.cat([transform(z)[:1].exp(), transform(z)[1:]]), z
            )
            expected = base.log_prob(z).sum() - torch.linalg.slogdet(jacobian).logabsdet
            torch.testing.assert_close(log_q[0, index], expected.detach(), rtol=1e-6, atol=1e-6)


def starting_point(layer, model, rows, frame):
    standard = DesignRows(rows, layer.likelihood.check_targets(rows.targets), frame, "cpu")
    return warm_start(layer, model.global_sites, standard, model.num_outputs, {})


def parts_of_map(posterior):
    """Standard normals, and the map from them."""
    if isinstance(posterior, dist.MultivariateNormal):
        affine = dist.transforms.LowerCholeskyAffine(posterior.loc.detach(), posterior.scale_tril.detach())
        return torch.distributions.Normal(0.0, 1.0), affine
    return posterior.base_dist, torch.distributions.ComposeTransform(posterior.transforms)


def test_a_guide_with_numbers_that_are_not_integrated_out_has_no_density():
    def guide(features, targets, num_rows):
        shift = pyro.sample("shift", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})
        pyro.sample("weight", dist.Normal(shift.expand(1, NUM_FEATURES), 0.1).to_event(2))
        pyro.sample("bias", dist.Normal(torch.zeros(1), 0.1).to_event(1))

    rows = data("binary")
    fit = bll.fit(bll.LastLayer(L.Bernoulli()), rows, inference=bll.SVI(G.Custom(guide), num_epochs=2))
    assert fit.posterior.log_q is None
