"""The ELBO: a lower bound of the log evidence, unbiased over batches, the same in output space and weight space."""

import math

import pyro
import pytest
import scipy.stats
import torch
from pyro.infer import Trace_ELBO

import bll_pyro as bll
from bll_pyro.frame import Frame
from bll_pyro.guides import Start
from bll_pyro.inference.rows import DesignRows
from bll_pyro.inference.svi.objective import Objective
from bll_pyro.model import Model
from bll_pyro.scope import generator, isolated

NOISE, PRIOR_SCALE, BIAS_SCALE = 0.5, 0.8, 3.0


def regression(num_rows: int = 40, num_features: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    random = generator(0)
    mix = torch.randn(num_features, num_features, generator=random, dtype=torch.float64)
    features = torch.randn(num_rows, num_features, generator=random, dtype=torch.float64) @ mix
    weight = torch.randn(num_features, generator=random, dtype=torch.float64)
    noise = NOISE * torch.randn(num_rows, generator=random, dtype=torch.float64)
    return features, features @ weight + 0.7 + noise


def conjugate_layer() -> bll.LastLayer:
    return bll.LastLayer(
        likelihood=bll.likelihoods.Gaussian(noise_scale=NOISE),
        prior=bll.priors.Normal(PRIOR_SCALE),
        bias_scale=BIAS_SCALE,
        standardize=False,
    )


def log_evidence(features: torch.Tensor, targets: torch.Tensor) -> float:
    """Brute force: the marginal distribution of all targets is one multivariate normal."""
    rows = len(features)
    covariance = PRIOR_SCALE**2 * features @ features.mT + BIAS_SCALE**2 + NOISE**2 * torch.eye(rows)
    return float(scipy.stats.multivariate_normal(torch.zeros(rows), covariance).logpdf(targets))


@pytest.mark.parametrize(
    "guide", [bll.guides.Diagonal(), bll.guides.Diagonal(principal_axes=False), bll.guides.FullRank()]
)
@pytest.mark.thinned(3)
def test_elbo_is_a_lower_bound_at_every_moment(guide: bll.guides.Guide) -> None:
    features, targets = regression()
    bound = log_evidence(features, targets)
    for num_epochs in (1, 20, 400):
        inference = bll.SVI(guide=guide, num_epochs=num_epochs)
        fit = bll.fit(conjugate_layer(), (features, targets), inference=inference)
        assert fit.elbo <= bound + 1e-8


def test_full_rank_reaches_the_evidence() -> None:
    features, targets = regression()
    fit = bll.fit(conjugate_layer(), (features, targets), inference=bll.SVI(guide=bll.guides.FullRank()))
    assert 0 <= log_evidence(features, targets) - fit.elbo < 0.05


def objective(layer: bll.LastLayer, guide: bll.guides.Guide, num_rows: int, **settings: object) -> Objective:
    model = Model(layer, 5)
    shape = (model.num_outputs, 5 + layer.bias)
    random = generator(1)
    loc, scale = torch.randn(shape, generator=random), 0.1 + torch.rand(shape, generator=random)
    start = Start(torch.randn(model.global_sites.num, generator=random), loc, scale, 5)
    return Objective(layer, model, guide.build(model, start), num_rows, **settings)


@pytest.mark.parametrize("batch_size", [1, 7, 40])
def test_gradients_do_not_depend_on_the_batch_size(batch_size: int) -> None:
    """The mean over the batches of an epoch, weighted by their rows, is the gradient on all rows (also the short one).

    With known noise the expected log likelihood is in closed form, so the equality holds to rounding.
    """
    features, targets = regression()
    with isolated(0, torch.float64):
        layer = conjugate_layer()
        rows = DesignRows(features, targets[:, None], Frame.identity(5, 1, torch.empty(0)))
        subject = objective(layer, bll.guides.Diagonal(), len(features))
        whole_value = subject.gradient(*rows[:], generator(0))
        whole = [p.grad.clone() for p in subject.parameters]
        value, mean = 0.0, [torch.zeros_like(p) for p in whole]
        sizes = []
        for design, batch_targets in rows.batches(batch_size, generator(5)):
            sizes.append(len(design))
            share = len(design) / len(features)
            value += share * float(subject.gradient(design, batch_targets, generator(0)))
            for total, parameter in zip(mean, subject.parameters, strict=True):
                total += share * parameter.grad
        assert sizes[-1] == (40 % batch_size or batch_size)
        assert value == pytest.approx(float(whole_value), rel=1e-12)
        for found, expected in zip(mean, whole, strict=True):
            assert torch.allclose(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("likelihood", [bll.likelihoods.Categorical(3), bll.likelihoods.Gaussian()])
@pytest.mark.parametrize("prior", [bll.priors.Normal(0.7), bll.priors.Laplace(0.7)])
@pytest.mark.slow
def test_output_space_equals_weight_space(
    likelihood: bll.likelihoods.Likelihood, prior: bll.priors.Prior
) -> None:
    """The same expectation as Pyro's own ELBO, within four standard errors of the difference."""
    num_draws = 400
    features, targets = regression()
    labels = (targets > 0).long() + (targets > 2).long()
    used = labels if likelihood.is_discrete else targets[:, None]
    with isolated(0, torch.float64):
        layer = bll.LastLayer(likelihood=likelihood, prior=prior)
        rows = DesignRows(features / 3, used, Frame.identity(5, 1, torch.empty(0)))
        subject = objective(layer, bll.guides.Diagonal(), 60)
        design, batch_targets = rows[:]
        random = generator(2)
        with torch.no_grad():
            ours = torch.stack([subject(design, batch_targets, random) for _ in range(num_draws)])
            loss = Trace_ELBO()(subject.model, subject.guide)
            theirs = torch.stack([-loss(design[:, :5], batch_targets, 60) for _ in range(num_draws)])
    error = math.sqrt(float(ours.var() + theirs.var()) / num_draws)
    assert abs(float(ours.mean() - theirs.mean())) < 4 * error
    assert float(ours.var()) < float(theirs.var())


def test_model_is_a_pyro_program_to_teach_from() -> None:
    layer = bll.LastLayer(likelihood=bll.likelihoods.Gaussian())
    features, targets = torch.randn(7, 5, generator=generator(0)), torch.zeros(7, 1)
    with isolated(0):
        model = bll.Model(layer, 5)
        trace = pyro.poutine.trace(model).get_trace(features, targets, 70)
        trace.compute_log_prob()
        sites = {name: node for name, node in trace.nodes.items() if node["type"] == "sample"}
        assert list(sites) == ["noise_scale", "weight", "bias", "data", "y"]
        assert sites["weight"]["value"].shape == (1, 5)
        assert sites["y"]["scale"] == 10.0
        graph = pyro.render_model(model, model_args=(features, targets), render_distributions=True)
    assert "weight" in graph.source and "data" in graph.source
