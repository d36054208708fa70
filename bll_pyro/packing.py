"""Parts of a fit as plain data and tensors, and back: nothing else is ever built from a file."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bll_pyro.calibrated import content_hash
from bll_pyro.declaration import Declaration, from_plain, to_plain
from bll_pyro.frame import Frame
from bll_pyro.gaussian import LatentGaussian, WeightGaussian
from bll_pyro.inference import Trace
from bll_pyro.inference.exact.linear_gaussian import LinearGaussian
from bll_pyro.inference.exact.statistics import SufficientStatistics
from bll_pyro.posterior import Posterior


def pack(value: Any, tensors: dict[str, Tensor], path: str) -> Any:
    """Turn a part of a fit into plain data; its tensors go into ``tensors``."""
    if isinstance(value, Declaration):
        return {"declaration": to_plain(value, tensors, path)}
    if isinstance(value, (Tensor, np.ndarray)):
        tensors[path] = torch_tensor(value)
        return {"tensor": path}
    if is_dataclass(value) and type(value) is _kinds().get(type(value).__name__):
        parts = {f.name: pack(getattr(value, f.name), tensors, f"{path}.{f.name}") for f in fields(value)}
        return {"kind": type(value).__name__, "parts": parts}
    if isinstance(value, dict):
        return {"dictionary": {str(k): pack(v, tensors, f"{path}.{k}") for k, v in value.items()}}
    if isinstance(value, (list, tuple)):
        name = "list" if isinstance(value, list) else "tuple"
        return {name: [pack(v, tensors, f"{path}.{i}") for i, v in enumerate(value)]}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"{path}: expected tensors, numbers, strings or declarations, got {type(value).__name__}")


def unpack(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Inverse of :func:`pack`."""
    if not isinstance(value, dict):
        return value
    ((kind, content), *rest) = value.items()
    match kind:
        case "declaration":
            return from_plain(content, tensors)
        case "tensor":
            return tensors[content]
        case "kind":
            return _kinds()[content](**{k: unpack(v, tensors) for k, v in rest[0][1].items()})
        case "dictionary":
            return {k: unpack(v, tensors) for k, v in content.items()}
        case "list":
            return [unpack(v, tensors) for v in content]
        case "tuple":
            return tuple(unpack(v, tensors) for v in content)
    raise ValueError(f"expected a part of a fit, got {kind!r}; the folder was written by another version")


def fingerprint(value: Any) -> str:
    """sha256 of a part of a fit: the same after saving and loading, different for different content."""
    tensors: dict[str, Tensor] = {}
    return content_hash(pack(value, tensors, "part"), tensors)


def torch_tensor(value: Tensor | np.ndarray) -> Tensor:
    """A contiguous copy of the tensor on the CPU, as safetensors needs it."""
    tensor = value if isinstance(value, Tensor) else torch.as_tensor(value)
    return tensor.detach().cpu().contiguous().clone()


def _kinds() -> dict[str, type]:
    """Classes that a fit is made of; nothing else is ever built from a file."""
    found: dict[str, type] = {
        cls.__name__: cls for cls in (Frame, LatentGaussian, LinearGaussian, SufficientStatistics, Trace)
    }
    families: list[type] = [Posterior, WeightGaussian]
    while families:
        cls = families.pop()
        found[cls.__name__] = cls
        families.extend(cls.__subclasses__())
    return found
