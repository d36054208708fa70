"""Backbones of an experiment: what makes the network, declared.

A function of the user's is :class:`bll_pyro.Imported`; random features of a table are a declaration of the library.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import nn

from bll_pyro.checks import positive_or_none
from bll_pyro.cli.usage import UsageError
from bll_pyro.declaration import Declaration
from bll_pyro.features.from_timm import timm_backbone
from bll_pyro.features.from_transformers import transformers_backbone
from bll_pyro.features.random_fourier import RandomFeatures
from bll_pyro.features.splitting import split_last_layer
from bll_pyro.inference.svi.imported import Imported
from bll_pyro.scope import isolated


class Network(Declaration):
    """A backbone that is made when it is needed."""

    family: ClassVar[str] = "backbones"

    @abstractmethod
    def make(self) -> nn.Module:
        """The module, from inputs to features ``[N, D]``; random weights are drawn from torch's random state."""


@dataclass(frozen=True, eq=False)
class Timm(Network):
    """A network of timm without its head: :func:`bll_pyro.timm_backbone`.

    Parameters
    ----------
    name, pretrained, checkpoint, unfreeze
        As there.
    arguments
        Further arguments of the model.
    """

    name: str
    pretrained: bool = False
    checkpoint: str | None = None
    unfreeze: bool | int | str | tuple[str, ...] = True
    arguments: dict[str, Any] = field(default_factory=dict)

    def make(self) -> nn.Module:
        """The network."""
        return timm_backbone(
            self.name,
            pretrained=self.pretrained,
            checkpoint=self.checkpoint,
            unfreeze=self.unfreeze,
            **self.arguments,
        )


@dataclass(frozen=True, eq=False)
class Transformers(Network):
    """An encoder of texts: :func:`bll_pyro.transformers_backbone`.

    Parameters
    ----------
    name
        On the hub, or a folder.
    pooling, unfreeze, max_length
        As there.
    arguments
        Further arguments of ``AutoModel.from_pretrained``.
    """

    name: str
    pooling: str = "mean"
    unfreeze: bool | int | str | tuple[str, ...] | None = None
    max_length: int | None = None
    arguments: dict[str, Any] = field(default_factory=dict)

    def make(self) -> nn.Module:
        """The network."""
        return transformers_backbone(
            self.name,
            self.pooling,
            unfreeze=self.unfreeze,
            max_length=self.max_length,
            **self.arguments,
        )


@dataclass(frozen=True, eq=False)
class TrainedNetwork(Network):
    """A trained network with its own head, which becomes the centre of the prior: :func:`bll_pyro.bayesianize`.

    Parameters
    ----------
    network
        The class or function that makes the network with its weights.
    prior_scale
        As there; None finds one.
    """

    network: Imported
    prior_scale: float | None = None

    def __post_init__(self) -> None:
        positive_or_none(self.prior_scale, "prior_scale", "TrainedNetwork")

    def whole(self) -> nn.Module:
        """The network with its head."""
        return _module_of(self.network)

    def make(self) -> nn.Module:
        """The network without its head."""
        return split_last_layer(self.whole())[0]


def make_backbone(
    declared: Network | Imported | RandomFeatures | None, seed: int
) -> nn.Module | RandomFeatures | None:
    """The module that is declared, random by the seed; random features stay declared until the fit sees the training rows."""
    if declared is None or isinstance(declared, RandomFeatures):
        return declared
    with isolated(seed):
        return declared.make() if isinstance(declared, Network) else _module_of(declared)


def _module_of(declared: Imported) -> nn.Module:
    made = declared.found()(**declared.arguments)
    if not isinstance(made, nn.Module):
        raise UsageError(
            f"backbone: expected a torch.nn.Module from {declared.path}, got {type(made).__name__}; name a class or function that "
            "makes one"
        )
    return made
