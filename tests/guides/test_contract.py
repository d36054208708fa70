"""What every guide has to do, beside what tests/test_contract.py asks of each combination."""

import math
from collections.abc import Callable

import pytest
import torch
from guide_cases import guides_for, name_of
from pyro.infer import Trace_ELBO
from torch import Tensor

import bll_pyro as bll
from bll_pyro.guides import GaussianGuide, Start
from bll_pyro.inference.svi.objective import Objective
from bll_pyro.model import Model
from bll_pyro.posterior import GaussianPosterior
from bll_pyro.scope import generator, isolated

NUM_ROWS, NUM_FEATURES = 60, 4


GUIDES = guides_for(3, NUM_FEATURES)
GAUSSIAN = {
    name: guide
    for name, guide in GUIDES.items()
    if not isinstance(guide, (bll.guides.MAP, bll.guides.Flow, bll.guides.Custom))
}
LAYERS = {
    "classes": bll.LastLayer(likelihood=bll.likelihoods.Categorical(3)),
    "classes without bias": bll.LastLayer(
        likelihood=bll.likelihoods.Categorical(3), prior=bll.priors.Normal(0.8), bias=False
    ),
    "known noise": bll.LastLayer(likelihood=bll.likelihoods.Gaussian(0.5), prior=bll.priors.Normal(1.0)),
    "learned noise": bll.LastLayer(likelihood=bll.likelihoods.Gaussian()),
    "two targets, learned noise, no bias": bll.LastLayer(
        likelihood=bll.likelihoods.Gaussian(), prior=bll.priors.Normal(1.0), bias=False
    ),
}
every_guide = pytest.mark.parametrize("guide", GUIDES.values(), ids=GUIDES.keys())
every_layer = pytest.mark.parametrize("name", LAYERS)


def data(name: str) -> tuple[Tensor, Tensor]:
    random = generator(0)
    features = torch.randn(NUM_ROWS, NUM_FEATURES, generator=random) @ torch.randn(
        NUM_FEATURES, NUM_FEATURES, generator=random
    )
    signal = features @ torch.randn(NUM_FEATURES, 3, generator=random)
    noisy = signal + 0.5 * torch.randn(NUM_ROWS, 3, generator=random)
    if "classes" in name:
        return features, noisy.argmax(-1)
    return features, noisy[:, :2] if "two targets" in name else noisy[:, 0]


def program(name: str, guide: bll.guides.Guide, **settings: object) -> tuple[Objective, Tensor, Tensor]:
    """Model and guide at a random start, with features and targets as they are used inside; call it isolated."""
    layer = LAYERS[name]
    features, targets = data(name)
    shape = tuple(targets.shape[1:]) if layer.likelihood.real_valued else ()
    model = Model(layer, NUM_FEATURES, shape)
    random = generator(1)
    size = (model.num_outputs, NUM_FEATURES + layer.bias)
    scale = 0.1 + 0.3 * torch.rand(size, generator=random)
    loc = 0.5 * torch.randn(size, generator=random)
    start = Start(0.3 * torch.randn(model.global_sites.num, generator=random), loc, scale, NUM_FEATURES)
    used = layer.likelihood.check_targets(targets)
    return Objective(layer, model, guide.build(model, start), NUM_ROWS, **settings), features, used


def batch(objective: Objective, features: Tensor) -> Tensor:
    return torch.cat([features, torch.ones(len(features), 1)], 1) if objective.layer.bias else features


def mean_and_error(draw: Callable[[], Tensor], num_draws: int) -> tuple[float, float]:
    with torch.no_grad():
        values = torch.stack([draw() for _ in range(num_draws)]).double()
    return float(values.mean()), float(values.std()) / math.sqrt(num_draws)


