"""The declaration of how a backbone is trained: what it takes, how it prints, and that it is kept."""

import functools
import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import bll_pyro as bll
from bll_pyro.declaration import from_plain, to_plain

BackboneTraining, Imported = bll.BackboneTraining, bll.Imported
RADAM = Imported("torch.optim.radam.RAdam", {"eps": 1e-6})
FULL = BackboneTraining(
    optimizer=functools.partial(torch.optim.RAdam, eps=1e-6),
    schedule="torch.optim.lr_scheduler.OneCycleLR",
    layer_decay=0.75,
    weight_decay=0.05,
    accumulate=4,
    ema_decay=0.99,
    compile="eager",
    frozen_epochs=2,
    kl_warmup=1.5,
)


def constant_schedule(optimizer: Any, num_steps: int) -> Any:
    return torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0, total_iters=num_steps)


def test_factories_of_every_form_are_one_declaration() -> None:
    partial = functools.partial
    forms = [
        partial(torch.optim.RAdam, eps=1e-6),
        partial(partial(torch.optim.RAdam, eps=1.0), eps=1e-6),
        RADAM,
        Imported("torch.optim.radam.RAdam", {"eps": 1e-6}),
    ]
    for form in forms:
        made = BackboneTraining(optimizer=form)
        assert made == BackboneTraining(optimizer=RADAM) and hash(made) == hash(
            BackboneTraining(optimizer=RADAM)
        )
        assert made.optimizer.found() is torch.optim.RAdam
    assert BackboneTraining(optimizer="torch.optim.RAdam").optimizer.found() is torch.optim.RAdam
    assert BackboneTraining(optimizer=partial(torch.optim.RAdam, eps=1e-5)) != BackboneTraining(
        optimizer=RADAM
    )


def test_it_prints_and_comes_back_from_plain_data() -> None:
    plain = json.loads(json.dumps(to_plain(FULL, {})))
    assert from_plain(plain, {}) == FULL
    assert "optimizer=Imported(path='torch.optim.radam.RAdam', arguments={eps: 1e-06})" in repr(FULL)
    assert "accumulate=4" in repr(FULL)


def test_it_is_saved_with_the_fit_and_printed(tmp_path: Path) -> None:
    x = torch.randn(80, 3, generator=torch.Generator().manual_seed(0))
    training = BackboneTraining("sgd", functools.partial(torch.optim.lr_scheduler.StepLR, step_size=1))
    svi = bll.SVI(backbone_learning_rate=1e-3, num_epochs=1, final_stage=False, training=training)
    layer = bll.LastLayer(bll.likelihoods.Gaussian(), bll.priors.Normal(1.0))
    fit = bll.fit(layer, (x, x[:, 0]), nn.Linear(3, 2), svi)
    fit.save(tmp_path)
    assert bll.load(tmp_path, backbone=nn.Linear(3, 2)).inference == svi
    assert "training=BackboneTraining(optimizer='sgd'" in repr(fit.inference)


