"""Errors of the guides: what was expected, what was got, what to do."""

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import autoguide
from torch import Tensor

import bll_pyro as bll
from bll_pyro.declaration import to_plain
from bll_pyro.scope import generator

DATA = (torch.randn(20, 3, generator=generator(0)), torch.arange(20) % 2)
LAYER = bll.LastLayer(likelihood=bll.likelihoods.Categorical(2))


def unfinished(features: Tensor, targets: Tensor | None, num_rows: int | None) -> None:
    """A guide without the bias."""
    loc = pyro.param("loc", torch.zeros(2, 3))
    pyro.sample("weight", dist.Normal(loc, 1.0).to_event(2))


def without_start(features: Tensor, targets: Tensor | None, num_rows: int | None) -> None:
    pyro.sample("weight", dist.Normal(pyro.param("loc"), 1.0).to_event(2))


@pytest.mark.unchecked
@pytest.mark.parametrize("rank", [0, -1, 2.5, True, "8"])
def test_rank(rank: Any) -> None:
    with pytest.raises(ValueError, match=r"LowRank\(rank=...\): expected a whole number >= 1.*Diagonal"):
        bll.guides.LowRank(rank=rank)


@pytest.mark.unchecked
def test_principal_axes() -> None:
    with pytest.raises(TypeError, match="expected True or False"):
        bll.guides.LowRank(principal_axes="yes")  # type: ignore[arg-type]


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: bll.guides.Flow(num_layers=0),
            r"Flow\(num_layers=...\): expected a whole number >= 1, got 0",
        ),
        (lambda: bll.guides.InverseAutoregressive(hidden_width=0), "hidden_width"),
        (lambda: bll.guides.Spline(num_bins=-1), "num_bins"),
        (lambda: bll.guides.Spline(bound=0.0), "bound"),
    ],
)
def test_numbers_of_a_flow(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.unchecked
def test_layer_of_a_flow() -> None:
    with pytest.raises(TypeError, match=r"expected a bijection such as bll.guides.InverseAutoregressive"):
        bll.guides.Flow(layer="iaf")  # type: ignore[arg-type]


def test_flow_too_narrow() -> None:
    guide = bll.guides.Flow(layer=bll.guides.InverseAutoregressive(hidden_width=3))
    with pytest.raises(ValueError, match=r"at least the number of unknowns, 8, got 3.*None"):
        bll.fit(LAYER, DATA, inference=bll.SVI(guide=guide, num_epochs=1))


@pytest.mark.parametrize("point", ["AutoDelta", autoguide.AutoDelta, "AutoLaplaceApproximation"])
def test_points_are_refused(point: Any) -> None:
    with pytest.raises(ValueError, match=r"trained as a point; use bll.guides.MAP\(\)"):
        bll.guides.Custom(point)


@pytest.mark.parametrize("name", ["AutoNormall", "AutoGuideList", "os"])
def test_unknown_names(name: str) -> None:
    with pytest.raises(
        ValueError, match=r"expected the name of a class in pyro.infer.autoguide.*AutoNormal,"
    ):
        bll.guides.Custom(name)


def test_not_callable() -> None:
    with pytest.raises(TypeError, match="expected an autoguide class, its name, or a guide function, got 3"):
        bll.guides.Custom(3)


def test_options_for_a_function() -> None:
    with pytest.raises(ValueError, match=r"functools.partial"):
        bll.guides.Custom(unfinished, {"rank": 3})


def test_missing_site() -> None:
    inference = bll.SVI(guide=bll.guides.Custom(unfinished), num_epochs=1)
    with pytest.raises(ValueError, match="expected a guide with the sample sites bias, weight, got weight"):
        bll.fit(LAYER, DATA, inference=inference)


def test_parameter_without_initial_value() -> None:
    inference = bll.SVI(guide=bll.guides.Custom(without_start), num_epochs=1)
    with pytest.raises(ValueError, match=r"pyro.param\('loc'\): expected an initial value"):
        bll.fit(LAYER, DATA, inference=inference)


def test_function_cannot_be_written() -> None:
    guide = bll.guides.Custom(unfinished)
    with pytest.raises(TypeError, match=r"guide.guide: .* got function, which cannot be written to a file"):
        to_plain(bll.SVI(guide=guide), {})
    assert guide == bll.guides.Custom(unfinished)
    assert guide != bll.guides.Custom(without_start)
    assert hash(guide) == hash(bll.guides.Custom(unfinished))


@pytest.mark.parametrize(
    "layer", [bll.guides.Spline(num_bins=4), bll.guides.InverseAutoregressive()], ids=repr
)
@pytest.mark.thinned(3)
def test_a_layer_of_a_flow_stands_for_the_flow(layer: Any) -> None:
    inference = bll.SVI(layer, num_epochs=2)
    assert inference == bll.SVI(bll.guides.Flow(layer=layer), num_epochs=2)
    features = torch.randn(20, 2, generator=torch.Generator().manual_seed(0))
    made = bll.fit(bll.LastLayer(bll.likelihoods.Gaussian()), (features, features[:, 0]), inference=inference)
    assert made.inference.guide == bll.guides.Flow(layer=layer)
