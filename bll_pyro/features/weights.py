"""Models of timm with random weights, timm's own weights, or those of a local file."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bll_pyro.features.checkpoints import differences, foreign_names, read_weights
from bll_pyro.scope import isolated

_WEIGHT_FILES = (".safetensors", ".pth", ".pt", ".bin", ".tar", ".ckpt")  # suffixes of files that timm loads


def check_name(name: str) -> None:
    """Raise a ValueError with the nearest names if timm has no model, or no weights, of this name."""
    import timm

    if ":" in name:
        return
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        near = difflib.get_close_matches(architecture, timm.list_models(), n=5, cutoff=0.4)
        raise ValueError(
            f"expected the name of a timm model, got {name!r}; nearest: {', '.join(near) or 'none'} "
            "(all: timm.list_models())"
        )
    tags = [full.partition(".")[2] for full in timm.list_pretrained(f"{architecture}.*")]
    if tag and tag not in tags:
        near = difflib.get_close_matches(tag, tags, n=5, cutoff=0.0)
        raise ValueError(
            f"expected weights that timm has for {architecture}, got the tag {tag!r}; nearest: "
            f"{', '.join(near) or 'none'}"
        )


def create(name: str, kwargs: Mapping[str, Any], **weights: Any) -> nn.Module:
    """Return the timm model without its head, with random weights unless `weights` asks for others."""
    import timm

    return timm.create_model(name, **{"pretrained": False, **weights}, num_classes=0, **kwargs)


def download(name: str, kwargs: Mapping[str, Any]) -> nn.Module:
    """Return the model with timm's weights, from its cache or the network; ValueError if neither has them."""
    import timm

    if ":" not in name and not timm.models.is_model_pretrained(name.partition(".")[0]):
        raise ValueError(
            f"{name}: expected a model that timm has weights for, got one without; use pretrained=False and train it, "
            "or choose one from timm.list_models(pretrained=True)"
        )
    try:
        return create(name, kwargs, pretrained=True)
    except TypeError:  # a wrong keyword argument
        raise
    except Exception as error:  # errors of network, hub and files, whose classes differ between versions
        raise ValueError(
            f"{name}: expected timm's pretrained weights, but its cache does not have them and they could not be "
            f"downloaded or loaded ({type(error).__name__}: {_first_line(error)}); connect to the network once, or "
            "download the file on another machine and pass checkpoint='weights.safetensors'"
        ) from error


def model_from_file(name: str, kwargs: Mapping[str, Any], file: Path) -> nn.Module:
    """Return the model with the weights of a local file; ValueError if the file is of another network."""
    if not file.is_file() or file.suffix not in _WEIGHT_FILES:
        got = f"the file {str(file)!r}" if file.is_file() else f"{str(file)!r}, which is not a file"
        raise ValueError(
            f"{name}: expected checkpoint to be a file of weights ({', '.join(_WEIGHT_FILES)}), or pretrained=True or False, got "
            f"{got}; a tag of timm's own weights is part of the name: 'resnet50.a1_in1k'"
        )
    stored = read_weights(file, f"{name}: expected weights of this model in {file}")
    # timm renames and resizes what is in files, and only logs what is missing: a file of NaN shows what a file sets
    marked = {key: value * torch.nan if value.is_floating_point() else value for key, value in stored.items()}
    try:
        with isolated(0):
            model = _filled(name, kwargs, {"file": str(file)})
            probe = _filled(name, kwargs, {"state_dict": marked}).state_dict()
    except TypeError:  # a wrong keyword argument
        raise
    except Exception as error:  # tensors of other shapes, and whatever timm's conversions raise
        with isolated(0):
            found = differences(stored, create(name, kwargs))
        raise ValueError(_of_another(name, file, found or _first_line(error))) from error
    missing = [key for key, v in probe.items() if v.is_floating_point() and v.numel() and not v.isnan().any()]
    if missing or foreign_names(stored, model):
        raise ValueError(_of_another(name, file, differences(stored, model, missing)))
    return model


def _filled(name: str, kwargs: Mapping[str, Any], source: Mapping[str, Any]) -> nn.Module:
    """The model with weights from a file or a state; a head in them is dropped, since the model has no classes."""
    overlay = {"source": None, "custom_load": False, "num_classes": 1000, **source}
    return create(name, kwargs, pretrained=True, pretrained_cfg_overlay=overlay)


def _of_another(name: str, file: Path, found: str) -> str:
    return (
        f"{name}: expected weights of this model in {file}, but they are of another network: {found}; name the model that the file "
        "was saved from, with the arguments that it was made with"
    )


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
