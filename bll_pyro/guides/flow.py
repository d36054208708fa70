"""Normalising flows: a Normal pushed through learned bijections, Pyro's ``AutoNormalizingFlow``."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from pyro.distributions import TransformModule
from pyro.distributions.transforms import (
    AffineAutoregressive,
    ComposeTransformModule,
    SplineAutoregressive,
)
from pyro.infer.autoguide import AutoNormalizingFlow
from pyro.nn import AutoRegressiveNN
from torch import Tensor, nn
from torch.distributions import constraints

from bll_pyro.checks import count, positive
from bll_pyro.declaration import Declaration
from bll_pyro.guides.base import Guide, Start


class Bijection(Declaration):
    """One layer of a flow over a vector of n unknowns."""

    family: ClassVar[str] = "flows"

    @abstractmethod
    def make(self, size: int) -> TransformModule:
        """The layer, with parameters of its own, at or near the identity."""

    @abstractmethod
    def num_numbers(self, size: int) -> int:
        """Number of its parameters."""


class NearIdentity(nn.Module):
    """An autoregressive network whose outputs start at given values and grow slowly.

    Adam moves every weight by the same step, so the output of a layer of width H moves H times as fast. It is divided by
    the width, so that one learning rate fits all sizes.
    """

    def __init__(self, network: AutoRegressiveNN, starts: tuple[float, ...]) -> None:
        super().__init__()
        self.network, self.width, self.starts = network, network.hidden_dims[-1], starts
        self.permutation = network.permutation
        with torch.no_grad():
            network.layers[-1].weight.zero_()
            network.layers[-1].bias.zero_()

    def forward(self, values: Tensor) -> tuple[Tensor, ...]:
        outputs = self.network(values)
        return tuple(start + output / self.width for start, output in zip(self.starts, outputs, strict=True))


def check_width(width: int | None, size: int, owner: str) -> int:
    """Width of the hidden layer: as declared, or as many units as unknowns (at least 8)."""
    if width is None:
        return max(8, size)
    if width < size:
        raise ValueError(
            f"{owner}(hidden_width=...): expected at least the number of unknowns, {size}, got {width}; "
            "an autoregressive network needs as many hidden units as inputs. Leave it at None"
        )
    return width


@dataclass(frozen=True, eq=False)
class InverseAutoregressive(Bijection):
    """``y_i = m_i(x_{<i}) + s_i(x_{<i}) x_i`` (Kingma et al. 2016), in a random order of the unknowns.

    Parameters
    ----------
    hidden_width
        Units of the hidden layer; None takes the number of unknowns.
    """

    hidden_width: int | None = None

    def __post_init__(self) -> None:
        if self.hidden_width is not None:
            count(self.hidden_width, "hidden_width", "InverseAutoregressive")

    def make(self, size: int) -> TransformModule:
        """The layer; it starts at the identity."""
        width = check_width(self.hidden_width, size, "InverseAutoregressive")
        return AffineAutoregressive(NearIdentity(AutoRegressiveNN(size, [width]), (0.0, 0.0)))

    def num_numbers(self, size: int) -> int:
        """``3 n H``."""
        return 3 * size * (self.hidden_width or size)


@dataclass(frozen=True, eq=False)
class Spline(Bijection):
    """A monotone rational spline of each unknown, given those before it (Durkan et al. 2019; Dolatabadi et al. 2020).

    Parameters
    ----------
    hidden_width
        Units of the hidden layer; None takes the number of unknowns.
    num_bins
        Pieces of the spline.
    bound
        The spline acts on ``[-bound, bound]``, in standard deviations; outside it is the identity.
    """

    hidden_width: int | None = None
    num_bins: int = 8
    bound: float = 4.0

    def __post_init__(self) -> None:
        if self.hidden_width is not None:
            count(self.hidden_width, "hidden_width", "Spline")
        count(self.num_bins, "num_bins", "Spline")
        positive(self.bound, "bound", "Spline")

    @property
    def _sizes(self) -> list[int]:
        # widths, heights, inner slopes, and a weight inside each piece (order "linear")
        return [self.num_bins, self.num_bins, self.num_bins - 1, self.num_bins]

    def make(self, size: int) -> TransformModule:
        """The layer; it starts at the identity: equal pieces, and slopes softplus(0.54) = 1 between them."""
        width = check_width(self.hidden_width, size, "Spline")
        network = AutoRegressiveNN(size, [width], param_dims=self._sizes)
        starts = (0.0, 0.0, math.log(math.e - 1), 0.0)
        return SplineAutoregressive(
            size, NearIdentity(network, starts), count_bins=self.num_bins, bound=self.bound, order="linear"
        )

    def num_numbers(self, size: int) -> int:
        """``n H (4 bins)``."""
        return (1 + sum(self._sizes)) * size * (self.hidden_width or size)


class LocationScale(TransformModule):
    """The last layer of every flow, ``y = loc + scale x``, with the location and scale of the start."""

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    def __init__(self, loc: Tensor, scale: Tensor) -> None:
        super().__init__(cache_size=1)
        self.loc = nn.Parameter(loc.clone())
        self.log_scale = nn.Parameter(scale.log())

    def _call(self, x: Tensor) -> Tensor:
        return self.loc + self.log_scale.exp() * x

    def _inverse(self, y: Tensor) -> Tensor:
        return (y - self.loc) * (-self.log_scale).exp()

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Sum of the logarithms of the scales."""
        return self.log_scale.sum().expand(x.shape[:-1])


class FlowGuide(AutoNormalizingFlow):
    """Pyro's guide. Its layers are made at once, and the last one has the location and scale of the start."""

    def __init__(self, model: Any, start: Start, layer: Bijection, num_layers: int) -> None:
        loc, scale = start.latent_loc, start.latent_scale

        def make(size: int) -> ComposeTransformModule:
            # a single unknown has no others to depend on
            layers = [layer.make(size) for _ in range(num_layers if size > 1 else 0)]
            return ComposeTransformModule([*layers, LocationScale(loc, scale)]).to(loc)

        super().__init__(model, make)
        self.transform = make(len(loc))
        self._prototype_tensor = loc


@dataclass(frozen=True, eq=False)
class Flow(Guide):
    """A normalising flow, Pyro's ``AutoNormalizingFlow``: a Normal pushed through learned bijections.

    It can be skewed, curved and heavy-tailed where a Gaussian cannot. It is trained by draws of the weights, and its
    posterior is a set of draws: meant for small last layers (some hundred weights), as a check on the Gaussian families.

    Parameters
    ----------
    num_layers
        Number of bijections in a row.
    layer
        What they are: :class:`InverseAutoregressive` (default) or :class:`Spline`.
    """

    num_layers: int = 2
    layer: Bijection = InverseAutoregressive()

    def __post_init__(self) -> None:
        count(self.num_layers, "num_layers", "Flow")
        if not isinstance(self.layer, Bijection):
            raise TypeError(
                f"Flow(layer=...): expected a bijection such as bll.guides.InverseAutoregressive(), got {self.layer!r}"
            )

    @property
    def can_rotate(self) -> bool:
        """True: its layers mix all unknowns, and principal axes are a better start."""
        return True

    def build(self, model: Any, start: Start) -> FlowGuide:
        """The guide of ``model``."""
        return FlowGuide(model, start, self.layer, self.num_layers)

    def num_numbers(self, num_outputs: int, num_columns: int) -> int:
        """Parameters of all layers."""
        return self.num_layers * self.layer.num_numbers(num_outputs * num_columns)
