"""``fit`` as a whole: isolation, seeds, backbones, data in every form, bad input."""

import random as python_random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import bll_pyro as bll
from bll_pyro.scope import generator

RANDOM = generator(0)
INPUTS = torch.randn(90, 1, 6, 6, generator=RANDOM)
LABELS = (INPUTS.mean((1, 2, 3)) > 0).long() + (INPUTS[:, 0, 0, 0] > 0.5).long()
FEATURES = INPUTS.flatten(1)[:, :8].contiguous()
VALUES = FEATURES @ torch.linspace(-1, 1, 8) + 0.2 * torch.randn(90, generator=RANDOM)
CLASSES = bll.LastLayer(likelihood=bll.likelihoods.Categorical(3))
REAL = bll.LastLayer(likelihood=bll.likelihoods.Gaussian())
SHORT = bll.SVI(num_epochs=4, batch_size=32)
JOINT = bll.SVI(num_epochs=2, batch_size=32, backbone_learning_rate=1e-3)


class Network(nn.Module):
    """A small backbone with BatchNorm that counts the rows it sees."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.body = nn.Sequential(
                nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()
            )
        self.num_rows = 0

    def forward(self, x: Tensor) -> Tensor:
        self.num_rows += len(x)
        return self.body(x)


def draws(fit: bll.Fit) -> dict[str, Tensor]:
    return fit.posterior.sample(3, seed=1)


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def test_fits_in_turns_equal_fits_alone() -> None:
    alone = [draws(bll.fit(CLASSES, (FEATURES, LABELS), inference=SHORT, seed=s)) for s in (1, 2)]
    for seed in (2, 1, 2):
        bll.fit(REAL, (FEATURES, VALUES), inference=bll.SVI(output_space=False, num_epochs=3))
        again = draws(bll.fit(CLASSES, (FEATURES, LABELS), inference=SHORT, seed=seed))
        assert same(again, alone[seed - 1])
    assert not same(*alone)


@pytest.mark.unchecked  # the run-time checks draw from Python's own generator
@pytest.mark.parametrize("inference", [SHORT, bll.SVI(output_space=False, num_epochs=3), JOINT])
def test_nothing_global_is_touched(inference: bll.SVI) -> None:
    torch.manual_seed(5)
    np.random.seed(5)
    python_random.seed(5)
    pyro.get_param_store().setdefault("mine", torch.tensor(3.0))
    before = (torch.get_rng_state(), np.random.get_state()[1].tolist(), python_random.getstate())
    backbone = Network() if inference is JOINT else None
    inputs = INPUTS if backbone is not None else FEATURES
    fit = bll.fit(CLASSES, (inputs, LABELS), backbone, inference)
    fit.predict(inputs)
    draws(fit)
    after = (torch.get_rng_state(), np.random.get_state()[1].tolist(), python_random.getstate())
    assert torch.equal(before[0], after[0]) and before[1:] == after[1:]
    assert list(pyro.get_param_store().keys()) == ["mine"] and pyro.param("mine") == 3.0
    pyro.clear_param_store()


@pytest.mark.parametrize("inference", [SHORT, JOINT])
@pytest.mark.thinned(2)
def test_same_seed_same_fit_on_one_and_two_workers(inference: bll.SVI) -> None:
    data = TensorDataset(INPUTS, LABELS)
    fits = []
    for num_workers in (0, 1, 2):
        loader = DataLoader(data, batch_size=32, shuffle=True, num_workers=num_workers)
        fits.append(draws(bll.fit(CLASSES, loader, Network(), inference, seed=3)))
    assert same(fits[0], fits[1]) and same(fits[0], fits[2])
    assert not same(fits[0], draws(bll.fit(CLASSES, loader, Network(), inference, seed=4)))


def test_frozen_backbone_stays_bit_identical_and_joint_training_moves_a_copy() -> None:
    backbone = Network()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    bll.fit(CLASSES, (INPUTS, LABELS), backbone, SHORT).predict(INPUTS)
    assert backbone.training and all(torch.equal(v, before[k]) for k, v in backbone.state_dict().items())
    joint = bll.fit(CLASSES, (INPUTS, LABELS), backbone, JOINT)
    assert all(torch.equal(v, before[k]) for k, v in backbone.state_dict().items())
    moved = joint.backbone.state_dict()
    assert not torch.equal(moved["body.0.weight"], before["body.0.weight"])
    assert not torch.equal(moved["body.1.running_mean"], before["body.1.running_mean"])


def test_backbone_runs_once_a_row_with_a_store(tmp_path: Path) -> None:
    backbone = Network()
    fit = bll.fit(CLASSES, (INPUTS, LABELS), backbone, SHORT, store=tmp_path)
    assert backbone.num_rows == len(INPUTS)
    fit.predict(INPUTS)
    fit.to_datatree(INPUTS, LABELS, num_draws=10)
    bll.fit(CLASSES, (INPUTS, LABELS), backbone, SHORT, store=tmp_path, seed=1)
    assert backbone.num_rows == len(INPUTS)
    fit.predict(INPUTS[:10])
    assert backbone.num_rows == len(INPUTS) + 10


@pytest.mark.slow
def test_two_stages_and_the_final_stage() -> None:
    stage1 = bll.fit(
        CLASSES,
        (INPUTS, LABELS),
        Network(),
        bll.SVI(guide=bll.guides.MAP(), backbone_learning_rate=1e-2, num_epochs=3),
    )
    stage2 = bll.fit(CLASSES, (INPUTS, LABELS), stage1.backbone, SHORT)
    assert (
        float(stage1.predict(INPUTS).epistemic.max()) < 1e-6 < float(stage2.predict(INPUTS).epistemic.max())
    )
    assert "joint" in stage1.trace.statistics
    with_stage = bll.fit(CLASSES, (INPUTS, LABELS), Network(), JOINT)
    without = bll.fit(
        CLASSES,
        (INPUTS, LABELS),
        Network(),
        bll.SVI(num_epochs=2, backbone_learning_rate=1e-3, final_stage=False),
    )
    assert with_stage.posterior.frame.rotation is not None and without.posterior.frame.rotation is None


def test_head_takes_features() -> None:
    fit = bll.fit(CLASSES, (INPUTS, LABELS), Network(), SHORT)
    features = bll.extract(fit.backbone, INPUTS)
    assert torch.equal(fit.head.predict(features).probs, fit.predict(INPUTS).probs)


def forms() -> Iterator[tuple[str, Any, Any]]:
    yield "tensors", (FEATURES, LABELS), FEATURES
    yield "arrays", (FEATURES.numpy(), LABELS.numpy()), FEATURES.numpy()
    yield "dataset", TensorDataset(FEATURES, LABELS), TensorDataset(FEATURES)
    yield (
        "loader",
        DataLoader(TensorDataset(FEATURES, LABELS), batch_size=16),
        DataLoader(FEATURES, batch_size=16),
    )
    yield "store", bll.Features.from_tensors(FEATURES, LABELS), bll.Features.from_tensors(FEATURES)


@pytest.mark.parametrize(
    ("data", "inputs"), [form[1:] for form in forms()], ids=[form[0] for form in forms()]
)
def test_every_form_of_data_gives_the_same_fit(data: Any, inputs: Any) -> None:
    layer = replace(
        CLASSES, standardize="columns"
    )  # by default a store counts as features of a network, an array as a table
    expected = bll.fit(layer, (FEATURES, LABELS), inference=SHORT)
    fit = bll.fit(layer, data, inference=SHORT)
    assert same(draws(fit), draws(expected))
    # a loader's own batches are multiplied in other blocks: equal up to rounding
    assert torch.allclose(fit.predict(inputs).probs, expected.predict(FEATURES).probs, atol=1e-6)


def test_validation_data_stops_early_and_keeps_the_best() -> None:
    noise = torch.randint(3, (90,), generator=generator(1))
    inference = bll.SVI(num_epochs=60, batch_size=16, learning_rate=0.3, patience=3)
    fit = bll.fit(
        CLASSES, (FEATURES, noise), inference=inference, validation_data=(FEATURES, LABELS), calibration=None
    )
    losses = fit.trace.validation
    assert 3 < len(losses) < 60 and losses.index(min(losses)) == len(losses) - 4
    found = -float(fit.predict(FEATURES).log_prob(LABELS).mean())
    assert found == pytest.approx(min(losses), abs=2e-3)


def broken(features: Tensor, value: float) -> Tensor:
    copy = features.clone()
    copy[4, 1] = value
    return copy


BAD = [
    (CLASSES, (broken(FEATURES, float("nan")), LABELS), "row 4"),
    (CLASSES, (broken(FEATURES, float("inf")), LABELS), "infinite"),
    (REAL, (FEATURES, broken(VALUES[:, None].repeat(1, 2), float("nan"))), "row 4"),
    (CLASSES, (FEATURES, LABELS + 0.5), "integer"),
    (CLASSES, (FEATURES, torch.nn.functional.one_hot(LABELS, 3)), r"argmax"),
    (CLASSES, (FEATURES[:1], LABELS[:1]), "at least 2 rows"),
    (CLASSES, (FEATURES, LABELS[:-1]), "90 inputs and 89 targets"),
    (CLASSES, FEATURES, "inputs alone"),
    (CLASSES, (INPUTS, LABELS), r"\[N, D\]"),
]


@pytest.mark.parametrize(("layer", "data", "message"), BAD)
def test_bad_data_is_refused_before_work_starts(layer: bll.LastLayer, data: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bll.fit(layer, data, inference=SHORT)


def test_inputs_of_another_width_are_refused() -> None:
    fit = bll.fit(CLASSES, (FEATURES, LABELS), inference=SHORT)
    with pytest.raises(ValueError, match=r"\[N, 8\], got \[90, 5\]"):
        fit.predict(FEATURES[:, :5])
    with pytest.raises(ValueError, match="NaN"):
        fit.predict(broken(FEATURES, float("nan")))


def test_backbone_has_to_return_features() -> None:
    with pytest.raises(ValueError, match=r"shape \[90, D\], got .* \[90, 4, 4, 4\]"):
        bll.fit(CLASSES, (INPUTS, LABELS), nn.Conv2d(1, 4, 3), SHORT)
    frozen = Network().requires_grad_(False)
    with pytest.raises(ValueError, match="requires_grad"):
        bll.fit(CLASSES, (INPUTS, LABELS), frozen, JOINT)
    with pytest.raises(ValueError, match="expected a backbone"):
        bll.fit(CLASSES, (FEATURES, LABELS), None, JOINT)


def test_a_loss_that_is_not_finite_keeps_the_last_good_state() -> None:
    with pytest.warns(RuntimeWarning, match="not finite.* learning rate 1e\\+38"):
        fit = bll.fit(CLASSES, (FEATURES, LABELS), inference=bll.SVI(learning_rate=1e38, num_epochs=30))
    assert not fit.trace.converged
    assert bool(torch.isfinite(fit.predict(FEATURES).probs).all())


def test_the_site_behind_a_loss_that_is_not_finite_is_named() -> None:
    """Means of counts overflow: the density of the targets is lost, and that of the weights is not."""
    layer = bll.LastLayer(bll.likelihoods.Poisson(), bll.priors.Normal(1.0))
    with pytest.warns(RuntimeWarning, match="log density of site 'y' is not finite"):
        fit = bll.fit(layer, (FEATURES, LABELS), inference=bll.SVI(learning_rate=20.0, num_epochs=30))
    assert not fit.trace.converged
    assert bool(torch.isfinite(fit.posterior.sample(2)["weight"]).all())


def test_a_backbone_whose_features_are_lost_is_named() -> None:
    class Fragile(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.angle = nn.Parameter(torch.tensor(0.5))

        def forward(self, features: Tensor) -> Tensor:
            return features * torch.sqrt(1 - self.angle.square())

    backbone = Fragile()
    inference = bll.SVI(backbone_learning_rate=10.0, num_epochs=3, final_stage=False)
    with pytest.warns(RuntimeWarning, match="features of the backbone are not finite"):
        bll.fit(CLASSES, (FEATURES, LABELS), backbone, inference)
    assert float(backbone.angle.detach()) == 0.5


@pytest.mark.unchecked
def test_wrong_types_say_what_was_expected() -> None:
    with pytest.raises(TypeError, match=r"expected bll\.LastLayer"):
        bll.fit("layer", (FEATURES, LABELS))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="expected an inference"):
        bll.fit(CLASSES, (FEATURES, LABELS), inference="svi")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="expected a likelihood"):
        bll.LastLayer(likelihood="categorical")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="expected a prior"):
        bll.LastLayer(likelihood=bll.likelihoods.Categorical(3), prior=1.0)  # type: ignore[arg-type]
