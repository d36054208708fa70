"""Models of timm with random weights, timm's own weights, or those of a local file."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

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
            "download the file on another machine and pass pretrained='weights.safetensors'"
        ) from error


def load_model(name: str, kwargs: Mapping[str, Any], file: Path) -> nn.Module:
    """Return the model with the weights of a local file; ValueError if the file does not hold all of them."""
    if not file.is_file() or file.suffix not in _WEIGHT_FILES:
        got = f"the file {str(file)!r}" if file.is_file() else f"{str(file)!r}, which is not a file"
        raise ValueError(
            f"{name}: expected pretrained to be True, False or a file of weights ({', '.join(_WEIGHT_FILES)}), got "
            f"{got}; a tag of timm's own weights is part of the name: 'resnet50.a1_in1k'"
        )
    # num_classes differs from the model's (0), so that timm drops a head in the file
    overlay = {"file": str(file), "source": None, "num_classes": 1000}
    states = []
    for seed in (0, 1):
        try:
            with isolated(seed):
                model = create(name, kwargs, pretrained=True, pretrained_cfg_overlay=overlay)
        except TypeError:  # a wrong keyword argument
            raise
        except Exception as error:  # a truncated or unrelated file, refused pickles, tensors of other shapes
            raise ValueError(
                f"{name}: expected weights of this model in {file}, but they could not be loaded "
                f"({_first_line(error)}); check that the file is complete, belongs to this model and holds tensors only"
            ) from error
        states.append(model.state_dict())
    # timm only logs missing weights; here they are found because they differ between two random initializations
    missing = [key for key, value in states[0].items() if not value.equal(states[1][key])]
    if missing:
        raise ValueError(
            f"{name}: expected weights of this model in {file}, but it lacks at least {len(missing)} of "
            f"{len(states[0])} tensors, {', '.join(missing[:3])} among them; use a file that was saved from this model"
        )
    return model


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
