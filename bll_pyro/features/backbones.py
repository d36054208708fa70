"""Backbones of known libraries, which a saved fit rebuilds by itself: from plain data, without network and without pickle."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from torch import nn

from bll_pyro.checks import plain_numbers
from bll_pyro.features.unfreezing import Unfreeze, unfrozen_names


class Backbone(nn.Module, ABC):
    """A network of a known library without its head: inputs to features ``[N, D]``.

    Attributes
    ----------
    model
        The network, with all that determines the features.
    name
        Its name in the library.
    unfreeze
        Parts that joint training updates; see :func:`bll_pyro.timm_backbone`.
    """

    def __init__(self, model: nn.Module, *, name: str, unfreeze: Unfreeze) -> None:
        super().__init__()
        self.model, self.name = model, name
        unfreeze = plain_numbers(unfreeze)
        self.unfreeze = unfreeze if isinstance(unfreeze, (int, str)) else tuple(unfreeze)

    def _unfreeze(self, part: nn.Module) -> None:
        """Let gradients through to the chosen parameters of ``part`` and to no others."""
        trainable = unfrozen_names(part, self.unfreeze)
        for path, parameter in part.named_parameters():
            parameter.requires_grad_(path in trainable)

    @property
    @abstractmethod
    def config(self) -> dict[str, Any]:
        """Plain data from which :func:`rebuilt` builds the same network; the weights are kept elsewhere."""


def rebuilt(config: Mapping[str, Any]) -> Backbone:
    """The network of a :attr:`Backbone.config` with random weights, for ``load_state_dict`` afterwards; never downloads."""
    if config.get("library", "timm") == "timm":  # fits of version 0.1.0 do not name it
        from bll_pyro.features.from_timm import TimmBackbone

        return TimmBackbone.from_config(config)
    if config["library"] == "bll_pyro":
        from bll_pyro.features.random_fourier import RandomFourierBackbone

        return RandomFourierBackbone.from_config(config)
    from bll_pyro.features.from_transformers import TransformersBackbone

    return TransformersBackbone.from_config(config)
