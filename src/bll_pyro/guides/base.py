"""What a guide is: a Pyro guide for the model, and, where its weights are Gaussian, that Gaussian in closed form."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from pyro.nn import PyroModule
from torch import Tensor
from torch.distributions import transform_to

from bll_pyro.declaration import Declaration
from bll_pyro.gaussian import LatentGaussian


MAX_COVARIANCE_BYTES = 8 * 2**30


@dataclass(frozen=True)
class Start:
    """Where a guide starts: global vector ``u [U]``, weights ``loc [K, P]`` and their rough ``scale [K, P]``; width D."""

    globals_loc: Tensor
    loc: Tensor
    scale: Tensor
    num_features: int

    @property
    def latent_loc(self) -> Tensor:
        """Means in the order of Pyro's latent vector: u, weight (row by row), bias."""
        return self.flatten(self.globals_loc, self.loc)

    @property
    def latent_scale(self) -> Tensor:
        """Standard deviations in the same order; global unknowns start at 0.1."""
        return self.flatten(torch.full_like(self.globals_loc, 0.1), self.scale)

    def flatten(self, u: Tensor, weights: Tensor) -> Tensor:
        """Put u and weights ``[K, P]`` into the order of Pyro's latent vector."""
        return torch.cat([u, weights[:, : self.num_features].reshape(-1), weights[:, self.num_features :].reshape(-1)])


class Guide(Declaration):
    """Variational family over the weights (and the global unknowns)."""

    family: ClassVar[str] = "guides"

    @property
    def rotates(self) -> bool:
        """Whether its axes may be turned to the principal axes of the features."""
        return False

    @abstractmethod
    def build(self, model: Any, start: Start) -> PyroModule:
        """Return the Pyro guide of ``model`` (any guide for a Pyro program), starting at ``start``.

        A guide that is a :class:`GaussianGuide` is trained in output space; any other by Pyro's ``Trace_ELBO``.
        """

    def num_numbers(self, num_outputs: int, num_columns: int) -> int:
        """Numbers that its covariance takes, for the check against memory."""
        return num_outputs * num_columns

    def check_memory(self, num_outputs: int, num_columns: int) -> None:
        """Raise if the covariance, its gradient and the optimiser's state (5 copies of float32) would not fit."""
        num_bytes = 20 * self.num_numbers(num_outputs, num_columns)
        if num_bytes > MAX_COVARIANCE_BYTES:
            raise ValueError(
                f"{type(self).__name__}: expected a covariance that fits in {MAX_COVARIANCE_BYTES / 2**30:.0f} GiB, got "
                f"{num_outputs} outputs x {num_columns} columns, which take {num_bytes / 2**30:.1f} GiB in training; "
                "use Diagonal(), LowRank(rank=8) or MatrixNormal()"
            )


class GaussianGuide:
    """Mixin of a Pyro guide whose latent vector (u, weight, bias) is Gaussian: it says which Gaussian."""

    is_point: ClassVar[bool] = False

    def attach(self, start: Start) -> None:
        """Remember the layout of the latent vector: U global numbers, then ``[K, D]``, then ``[K]`` or nothing."""
        self.num_globals = len(start.globals_loc)
        self.num_outputs, self.num_columns = start.loc.shape
        self.num_features = start.num_features

    @abstractmethod
    def joint(self) -> LatentGaussian:
        """The Gaussian at the current parameters; differentiable in them."""

    def matrix(self, vector: Tensor) -> tuple[Tensor, Tensor]:
        """Split a latent vector ``[n, ...]`` into u ``[U, ...]`` and weights ``[K, P, ...]``."""
        num_weights = self.num_outputs * self.num_features
        u, weight, bias = vector.split([self.num_globals, num_weights, len(vector) - self.num_globals - num_weights])
        weight = weight.reshape(self.num_outputs, self.num_features, *vector.shape[1:])
        if not len(bias):
            return u, weight
        return u, torch.cat([weight, bias.reshape(self.num_outputs, 1, *vector.shape[1:])], 1)


def skip_initial_values(site: dict[str, Any]) -> Tensor:
    """Cheap stand-in for Pyro's initial values, which would draw each site many times and then be thrown away."""
    shape = tuple(site["fn"].batch_shape) + tuple(site["fn"].event_shape)
    with torch.no_grad():
        return transform_to(site["fn"].support)(torch.zeros(transform_to(site["fn"].support).inverse_shape(shape)))
