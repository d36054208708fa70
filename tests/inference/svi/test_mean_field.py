"""The written-out gradients of the default step equal those of automatic differentiation."""

import pytest
import torch

import bll_pyro as bll
from bll_pyro.frame import Frame
from bll_pyro.guides import Start
from bll_pyro.inference.rows import DesignRows
from bll_pyro.inference.svi.mean_field import MeanFieldStep
from bll_pyro.inference.svi.objective import Objective
from bll_pyro.model import Model
from bll_pyro.scope import generator, isolated

NUM_FEATURES, NUM_ROWS = 6, 123


def objective(layer: bll.LastLayer, target_shape: tuple[int, ...], **svi: object) -> Objective:
    model = Model(layer, NUM_FEATURES, target_shape)
    shape = (model.num_outputs, NUM_FEATURES + layer.bias)
    random = generator(1)
    start = Start(
        torch.randn(model.global_sites.num, generator=random),
        torch.randn(shape, generator=random),
        0.1 + torch.rand(shape, generator=random),
        NUM_FEATURES,
    )
    settings = bll.SVI(**svi)
    guide = settings.guide.build(model, start)
    return Objective(layer, model, guide, NUM_ROWS, settings.output_space)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("prior", [bll.priors.Normal(), bll.priors.Normal(0.7)])
@pytest.mark.parametrize(
    "likelihood",
    [
        bll.likelihoods.Categorical(4),
        bll.likelihoods.Categorical(4, temperature=1.7),
        bll.likelihoods.Gaussian(),
        bll.likelihoods.Gaussian(0.5),
    ],
)
def test_gradients_equal_automatic_ones(
    likelihood: bll.likelihoods.Likelihood, prior: bll.priors.Prior, bias: bool
) -> None:
    random = generator(0)
    features = torch.randn(20, NUM_FEATURES, generator=random, dtype=torch.float64)
    if likelihood.is_discrete:
        targets, shape = torch.randint(4, (20,), generator=random), ()
    else:
        targets, shape = torch.randn(20, 2, generator=random, dtype=torch.float64), (2,)
    layer = bll.LastLayer(likelihood=likelihood, prior=prior, bias=bias)
    with isolated(0, torch.float64):
        like = torch.empty(0)
        rows = DesignRows(features, targets, Frame.identity(NUM_FEATURES, 2, like, bias))
        subject = objective(layer, shape)
        parameters = [subject.guide.loc, subject.guide.scale_unconstrained]
        value = subject(*rows[:], generator(3))
        expected = torch.autograd.grad(-value / NUM_ROWS, parameters)
        assert MeanFieldStep.applies(subject.guide, layer, subject.model.global_sites)
        found = subject.gradient(*rows[:], generator(3))
        assert torch.allclose(found, value.detach(), rtol=1e-12)
        for parameter, gradient in zip(parameters, expected, strict=True):
            assert torch.allclose(parameter.grad, gradient, rtol=1e-9, atol=1e-12)
        if prior.scale is None:
            assert torch.allclose(subject.learned["tau"], subject._step.learned["tau"])
        # of features that move, those in the features too
        design, targets = rows[:]
        moving = design.clone().requires_grad_()
        expected = torch.autograd.grad(3 * subject(moving, targets, generator(3)), [moving, *parameters])
        learned, subject.learned = subject.learned, {}
        value = subject(moving, targets, generator(3), once=True)
        assert type(value.grad_fn).__name__ == "DifferentiableELBOBackward"
        found = torch.autograd.grad(3 * value, [moving, *parameters])
        for gradient, other in zip(found, expected, strict=True):
            assert torch.allclose(gradient, other, rtol=1e-9, atol=1e-12)
        assert subject.learned.keys() == learned.keys()
        assert all(torch.allclose(subject.learned[name], learned[name]) for name in learned)


def test_other_layers_take_the_general_path() -> None:
    categorical = bll.likelihoods.Categorical(3)
    for layer, guide in [
        (bll.LastLayer(likelihood=categorical, prior=bll.priors.Laplace()), bll.guides.Diagonal()),
        (
            bll.LastLayer(likelihood=categorical, prior=bll.priors.Normal(per_output=True)),
            bll.guides.Diagonal(),
        ),
        (bll.LastLayer(likelihood=categorical), bll.guides.FullRank()),
    ]:
        with isolated(0):
            assert objective(layer, (), guide=guide)._step is None
