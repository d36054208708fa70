"""What a guide is: a Pyro guide for the model, and, where its weights are Gaussian, that Gaussian in closed form."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from pyro.infer.autoguide import AutoContinuous
from pyro.nn import PyroModule
from torch import Tensor
from torch.distributions import transform_to

from bll_pyro.declaration import Declaration
from bll_pyro.gaussian import LatentDistribution, LatentGaussian, WeightGaussian, flatten
from bll_pyro.gaussian.precision import expected_quadratic
from bll_pyro.optimizers import minimise

MAX_COVARIANCE_BYTES = 8 * 2**30
MAX_STEPS = 50  # of L-BFGS for a covariance without a closed form
# at the warm start, where the ELBO of independent weights is highest, or with one covariance of all weights (``Start.tril``)
Begins = Literal["warm", "independent", "dense"]
COPIES_BYTES = 20  # value, gradient, two averages of Adam and the covariance made from them, in float32


@dataclass(frozen=True)
class Start:
    """Where a guide starts: global vector ``u [U]``, weights ``loc [K, P]`` and rough ``scale [K, P]``; width D.

    ``tril [K P, K P]`` is a Cholesky factor of the weights' covariance in the order of Pyro's latent vector, for guides that
    use one; ``scale`` are then the standard deviations of each weight with all others held fixed.
    """

    globals_loc: Float[Tensor, " U"]
    loc: Float[Tensor, "K P"]
    scale: Float[Tensor, "K P"]
    num_features: int
    tril: Float[Tensor, "K*P K*P"] | None = None

    @property
    def latent_loc(self) -> Float[Tensor, " L"]:
        """Means in the order of Pyro's latent vector: u, weight (row by row), bias."""
        return flatten(self.globals_loc, self.loc, self.num_features)

    @property
    def latent_scale(self) -> Float[Tensor, " L"]:
        """Standard deviations in the same order; global unknowns start at 0.1."""
        return flatten(torch.full_like(self.globals_loc, 0.1), self.scale, self.num_features)

    @property
    def latent_tril(self) -> Float[Tensor, "L L"]:
        """Cholesky factor of the covariance in the same order: diagonal where no other is known."""
        if self.tril is None:
            return torch.diag(self.latent_scale)
        return torch.block_diag(torch.diag(torch.full_like(self.globals_loc, 0.1)), self.tril)


class Guide(Declaration):
    """Variational family over the weights (and the global unknowns)."""

    family: ClassVar[str] = "guides"
    begins: ClassVar[Begins] = "warm"

    @property
    def can_rotate(self) -> bool:
        """Whether its axes may be rotated to the principal axes of the features."""
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
        num_bytes = COPIES_BYTES * self.num_numbers(num_outputs, num_columns)
        if num_bytes > MAX_COVARIANCE_BYTES:
            fitting = guides_that_fit(num_outputs, num_columns)
            remedy = f"use {' or '.join(fitting)}" if fitting else "use fewer features or outputs"
            raise ValueError(
                f"{type(self).__name__}: expected a covariance that fits in {MAX_COVARIANCE_BYTES / 2**30:.0f} GiB, "
                f"got {num_outputs} outputs x {num_columns} columns, which take {num_bytes / 2**30:.1f} GiB in training; "
                f"{remedy}"
            )


def guides_that_fit(num_outputs: int, num_columns: int) -> list[str]:
    """The library's guides with their defaults whose covariance fits in memory, the richest first."""
    sizes: dict[str, int] = {}
    for name, cls in Declaration.registry.items():
        if cls is Guide or not (issubclass(cls, Guide) and cls.__module__.startswith(f"{__package__}.")):
            continue
        try:
            size = cls().num_numbers(num_outputs, num_columns)
        except TypeError:  # it has no defaults
            continue
        if COPIES_BYTES * size <= MAX_COVARIANCE_BYTES:
            sizes[f"{name.removeprefix(Guide.family + '.')}()"] = size
    return sorted(sizes, key=lambda name: -sizes[name])