def test_files_without_it_stay_as_they_were() -> None:
    """A field that is not given is not written, so that hashes of earlier fits hold."""
    assert "training" not in to_plain(bll.SVI(backbone_learning_rate=1e-3), {})


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "optimizer": (
        {"optimizer": "adm"},
        "optimizer=.*expected one of adam, adamw, sgd, or an import path .* got 'adm'",
    ),
    "optimizer of no kind": (
        {"optimizer": 3},
        "optimizer=.*expected a name, a class, a function, or an import path, got 3",
    ),
    "lambda": ({"optimizer": lambda groups, lr: None}, "what can be imported by its name, got .*lambda"),
    "nothing there": (
        {"optimizer": "torch.optim.Adm"},
        "torch.optim.Adm.*something that can be imported, got: .*Adm",
    ),
    "no function": ({"optimizer": "torch.optim"}, "expected a class or function, got module"),
    "positional": (
        {"optimizer": functools.partial(torch.optim.SGD, 0.1)},
        "partial with keyword arguments alone",
    ),
    "rate": (
        {"optimizer": Imported("torch.optim.SGD", {"lr": 0.1})},
        "other than lr.*SVI.backbone_learning_rate",
    ),
    "decay": (
        {"optimizer": Imported("torch.optim.SGD", {"weight_decay": 0.1})},
        "other than weight_decay.*BackboneTraining.weight_decay",
    ),
    "schedule": ({"schedule": "linear"}, "schedule=.*expected one of cosine, constant, .* got 'linear'"),
    "warmup": ({"warmup": -1}, "warmup=.*expected a number >= 0, got -1"),
    "warmup of none": ({"warmup": None}, "warmup=.*expected a number >= 0, got None"),
    "warmup of a scheduler": (
        {"warmup": 1, "schedule": "torch.optim.lr_scheduler.StepLR"},
        "expected a schedule with a name",
    ),
    "layer_decay": ({"layer_decay": 1.5}, "layer_decay=.*between 0 and 1, got 1.5"),
    "layer_decay of 0": ({"layer_decay": 0}, "layer_decay=.*between 0 and 1, got 0"),
    "weight_decay": ({"weight_decay": "much"}, "weight_decay=.*expected a number >= 0, got 'much'"),
    "weight_decay nan": ({"weight_decay": float("nan")}, "weight_decay=.*expected a number >= 0, got nan"),
    "accumulate": ({"accumulate": 0}, "accumulate=.*whole number >= 1, got 0"),
    "ema_decay": ({"ema_decay": 1.0}, "ema_decay=.*between 0 and 1, got 1.0"),
    "compile": ({"compile": 1}, "compile=.*True, False, or the name of a backend"),
    "frozen_epochs": ({"frozen_epochs": 1.5}, "frozen_epochs=.*whole number >= 0, got 1.5"),
    "kl_warmup": ({"kl_warmup": True}, "kl_warmup=.*expected a number >= 0, got True"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_values_are_named(kind: str) -> None:
    given, message = WRONG[kind]
    with pytest.raises((ValueError, TypeError), match=f"(?s){message}"):
        BackboneTraining(**given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"training": FULL}, "SVI.training=.*expected backbone_learning_rate"),
        (
            {"training": "adamw", "backbone_learning_rate": 1e-3},
            "SVI.training=.*bll.BackboneTraining.*got 'adamw'",
        ),
        (
            {"training": BackboneTraining(frozen_epochs=3), "backbone_learning_rate": 1e-3, "num_epochs": 3},
            "num_epochs=3.*frozen_epochs",
        ),
        ({"backbone_learning_rate": 1e-3, "precision": "bf16"}, "precision=.*32-true.*got 'bf16'"),
    ],
)
def test_what_does_not_go_with_svi_is_named_where_it_is_declared(given: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=f"(?s){message}"):
        bll.SVI(**given)


def test_an_import_path_is_looked_up_late_where_its_module_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A fit whose optimizer came from a module that is not there can be loaded."""
    given = Imported("bll_tests_own.optimizers.Lion", {"betas": [0.9, 0.99]})
    with pytest.raises(ValueError, match="something that can be imported"):
        given.found()
    module = types.ModuleType("bll_tests_own")
    module.optimizers = types.SimpleNamespace(Lion=torch.optim.SGD)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "bll_tests_own", module)
    assert given.found() is torch.optim.SGD


@pytest.mark.parametrize("path", ["Adam", "torch..Adam", "torch.optim.SGD()", 3])
def test_what_is_no_path_is_refused(path: Any) -> None:
    with pytest.raises(ValueError, match="expected module and name"):
        Imported(path)


def test_arguments_that_cannot_be_written_are_refused() -> None:
    with pytest.raises(TypeError, match=r"lr_lambda: .*function, which cannot be written.*write a function"):
        Imported("torch.optim.lr_scheduler.LambdaLR", {"lr_lambda": lambda step: 1.0})
