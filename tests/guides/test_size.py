"""Sizes: what will not fit is refused with what does, and structured covariances are never multiplied out."""

import pytest
import torch

import bll_pyro as bll
from bll_pyro.guides import Start
from bll_pyro.guides.base import COPIES_BYTES, MAX_COVARIANCE_BYTES, guides_that_fit
from bll_pyro.model import Model
from bll_pyro.scope import isolated


@pytest.mark.parametrize(
    "guide", [bll.guides.FullRank(), bll.guides.BlockDiagonal(), bll.guides.Flow()], ids=repr
)
def test_too_large_is_refused_before_any_work(guide: bll.guides.Guide) -> None:
    """1,000 classes on 2,048 features: the error names size and remedy, and the remedy fits."""
    with pytest.raises(ValueError, match="expected a covariance that fits in 8 GiB") as caught:
        guide.check_memory(1000, 2049)
    message = str(caught.value)
    size = COPIES_BYTES * guide.num_numbers(1000, 2049) / 2**30
    assert f"{type(guide).__name__}: " in message
    assert f"1000 outputs x 2049 columns, which take {size:.1f} GiB" in message
    named = message.split("use ")[1].split(" or ")
    assert named[0] == "LowRank()"  # the richest first
    assert {"MatrixNormal()", "Diagonal()"} <= set(named)
    for name in named:
        remedy = getattr(bll.guides, name.removesuffix("()"))()
        assert COPIES_BYTES * remedy.num_numbers(1000, 2049) <= MAX_COVARIANCE_BYTES
        remedy.check_memory(1000, 2049)


def test_the_fit_refuses_too() -> None:
    layer = bll.LastLayer(likelihood=bll.likelihoods.Categorical(1000))
    features, labels = torch.zeros(10, 2048), torch.arange(10)
    with pytest.raises(ValueError, match=r"FullRank: .* GiB"):
        bll.fit(layer, (features, labels), inference=bll.SVI(guide=bll.guides.FullRank()))


def test_remedies_follow_the_size() -> None:
    assert guides_that_fit(10, 129)[0] == "Flow()"
    assert "BlockDiagonal()" in guides_that_fit(10, 2049)
    assert "BlockDiagonal()" not in guides_that_fit(1000, 2049)
    assert guides_that_fit(10**6, 10**6) == []
    with pytest.raises(ValueError, match="use fewer features or outputs"):
        bll.guides.Diagonal().check_memory(10**6, 10**6)


@pytest.mark.parametrize(
    "guide",
    [
        bll.guides.Diagonal(),
        bll.guides.LowRank(rank=2),
        bll.guides.MatrixNormal(),
        bll.guides.BlockDiagonal(),
        bll.guides.FullRank(),
    ],
    ids=repr,
)
def test_numbers_held_are_those_counted(guide: bll.guides.Guide) -> None:
    """Parameters of the covariance: as many as ``num_numbers`` says (the mean is little beside them)."""
    num_outputs, num_features = 6, 20
    num_columns = num_features + 1
    with isolated(0):
        built = build(guide, num_outputs, num_features)
    held = sum(parameter.numel() for parameter in built.parameters())
    num_weights = num_outputs * num_columns
    counted = guide.num_numbers(num_outputs, num_columns)
    assert counted <= held <= counted + 2 * num_weights


@pytest.mark.parametrize(
    "guide", [bll.guides.Diagonal(), bll.guides.LowRank(rank=4), bll.guides.MatrixNormal()], ids=repr
)
def test_many_outputs_and_columns(guide: bll.guides.Guide) -> None:
    """500 classes on 1,000 features: a covariance multiplied out would take 1 TB; outputs, ELBO terms and draws work."""
    num_outputs, num_features = 500, 1000
    with isolated(0), torch.no_grad():
        built = build(guide, num_outputs, num_features)
        latents = built.latents()
        design = torch.randn(8, num_features + 1)
        outputs = latents.weights.outputs(design)
        assert outputs.rsample().shape == (8, num_outputs)
        draws = latents.weights.rsample(2)
        assert torch.isfinite(latents.weights.log_prob(draws)).all()
        assert torch.isfinite(latents.entropy())
        parts = [
            value
            for value in (outputs.loc, outputs.scale, outputs.mixing, outputs.factor)
            if value is not None
        ]
        largest = max(value.numel() for value in [*latents.weights.tensors.values(), *parts])
    assert largest <= 4 * num_outputs * (num_features + 1)


def build(guide: bll.guides.Guide, num_outputs: int, num_features: int) -> torch.nn.Module:
    layer = bll.LastLayer(likelihood=bll.likelihoods.Categorical(num_outputs))
    scale = torch.full((num_outputs, num_features + 1), 0.1)
    start = Start(torch.zeros(0), torch.zeros_like(scale), scale, num_features)
    return guide.build(Model(layer, num_features), start)
