"""The state of a backbone on disk: its tensors and plain data, under the names of the module without wrappers.

``torch.compile`` and ``DataParallel`` put a module into another one, so that its weights are called ``_orig_mod.weight`` or
``module.weight``. They are stored as ``weight``, and go back into the plain module and into a wrapped one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

_WRAPPERS = re.compile(r"(?<![^.])(_orig_mod|module)\.")
_REMEDY = "save the head alone, fit.head.save(...), and keep the backbone in a file of its own"


def unwrapped(backbone: nn.Module) -> nn.Module:
    """The module inside ``torch.compile``, ``DataParallel`` and ``DistributedDataParallel``."""
    while (inner := _inside(backbone)) is not None:
        backbone = getattr(backbone, inner)
    return backbone


def stored_state(backbone: nn.Module) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors of a backbone, and plain data of modules with ``get_extra_state``, under plain names; nothing is copied.

    Raises
    ------
    ValueError
        With the name of what cannot be stored: quantised, sparse or otherwise special tensors, tensors without values, and
        extra state that is not made of tensors, numbers, strings, lists and dictionaries.
    """
    state = backbone.state_dict()
    names = _plain_names(backbone, state)
    tensors: dict[str, Tensor] = {}
    extra: dict[str, Any] = {}
    for key, value in state.items():
        if isinstance(value, Tensor) and (special := _special(value)):
            raise ValueError(
                f"save: expected a backbone of plain tensors, got {special} {key!r} in {type(backbone).__name__}; {_REMEDY}"
            )
        if isinstance(value, Tensor):
            tensors[names[key]] = value
        elif (foreign := _foreign(value)) is None:
            extra[names[key]] = value
        else:
            raise ValueError(
                f"save: expected state of tensors, numbers, strings, lists and dictionaries, got {foreign} in {key!r} of "
                f"{type(backbone).__name__}; {_REMEDY}"
            )
    return tensors, extra


def fill(backbone: nn.Module, tensors: dict[str, Tensor], extra: dict[str, Any]) -> None:
    """Put a stored state into a backbone; ValueError, with the backbone as it was, if it is of another architecture."""
    state = backbone.state_dict()
    own = {plain: key for key, plain in _plain_names(backbone, state).items()}
    before = {key: v.clone() for key, v in state.items() if isinstance(v, Tensor) and not is_lazy(v)}
    try:
        stored: dict[str, Any] = {**tensors, **extra}
        # fits of version 0.1.0 have the wrappers in their names
        backbone.load_state_dict(
            {own.get(name, own.get(_WRAPPERS.sub("", name), name)): value for name, value in stored.items()}
        )
    except (RuntimeError, TypeError, KeyError, ValueError, AttributeError) as error:
        with torch.no_grad():
            for key, value in before.items():
                state[key].copy_(value)
        raise ValueError(
            f"load: expected a backbone of the saved architecture, got {type(backbone).__name__}: {error}; "
            "build it as it was when the fit was made"
        ) from error


def _inside(module: nn.Module) -> str | None:
    """Name under which a wrapper holds its module; None for any other module."""
    if isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        return "module"
    return "_orig_mod" if type(module).__name__ == "OptimizedModule" else None


def _plain_names(backbone: nn.Module, keys: Iterable[str]) -> dict[str, str]:
    """Keys of the state, each with the name that it has without wrappers."""
    named = backbone.named_modules(remove_duplicate=False)
    wrappers = [(path, inner) for path, part in named if (inner := _inside(part)) is not None]
    names: dict[str, str] = {}
    for key in keys:
        plain = key
        for path, inner in reversed(
            wrappers
        ):  # from the inside out, so that the path of the next one is as it was
            start = f"{path}." if path else ""
            if plain.startswith(f"{start}{inner}."):
                plain = start + plain.removeprefix(f"{start}{inner}.")
        names[key] = plain
    return names


def _special(tensor: Tensor) -> str:
    """What keeps a tensor from being stored; empty for a plain one."""
    from safetensors.torch import save

    if is_lazy(tensor) or tensor.is_meta:
        return "a tensor without values"
    if tensor.is_quantized or type(tensor).__torch_dispatch__ is not Tensor.__torch_dispatch__:
        return "a quantised or otherwise special tensor"
    if tensor.layout != torch.strided:
        return "a sparse tensor"
    try:
        save({"": torch.empty(0, dtype=tensor.dtype)})
    except (KeyError, ValueError, TypeError):
        return f"a tensor of {tensor.dtype}"
    return ""


def _foreign(value: Any) -> str | None:
    """The first part of extra state that would not come back as it is; None if all of it does."""
    if value is None or type(value) in (bool, int, float, str):
        return None
    if type(value) in (list, tuple):
        return next((found for part in value if (found := _foreign(part))), None)
    if isinstance(value, dict) and all(type(key) is str for key in value):
        return _foreign(list(value.values()))
    if isinstance(value, Tensor):
        return _special(value) or None
    return f"a {type(value).__name__}"