@every_guide
@pytest.mark.thinned(5)
def test_the_elbo_rises(guide: bll.guides.Guide) -> None:
    """From the warm start on, up to its noise."""
    fit = bll.fit(LAYERS["classes"], data("classes"), inference=bll.SVI(guide=guide, num_epochs=40))
    assert fit.trace.converged
    assert float(fit.trace.elbo[-5:].mean()) > float(fit.trace.elbo[:5].mean()) - 10


@pytest.mark.parametrize("guide", GAUSSIAN.values(), ids=GAUSSIAN.keys())
@every_layer
@pytest.mark.thinned(4)
def test_density_of_draws_averages_to_the_entropy(guide: bll.guides.Guide, name: str) -> None:
    """``E_q[-log q]`` is the entropy: in the space of the sites, that of the Gaussian plus the mean log Jacobian."""
    fit = bll.fit(LAYERS[name], data(name), inference=bll.SVI(guide=guide, num_epochs=5))
    posterior = fit.posterior
    assert isinstance(posterior, GaussianPosterior)
    draws = posterior.sample(2000, seed=3)
    log_prob = posterior.log_prob(draws)
    assert log_prob.shape == (1, 2000)
    entropy = posterior.latents.entropy()
    if posterior.global_sites.num:
        values = {k: v.flatten(0, 1) for k, v in posterior.global_sites.from_user(draws).items()}
        entropy = (
            entropy + posterior.global_sites.constrain(posterior.global_sites.unconstrain(values))[2].mean()
        )
    assert float(-log_prob.mean()) == pytest.approx(
        float(entropy), abs=5 * float(log_prob.std()) / math.sqrt(2000)
    )


@pytest.mark.parametrize("name", ["MAP", "flow", "custom class"])
@pytest.mark.thinned(3)
def test_no_density(name: str) -> None:
    fit = bll.fit(LAYERS["classes"], data("classes"), inference=bll.SVI(guide=GUIDES[name], num_epochs=2))
    with pytest.raises(ValueError, match="no density"):
        fit.posterior.log_prob(fit.posterior.sample(3))


@every_layer
@pytest.mark.parametrize("guide", [GUIDES["MAP"], *GAUSSIAN.values()], ids=["MAP", *GAUSSIAN])
@pytest.mark.thinned(6)
def test_output_space_elbo_is_pyros(guide: bll.guides.Guide, name: str) -> None:
    """Pyro's ``Trace_ELBO`` of model and guide has the expectation of the ELBO in output space."""
    with isolated(0):
        objective, features, targets = program(name, guide)
        assert isinstance(objective.guide, GaussianGuide)
        # a learned scale is solved for in output space and a parameter of the model in Pyro's; hold it at 1
        objective.learns = False
        design, random = batch(objective, features), generator(4)
        ours, error = mean_and_error(lambda: objective(design, targets, random), 300)
        pyros = Trace_ELBO(num_particles=100, vectorize_particles=True)(objective.model, objective.guide)
        theirs, their_error = mean_and_error(lambda: -pyros(features, targets, NUM_ROWS), 30)
        # 70 comparisons: five standard errors and float32 sums of 60 rows
        assert abs(ours - theirs) < 5 * math.hypot(error, their_error) + 1e-4 * abs(ours)


@every_layer
def test_vectorised_particles_of_a_messenger(name: str) -> None:
    """Eight particles at once have the expectation of one at a time; of other guides each particle is compared."""
    guide = GUIDES["custom messenger"]
    with isolated(0):
        objective, features, targets = program(name, guide)
        one = Trace_ELBO()(objective.model, objective.guide)
        many = Trace_ELBO(num_particles=8, vectorize_particles=True)(objective.model, objective.guide)
        arguments = (features, targets, NUM_ROWS)
        single, error = mean_and_error(lambda: one(*arguments), 80)
        eight, their_error = mean_and_error(lambda: many(*arguments), 30)
        assert abs(single - eight) < 5 * math.hypot(error, their_error) + 1e-4 * abs(single)


