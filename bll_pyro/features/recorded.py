"""Noticing that a network was trained on after a fit: its features, and with them every prediction, have changed."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Iterator
from typing import Any, Self

import torch
from torch import Tensor, nn


class Recorded:
    """The state of a network at one time, without a copy of it. It is not saved, and copies of it are empty.

    Of each floating-point parameter and buffer it keeps which tensor it was, torch's count of its changes in place, and its first
    number. Fused optimisers, changes of ``.data`` and the statistics of BatchNorm are not counted, but move that number.
    """

    def __init__(self, network: nn.Module | None = None) -> None:
        self._network = None if network is None else weakref.ref(network)
        tensors = [] if network is None else list(_tensors(network))
        self._tensors = [(weakref.ref(tensor), _version(tensor)) for tensor in tensors]
        self._numbers = _first_numbers(tensors)

    def __reduce__(self) -> tuple[type[Self], tuple[()]]:
        return type(self), ()

    def is_of(self, network: nn.Module) -> bool:
        """Whether it is a record of this network."""
        return self._network is not None and self._network() is network

    def differs(self, network: nn.Module) -> bool:
        """Whether a tensor of the network was changed or replaced since."""
        tensors = list(_tensors(network))
        if len(tensors) != len(self._tensors):
            return True
        pairs = zip(tensors, self._tensors, strict=True)
        if any(tensor is not known() or _version(tensor) != version for tensor, (known, version) in pairs):
            return True
        return not torch.allclose(_first_numbers(tensors), self._numbers, rtol=0, atol=0, equal_nan=True)


def noticed(recorded: Recorded | None, network: nn.Module) -> Recorded:
    """Warn if the network differs from its record; return the record to keep, a new one if there was none of it."""
    if recorded is None or not recorded.is_of(network):
        return Recorded(network)
    if recorded.differs(network):
        warnings.warn(
            "the backbone was changed after the fit (trained on, or other weights were loaded), so its features are no longer "
            "those that the last layer was fitted to, and predictions are not to be trusted; fit again, or fit a copy of it: "
            "bll.fit(..., backbone=copy.deepcopy(network))",
            RuntimeWarning,
            stacklevel=2,
        )
    return recorded


def _tensors(network: nn.Module) -> Iterator[Tensor]:
    """Floating-point parameters and buffers; whole numbers only count calls."""
    for part in network.modules():
        for tensor in (*part._parameters.values(), *part._buffers.values()):
            if tensor is not None and tensor.is_floating_point() and tensor.layout == torch.strided:
                yield tensor


def _version(tensor: Any) -> int:
    return 0 if tensor.is_inference() else int(tensor._version)


def _first_numbers(tensors: list[Tensor]) -> Tensor:
    """The first number of each tensor, on the CPU; one transfer from each device."""
    by_device: dict[torch.device, list[Tensor]] = {}
    for tensor in tensors:
        if tensor.numel() and not tensor.is_meta:
            by_device.setdefault(tensor.device, []).append(tensor.detach()[(0,) * tensor.dim()].float())
    return torch.cat(
        [torch.zeros(0, device="cpu"), *(torch.stack(some).cpu() for some in by_device.values())]
    )
