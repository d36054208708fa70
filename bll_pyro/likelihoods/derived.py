"""What follows from a distribution where a likelihood says nothing closer: derivatives by autograd, and what draws tell.

=========================================== ==================================================================
on paper                                    in code
=========================================== ==================================================================
``d log p(y | f) / df``, ``-d2 / df df'``   ``output_derivatives``, by automatic differentiation
the nearest matrix without negative         ``positive_part``
eigenvalues
``F(y)``, ``E[y]``, ``Var(y)``              ``Marginal``: the distribution's own, or those of draws from it
=========================================== ==================================================================
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property, partial
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor

from bll_pyro.scope import isolated

NUM_DRAWS = 4096  # for each target, over all components of a mixture
LEAST_DRAWS = 16  # for each component
DERIVATIVE_NUMBERS = 2**18  # numbers of Hessians of draws that are made at once


def by_row(found: Any, outputs: Float[Tensor, "*S N K"], owner: str, *, labels: bool) -> dist.Distribution:
    """A likelihood's distribution with a row's targets in its event; it never checks the values that it is asked for.

    Raises
    ------
    ValueError
        If its shape is neither ``[..., N, T]`` nor ``[..., N]`` with the event ``[T]`` (``[..., N]`` alone for labels).
    """
    inner = [found]
    while inner:
        part = inner.pop()
        part._validate_args = False
        inner += [one for one in vars(part).values() if isinstance(one, torch.distributions.Distribution)]
    batch, event, num_axes = list(found.batch_shape), list(found.event_shape), outputs.dim()
    if len(batch) == num_axes - 1 and len(event) == int(not labels):
        return found
    if len(batch) == num_axes and not event and not labels:
        return found.to_event(1)
    wanted = "[..., N]" if labels else "[..., N, T], or [..., N] with event shape [T],"
    raise ValueError(
        f"{owner}.distribution: expected batch shape {wanted} for outputs [..., N, K] = {list(outputs.shape)}, got {batch} and "
        f"event shape {event}; keep the axis of the targets, as in outputs[..., :1], and drop that of labels"
    )


def output_derivatives(
    log_prob: Callable[[Tensor], Tensor], outputs: Float[Tensor, "*S N K"], keeps_graph: bool = False
) -> tuple[Float[Tensor, "*S N K"], Float[Tensor, "*S N K K"]]:
    """Gradient ``[..., N, K]`` and negative Hessian ``[..., N, K, K]`` of the rows' log densities ``[..., N]`` in their outputs.

    A row's density depends on its own outputs only, so that all rows take K passes together. ``keeps_graph``: both can be
    differentiated again, in the outputs and in what else the density depends on.
    """
    with torch.enable_grad():
        point = outputs if keeps_graph and outputs.requires_grad else outputs.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(log_prob(point).sum(), point, create_graph=True)
        columns = []
        for k in range(outputs.shape[-1]):
            if not gradient.requires_grad:  # a density that is linear in the outputs
                columns.append(torch.zeros_like(point))
                continue
            (column,) = torch.autograd.grad(
                gradient[..., k].sum(), point, create_graph=keeps_graph, retain_graph=True,
                allow_unused=True, materialize_grads=True,
            )  # fmt: skip
            columns.append(column)
    hessian = torch.stack(columns, -1)
    return (gradient, -hessian) if keeps_graph else (gradient.detach(), -hessian.detach())


def mean_derivatives(
    log_prob: Callable[..., Tensor], draws: Float[Tensor, "S N K"], noise: dict[str, Tensor]
) -> tuple[Float[Tensor, "N K"], Float[Tensor, "N K K"]]:
    """Both, averaged over draws of the outputs; noise ``[S, 1, ...]`` or ``[1, 1, ...]``, exposure ``[N, ...]``."""
    num_draws, num_rows, num_outputs = draws.shape
    gradient = draws.new_zeros(num_rows, num_outputs)
    curvature = draws.new_zeros(num_rows, num_outputs, num_outputs)
    size = max(1, DERIVATIVE_NUMBERS // (num_rows * num_outputs**2))
    for start in range(0, num_draws, size):
        part = slice(start, start + size)
        own = {
            name: value if name == "exposure" else value.expand(num_draws, *value.shape[1:])[part]
            for name, value in noise.items()
        }
        first, second = output_derivatives(partial(log_prob, **own), draws[part])
        gradient, curvature = gradient + first.sum(0) / num_draws, curvature + second.sum(0) / num_draws
    return gradient, curvature


def positive_part(matrices: Float[Tensor, "*N K K"]) -> Float[Tensor, "*N K K"]:
    """Symmetric matrices with negative eigenvalues set to 0 (the nearest such matrix); their derivative is taken as is."""
    fixed = matrices.detach()
    if matrices.shape[-1] == 1:
        return matrices + (-fixed).clamp_min(0.0)
    values, axes = torch.linalg.eigh(fixed.nan_to_num(0.0, 0.0, 0.0))
    return matrices + (axes * (-values).clamp_min(0.0)[..., None, :]) @ axes.mT


def bounds(distribution: dist.Distribution) -> tuple[Any, Any]:
    """Ends of the support of numbers, each a number or a tensor that broadcasts; infinite where there are none."""
    try:
        support = distribution.support
    except NotImplementedError:
        return -math.inf, math.inf
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    return getattr(support, "lower_bound", -math.inf), getattr(support, "upper_bound", math.inf)


class Marginal(dist.TorchDistribution):
    """Each target of a row alone, with density 0 outside of its support, and what is not known of it taken from draws.

    Parameters
    ----------
    known
        A distribution of single targets, batch shape ``[..., N, T]``, or one of a row's targets together, ``[..., N]`` and
        event shape ``[T]``.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(self, known: Any) -> None:
        super().__init__(known.batch_shape + known.event_shape, validate_args=False)
        self.known, self.joint = known, bool(known.event_shape)
        self.lower, self.upper = bounds(known)

    @property
    def support(self) -> Any:
        """That of the distribution."""
        return self.known.support

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draws ``[*sample_shape, ..., N, T]``."""
        return self.known.sample(torch.Size(sample_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density of each target; minus infinity outside of the support."""
        if self.joint and self.known.event_shape.numel() > 1:
            raise NotImplementedError(
                "expected the density of each target of a row alone, got a distribution of all together; set the likelihood's "
                "independent_targets = False, or define its marginals(outputs, **noise)"
            )
        inside, within = self._inside(value)
        density = self.known.log_prob(inside)
        return torch.where(within, density[..., None] if self.joint else density, -torch.inf)

    def cdf(self, value: Tensor) -> Tensor:
        """``P(Y <= value)``; 0 below the support and 1 above it."""
        inside, _ = self._inside(value)
        probs = None if self.joint else self._own(lambda: self.known.cdf(inside))
        if probs is None:
            probs = (self._draws <= value).to(self._draws.dtype).mean(0)
        probs = torch.where(value < self.lower, 0.0, probs)
        return torch.where(value >= self.upper, 1.0, probs)

    @property
    def mean(self) -> Tensor:
        """Mean of each target."""
        own = self._own(lambda: self.known.mean)
        return self._draws.mean(0) if own is None else own

    @property
    def variance(self) -> Tensor:
        """Variance of each target."""
        own = self._own(lambda: self.known.variance)
        return self._draws.var(0) if own is None else own

    @property
    def mean_error(self) -> Tensor:
        """Variance of the error of ``mean``: 0 where the distribution knows it."""
        own = self._own(lambda: self.known.mean)
        return self._draws.var(0) / len(self._draws) if own is None else torch.zeros_like(own)

    def _inside(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """Values moved into the support, where the distribution is defined, and whether they were inside."""
        lower, upper = (end.to(value) if isinstance(end, Tensor) else end for end in (self.lower, self.upper))
        return value.clamp(min=lower).clamp(max=upper), (value >= lower) & (value <= upper)

    @staticmethod
    def _own(known: Callable[[], Tensor]) -> Tensor | None:
        """What the distribution itself knows; None where it says that it does not."""
        try:
            return known()
        except (NotImplementedError, AttributeError):
            return None

    @cached_property
    def _draws(self) -> Tensor:
        """Seeded draws ``[M, ..., N, T]``."""
        if torch.compiler.is_compiling():
            raise TypeError(
                f"export: expected a distribution that knows its mean, variance and distribution function, got {self.known}, of "
                "which they are taken from draws; define them in torch operations, or leave out what needs them: quantiles=()"
            )
        num_components = self.batch_shape[:-2].numel()
        with isolated(0), torch.no_grad():
            return self.sample((max(LEAST_DRAWS, -(-NUM_DRAWS // num_components)),))