@pytest.mark.parametrize("name", ["classes", "two targets, learned noise, no bias"])
@every_guide
@pytest.mark.thinned(5)
def test_starts_at_the_start(guide: bll.guides.Guide, name: str) -> None:
    """Means as given and scales of the given size, whatever the family."""
    if guide is GUIDES["custom function"]:
        return  # it has its own
    with isolated(0):
        objective, features, targets = program(name, guide)
        model, built = objective.model, objective.guide
        scale = 0.1 + 0.3 * torch.rand(
            model.num_outputs, NUM_FEATURES + objective.layer.bias, generator=generator(5)
        )
        scale = torch.outer(scale[:, 0], scale[0])  # matrix-normal can take on only such scales
        start = Start(torch.zeros(model.global_sites.num), torch.ones_like(scale) / 3, scale, NUM_FEATURES)
        built = guide.build(model, start)
        built(features, targets, NUM_ROWS)
        with torch.no_grad():
            draws = [built(features, targets, NUM_ROWS) for _ in range(250)]
        weight = torch.stack([d["weight"].detach() for d in draws])
    expected = scale[:, :NUM_FEATURES]
    assert float(((weight.mean(0) - 1 / 3).abs() / (weight.std(0) / math.sqrt(250) + 1e-6)).max()) < 5
    if guide is GUIDES["MAP"]:
        assert float(weight.std(0).max()) < 1e-6
    elif isinstance(guide, bll.guides.Custom):  # Pyro's guides take one scale for all
        assert float(weight.std(0).median()) == pytest.approx(float(scale.median()), rel=0.5)
    else:
        ratio = weight.std(0) / expected
        assert 0.75 < float(ratio.min()) <= float(ratio.max()) < 1.3  # 5 standard errors are 0.22


@pytest.mark.parametrize(
    "guide", [*GAUSSIAN.values(), GUIDES["flow"], GUIDES["custom function"]], ids=name_of
)
@pytest.mark.thinned(4)
def test_same_seed_same_fit(guide: bll.guides.Guide) -> None:
    before = torch.get_rng_state()
    fits = [
        bll.fit(LAYERS["classes"], data("classes"), inference=bll.SVI(guide=guide, num_epochs=3), seed=7)
        for _ in range(2)
    ]
    assert torch.equal(before, torch.get_rng_state())
    first, second = (fit.posterior.sample(20, seed=0) for fit in fits)
    for site, values in first.items():
        assert torch.equal(values, second[site])


def test_guides_differ() -> None:
    assert len(set(GUIDES.values())) == len(GUIDES)


@every_layer
@pytest.mark.parametrize(
    "guide", [g for g in GUIDES.values() if g.can_rotate], ids=[n for n, g in GUIDES.items() if g.can_rotate]
)
@pytest.mark.thinned(9)
def test_draws_come_in_the_axes_of_the_features(guide: bll.guides.Guide, name: str) -> None:
    """Outputs of the draws have the mean of the outputs in closed form, though the fit ran in principal axes."""
    fit = bll.fit(LAYERS[name], data(name), inference=bll.SVI(guide=guide, num_epochs=30))
    posterior, features = fit.posterior, data(name)[0]
    assert posterior.frame.rotation is not None
    outputs = posterior.outputs(features)
    draws = posterior.draw_outputs(posterior.sample(1000, seed=2), features)
    error = (draws.mean(0) - outputs.mean) / (outputs.variance / len(draws)).sqrt()
    assert float(error.abs().max()) < 5
    # and they fit the data: far more likely than outputs of shuffled features
    likelihood, targets = posterior.layer.likelihood, fit.layer.likelihood.check_targets(data(name)[1])
    inside = posterior.frame.targets(targets)
    noise = {k: v.mean(0) for k, v in posterior.noise(64).items()}
    fitted = likelihood.log_prob(outputs.mean, inside, **noise).mean()
    shuffled = likelihood.log_prob(outputs.mean.roll(7, 0), inside, **noise).mean()
    assert float(fitted) > float(shuffled) + 0.3
