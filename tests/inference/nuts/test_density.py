"""The log density that chains follow, against the Pyro program, finite differences, and the change of coordinates."""

import math
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor

import bll_pyro as bll
from bll_pyro.frame import Frame
from bll_pyro.inference.base import Trace
from bll_pyro.inference.nuts.approximation import approximate
from bll_pyro.inference.nuts.coordinates import coordinates
from bll_pyro.inference.nuts.density import LogDensity, State
from bll_pyro.inference.nuts.row_terms import row_terms
from bll_pyro.inference.rows import DesignRows
from bll_pyro.model import Model
from bll_pyro.scope import generator, isolated

NUM_ROWS, NUM_FEATURES = 30, 3
RANDOM = generator(0)
FEATURES = torch.randn(NUM_ROWS, NUM_FEATURES, generator=RANDOM, dtype=torch.float64)
VALUES = FEATURES[:, :2] + 0.3 * torch.randn(NUM_ROWS, 2, generator=RANDOM, dtype=torch.float64)
LABELS = torch.bucketize(VALUES[:, 0].contiguous(), torch.tensor([-0.7, 0.6], dtype=torch.float64))
CENTER = torch.randn(2, NUM_FEATURES, generator=RANDOM, dtype=torch.float64)
P, L = bll.priors, bll.likelihoods
LAYERS = {
    "fixed scale": bll.LastLayer(L.Categorical(3), P.Normal(0.7)),
    "learned scale": bll.LastLayer(L.Categorical(3), P.Normal()),
    "fixed scale, centred": bll.LastLayer(L.Gaussian(0.4), P.Normal(0.7, loc=CENTER), bias_loc=CENTER[:, 0]),
    "noise": bll.LastLayer(L.Gaussian(), P.Normal(0.7), bias=False),
    "hierarchical": bll.LastLayer(L.Gaussian(), P.HierarchicalNormal(loc=CENTER)),
    "hierarchical groups": bll.LastLayer(
        L.Categorical(3), P.HierarchicalNormal(per_output=True, per_feature=True)
    ),
    "laplace": bll.LastLayer(L.Bernoulli(), P.Laplace(0.7)),
    "student": bll.LastLayer(L.Gaussian(), P.StudentT(df=5.0), bias_loc=CENTER[:, 0]),
    "spike and slab": bll.LastLayer(L.Categorical(3), P.SpikeAndSlab(slab_prob=dist.Beta(1.0, 2.0))),
    "horseshoe": bll.LastLayer(L.Gaussian(), P.Horseshoe(), bias=False),
    "any distribution": bll.LastLayer(L.Poisson(), P.Distribution(dist.Cauchy(0.0, 1.0))),
}


def data(layer: bll.LastLayer) -> tuple[Tensor, tuple[int, ...]]:
    if layer.likelihood.real_valued:
        return VALUES, (2,)
    return layer.likelihood.check_targets(
        (LABELS > 0).long() if isinstance(layer.likelihood, L.Bernoulli) else LABELS
    ), ()


def make(layer: bll.LastLayer) -> tuple[LogDensity, DesignRows, tuple[int, ...]]:
    targets, target_shape = data(layer)
    frame = Frame.identity(NUM_FEATURES, targets.shape[1] if targets.dim() == 2 else 1, FEATURES, layer.bias)
    rows = DesignRows(FEATURES, targets, frame)
    with isolated(0, torch.float64):
        origin = approximate(layer, rows, target_shape, Trace())
        terms = row_terms(layer.likelihood, rows, len(origin.loc))
        place = coordinates(layer, origin, rows, target_shape, terms)
        density = LogDensity(layer, NUM_FEATURES, target_shape, terms, origin.learned, place, torch.float64)
    return density, rows, target_shape


def draw(density: LogDensity, seed: int) -> State:
    random = generator(seed)
    return {k: torch.randn(n, generator=random, dtype=torch.float64) for k, n in density.shape.items()}


def by_pyro(
    density: LogDensity, target_shape: tuple[int, ...], targets: Tensor, u: Tensor, weights: Tensor
) -> Tensor:
    """Log joint density of the program at these values, with the Jacobian of the global unknowns."""
    layer = density.layer
    values, _, log_jacobian = density.global_sites.constrain(u)
    sites: dict[str, Any] = {**values, "weight": weights[:, :NUM_FEATURES]}
    if layer.bias:
        sites["bias"] = weights[:, -1]
    with isolated(0, torch.float64):
        model = Model(layer, NUM_FEATURES, target_shape)
        for name, value in density.prior.learned.items():
            setattr(model, name, value)
        trace = poutine.trace(poutine.condition(model, sites)).get_trace(FEATURES, targets)
        return trace.log_prob_sum() + log_jacobian