class GaussianGuide:
    """Mixin of a Pyro guide whose latent vector (u, weight, bias) is Gaussian: it gives this Gaussian in closed form."""

    is_point: ClassVar[bool] = False

    def attach(self, start: Start) -> None:
        """Remember the layout of the latent vector: U global numbers, then ``[K, D]``, then ``[K]`` or nothing."""
        self.num_globals = len(start.globals_loc)
        self.num_outputs, self.num_columns = start.loc.shape
        self.num_features = start.num_features

    @abstractmethod
    def latents(self) -> LatentGaussian:
        """The Gaussian at the current parameters; differentiable in them."""

    def move(self, step: Float[Tensor, " L"]) -> None:
        """Move the means by a step, in place, in the order of Pyro's latent vector."""
        raise NotImplementedError(f"{type(self).__name__} has no means to move")

    def fit_covariance(self, precision: Float[Tensor, "L L"]) -> None:
        """Take the covariance S of the family that maximises ``H[q] - tr(P S) / 2``, in place."""
        raise NotImplementedError(f"{type(self).__name__} has no covariance")

    def matrix(self, vector: Float[Tensor, "L *S"]) -> tuple[Float[Tensor, "U *S"], Float[Tensor, "K P *S"]]:
        """Split a latent vector ``[n, ...]`` into u ``[U, ...]`` and weights ``[K, P, ...]``."""
        num_weights = self.num_outputs * self.num_features
        u, weight, bias = vector.split(
            [self.num_globals, num_weights, len(vector) - self.num_globals - num_weights]
        )
        weight = weight.reshape(self.num_outputs, self.num_features, *vector.shape[1:])
        if not len(bias):
            return u, weight
        return u, torch.cat([weight, bias.reshape(self.num_outputs, 1, *vector.shape[1:])], 1)


class LatentGaussianGuide(GaussianGuide, AutoContinuous):
    """A Pyro guide made from its Gaussian: independent u, and weights whose covariance ``weights`` defines.

    Factors of the covariance are relative to the scales at the start, so that one step of Adam is proportional to the
    scale of the posterior.
    """

    start_scale: Tensor

    def __init__(self, model: Any, start: Start) -> None:
        super().__init__(model, init_loc_fn=skip_initial_values)
        self.attach(start)
        self.register_buffer("start_scale", start.scale.clone())
        self.loc = torch.nn.Parameter(start.loc.clone())
        # without global unknowns these are empty and get no gradient, for which DistributedDataParallel would wait
        has_globals = len(start.globals_loc) > 0
        self.globals_loc = torch.nn.Parameter(start.globals_loc.clone(), has_globals)
        log_scale = torch.full_like(start.globals_loc, math.log(0.1))
        self.globals_log_scale = torch.nn.Parameter(log_scale, has_globals)

    @abstractmethod
    def weights(self, loc: Float[Tensor, "K P"]) -> WeightGaussian:
        """Gaussian of the weights with mean ``loc [K, P]`` at the current parameters."""

    def latents(self) -> LatentGaussian:
        """The Gaussian at the current parameters."""
        return LatentGaussian(self.weights(self.loc), self.globals_loc, self.globals_log_scale.exp())

    def move(self, step: Float[Tensor, " L"]) -> None:
        u, weights = self.matrix(step)
        self.globals_loc.add_(u)
        self.loc.add_(weights)

    def fit_covariance(self, precision: Float[Tensor, "L L"]) -> None:
        """By L-BFGS: no row is looked at, so that its steps cost little."""
        scale = precision.diagonal().rsqrt()
        self.globals_log_scale.copy_(scale[: self.num_globals].log())
        order = flatten(
            scale[:0], torch.arange(self.loc.numel()).view(self.loc.shape), self.num_features
        ).long()
        given = precision[self.num_globals :, self.num_globals :].new_empty(
            self.loc.numel(), self.loc.numel()
        )
        given[order[:, None], order] = precision[self.num_globals :, self.num_globals :]
        matrix = given.view(*self.loc.shape, *self.loc.shape).to(self.loc)
        means = {id(self.loc), id(self.globals_loc), id(self.globals_log_scale)}
        free = [p for p in self.parameters() if id(p) not in means]

        def loss() -> Tensor:
            weights = self.weights(self.loc.detach())
            return (
                0.5 * expected_quadratic(matrix, weights, weights.loc) - weights.entropy()
            ) / self.loc.numel()

        minimise(loss, free, MAX_STEPS)

    def get_posterior(self, *args: Any, **kwargs: Any) -> LatentDistribution:
        """Distribution of Pyro's latent vector."""
        return LatentDistribution(self.latents(), self.num_features)

    def _loc_scale(self, *args: Any, **kwargs: Any) -> tuple[Float[Tensor, " L"], Float[Tensor, " L"]]:
        posterior = self.get_posterior()
        return posterior.mean, posterior.variance.sqrt()


def relative_tril(raw: Float[Tensor, "*S P P"], scale: Float[Tensor, "*S P"]) -> Float[Tensor, "*S P P"]:
    """Lower Cholesky factors ``[..., P, P]`` from free numbers: at 0 they are ``diag(scale [..., P])``."""
    tril = raw.tril(-1) + torch.diag_embed(raw.diagonal(dim1=-2, dim2=-1).exp())
    return scale[..., None] * tril


def skip_initial_values(site: dict[str, Any]) -> Tensor:
    """Cheap initial values: Pyro's own would draw each site many times and are overwritten anyway."""
    shape = tuple(site["fn"].batch_shape) + tuple(site["fn"].event_shape)
    with torch.no_grad():
        return transform_to(site["fn"].support)(
            torch.zeros(transform_to(site["fn"].support).inverse_shape(shape))
        )
