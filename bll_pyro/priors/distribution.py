"""Any Pyro distribution as the prior of the weight."""

from __future__ import annotations

from dataclasses import dataclass

import pyro
import pyro.distributions as pyro_dist
import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import constraints

from bll_pyro.priors.base import Prior, Shape, broadcasts


@dataclass(frozen=True, eq=False)
class Distribution(Prior):
    """``weight ~ dist``: one distribution for every weight, one for each, or one for the whole matrix.

    =========================== ===================== =====================================================
    batch shape                 event shape           the weight
    =========================== ===================== =====================================================
    broadcasts to ``[K, D]``    ``[]``                independent weights
    broadcasts to ``[K]``       ``[D]``               independent rows, e.g. ``MultivariateNormal``
    ``[]``                      ``[K, D]``            one joint distribution
    =========================== ===================== =====================================================

    Independent weights are trained in output space; joint ones on Pyro's general path, with draws of the weights.

    Parameters
    ----------
    dist
        A distribution over all real numbers, on the scale of the standardised features.
    """

    dist: pyro_dist.Distribution

    def __post_init__(self) -> None:
        given = self.dist
        if not isinstance(given, pyro_dist.Distribution):
            raise TypeError(
                f"Distribution(...): expected a Pyro distribution such as pyro.distributions.Normal(0.0, 1.0), got {given!r}"
            )
        if base_support(given) is not constraints.real:
            raise ValueError(
                f"Distribution(...): expected a distribution over all real numbers, since a weight may have either sign, "
                f"got {type(given).__name__} with support {given.support}"
            )
        if len(given.batch_shape) + len(given.event_shape) > 2:
            shape = list(given.batch_shape + given.event_shape)
            raise ValueError(f"Distribution(...): expected at most two dimensions, [K, D], got {shape}")

    @property
    def _elementwise(self) -> pyro_dist.Distribution | None:
        """The distribution of single weights, with all dimensions in the batch; None where they are dependent."""
        given = self.dist
        while isinstance(given, torch.distributions.Independent):
            given = given.base_dist
        return given if not given.event_shape else None

    def check(self, shape: Shape) -> None:
        """Raise if the distribution does not broadcast to the weight's shape."""
        given = self.dist
        broadcasts(
            tuple(given.batch_shape + given.event_shape), shape, f"Distribution({type(given).__name__})"
        )
        num_event = len(given.event_shape)
        if self._elementwise is None and tuple(given.event_shape) != tuple(shape[2 - num_event :]):
            raise ValueError(
                f"Distribution({type(given).__name__}): expected the event shape {list(shape[2 - num_event :])}, "
                f"got {list(given.event_shape)}"
            )

    @property
    def has_density(self) -> bool:  # type: ignore[override]
        """Whether the weights are independent."""
        return self._elementwise is not None

    @property
    def needs_noise(self) -> bool:  # type: ignore[override]
        """False for Normal weights."""
        return not isinstance(self._elementwise, torch.distributions.Normal)

    def distribution(self, shape: Shape, **hyper: Tensor) -> pyro_dist.Distribution:
        """The distribution of single weights, batch shape ``[K, D]``."""
        given = self._elementwise
        if given is None:
            raise TypeError(
                f"Distribution({type(self.dist).__name__}): expected an inference that draws all weights together, such "
                "as bll.SVI(), since the weights are dependent; this inference asks for independent weights"
            )
        return given.expand(shape)

    def sample(self, shape: Shape, **learned: Tensor) -> Float[Tensor, "*S K D"]:
        """The Pyro program: the site ``weight``."""
        self.check(shape)
        single = self._elementwise
        given, num_event = (self.dist, len(self.dist.event_shape)) if single is None else (single, 0)
        return pyro.sample("weight", given.expand(shape[: 2 - num_event]).to_event(2 - num_event))

    def _closed_form(
        self, prior: pyro_dist.Distribution, loc: Float[Tensor, "*S K D"], scale: Float[Tensor, "*S K D"]
    ) -> Float[Tensor, "*S K D"] | None:
        if not isinstance(prior, torch.distributions.Normal):
            return None
        return prior.log_prob(loc) - 0.5 * (scale / prior.scale).square()


def base_support(given: torch.distributions.Distribution) -> constraints.Constraint | None:
    """Support of one number of a distribution."""
    support = given.support
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return constraints.real if support in (constraints.real, constraints.real_vector) else support