@pytest.mark.parametrize("name", LAYERS)
def test_is_the_density_of_the_program(name: str) -> None:
    density, rows, target_shape = make(LAYERS[name])
    for seed in (1, 2):
        state = draw(density, seed)
        with torch.no_grad():
            u, weights, log_stretch = density.place(state)
            expected = by_pyro(density, target_shape, rows.targets, u, weights)
            torch.testing.assert_close(density.log_joint(u, weights), expected, rtol=1e-6, atol=1e-6)
            torch.testing.assert_close(-density(state), expected + log_stretch, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", LAYERS)
def test_slopes_are_those_of_differences(name: str) -> None:
    density = make(LAYERS[name])[0]
    state = draw(density, 3)
    leaves = {k: v.clone().requires_grad_() for k, v in state.items()}
    slopes = dict(zip(leaves, torch.autograd.grad(density(leaves), list(leaves.values())), strict=True))
    for key, value in state.items():
        for index in range(0, len(value), max(1, len(value) // 4)):
            step = torch.zeros_like(value)
            step[index] = 1e-5
            with torch.no_grad():
                ahead, behind = density({**state, key: value + step}), density({**state, key: value - step})
            found = float(slopes[key][index])
            assert found == pytest.approx(float(ahead - behind) / 2e-5, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("name", ["noise", "hierarchical", "hierarchical groups"])
def test_volume_of_the_coordinates(name: str) -> None:
    """``log |d (u, A) / d (v, z)| = sum log r + log |R| + log |S|``, by the Jacobian of the map itself."""
    density = make(LAYERS[name])[0]
    state, sizes = draw(density, 4), list(density.shape.values())

    def place(flat: Tensor) -> Tensor:
        v, z = flat.split(sizes)
        u, weights, _ = density.place({"globals": v, "weights": z})
        return torch.cat([u, weights.flatten()])

    jacobian = torch.autograd.functional.jacobian(place, torch.cat(list(state.values())))
    at = density.coordinates
    expected = density.place(state)[2] + at.whitening.log_det + at.u_scale.log().sum()
    torch.testing.assert_close(torch.linalg.slogdet(jacobian).logabsdet, expected)
    if name != "noise":
        assert at.known is not None and float(at.known.min()) > 0
        assert float(density.place(state)[2].abs()) > 0


def test_the_bias_is_not_stretched() -> None:
    density = make(LAYERS["hierarchical groups"])[0]
    state = draw(density, 5)
    with torch.no_grad():
        moved = density.place({**state, "globals": state["globals"] + 1.0})[1] - density.place(state)[1]
    assert float(moved[:, -1].abs().max()) == 0 and float(moved[:, :-1].abs().min()) > 0


def test_coordinates_are_independent_of_a_sampled_scale() -> None:
    """Orthogonal features, known noise: given the scale, z has the same distribution whatever the scale is.

    So the slope in the weights' coordinates does not depend on the scale, and the funnel is gone.
    """
    features = torch.linalg.qr(FEATURES)[0]
    layer = bll.LastLayer(
        L.Gaussian(0.4), P.HierarchicalNormal(per_feature=True, per_output=True, loc=CENTER), bias=False
    )
    rows = DesignRows(features, VALUES, Frame.identity(NUM_FEATURES, 2, features, bias=False))
    with isolated(0, torch.float64):
        origin = approximate(layer, rows, (2,), Trace())
        terms = row_terms(layer.likelihood, rows, 2)
        place = coordinates(layer, origin, rows, (2,), terms)
        density = LogDensity(layer, NUM_FEATURES, (2,), terms, origin.learned, place, torch.float64)
    z = torch.randn(6, generator=generator(6), dtype=torch.float64)
    for shift in (-8.0, 0.0, 5.0):
        state = {
            "globals": torch.full((6,), shift, dtype=torch.float64),
            "weights": z.clone().requires_grad_(),
        }
        (slope,) = torch.autograd.grad(density(state), state["weights"])
        torch.testing.assert_close(slope, z, rtol=0, atol=0.02)  # that of a standard normal


@pytest.mark.parametrize("name", ["fixed scale", "learned scale", "fixed scale, centred"])
def test_origin_is_a_mode_with_the_curvature_there(name: str) -> None:
    """In whitened coordinates the slope at the origin vanishes and the Hessian is the identity."""
    density = make(LAYERS[name])[0]
    zero = {"weights": torch.zeros(density.shape["weights"], dtype=torch.float64, requires_grad=True)}
    slope = torch.autograd.grad(density(zero), zero["weights"])[0]
    assert float(slope.square().mean().sqrt()) < 0.0011  # the tolerance of the mode, in standard deviations
    for index in (0, 5):
        step = torch.zeros_like(slope)
        step[index] = 1e-3
        with torch.enable_grad():
            sides = [{"weights": (sign * step).requires_grad_()} for sign in (1, -1)]
            ahead, behind = (torch.autograd.grad(density(s), s["weights"])[0] for s in sides)
        expected = torch.zeros_like(slope)
        expected[index] = 1.0
        torch.testing.assert_close((ahead - behind) / 2e-3, expected, rtol=0, atol=2e-3)


def test_learned_scale_is_the_one_of_laplace() -> None:
    layer = LAYERS["learned scale"]
    tau = make(layer)[0].prior.learned["tau"]
    fit = bll.fit(
        bll.LastLayer(layer.likelihood, layer.prior, standardize=False), (FEATURES, LABELS),
        inference=bll.Laplace(curvature=bll.curvatures.Full()),
    )  # fmt: skip
    assert float(tau) == pytest.approx(float(fit.posterior.learned["tau"]), rel=0.01)


def test_learned_scale_of_other_priors_is_a_fixed_point() -> None:
    """``tau`` maximises the expected log prior under the approximation itself: EM has come to rest."""
    layer = bll.LastLayer(L.Gaussian(0.4), P.Laplace())
    targets, target_shape = data(layer)
    rows = DesignRows(FEATURES, targets, Frame.identity(NUM_FEATURES, 2, FEATURES))
    with isolated(0, torch.float64):
        origin = approximate(layer, rows, target_shape, Trace())
        scale = origin.whitening.variance().sqrt()[:, :NUM_FEATURES]
        again = layer.prior.learned_update(origin.loc[:, :NUM_FEATURES], scale)["tau"]
    assert math.log(float(again / origin.learned["tau"])) == pytest.approx(0, abs=0.01)
    assert float(origin.learned["tau"]) != 1.0
