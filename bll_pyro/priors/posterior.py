"""The posterior of earlier data as the prior of the next: one Gaussian over weight and bias together."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Self

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import constraints

from bll_pyro.frame import Frame
from bll_pyro.gaussian import WeightGaussian
from bll_pyro.gaussian.precision import (
    expected_quadratic,
    num_precision_numbers,
    precision,
    quadratic,
    times,
)
from bll_pyro.priors.base import GaussianPrior, Shape

MAX_BYTES = 8 * 2**30


@dataclass(frozen=True, eq=False)
class Posterior(GaussianPrior):
    """``(weight, bias) ~ Gaussian``, jointly: what :meth:`bll_pyro.Fit.as_prior` returns.

    It is in the frame of the fit that it comes from, and holds this frame: a layer with this prior does not
    standardise anew, whatever its ``standardize``, and its ``bias_scale`` is not used. Noise has its prior in the
    likelihood.

    Parameters
    ----------
    kind, parts
        Structure of the covariance, by the name of its class in ``bll_pyro.gaussian``, and its tensors.
    constants
        Tensors of the frame.
    bias
        Whether there is a bias.
    """

    covers_bias: ClassVar[bool] = True
    has_density: ClassVar[bool] = True

    kind: str
    parts: dict[str, Tensor]
    constants: dict[str, Tensor]
    bias: bool = True

    @classmethod
    def of(cls, weights: WeightGaussian, frame: Frame) -> Self:
        """The prior that is this Gaussian in this frame.

        Raises
        ------
        ValueError
            When its precision would not fit in memory.
        """
        num_bytes = 16 * num_precision_numbers(weights)
        if num_bytes > MAX_BYTES:
            raise ValueError(
                f"as_prior: expected a precision that fits in {MAX_BYTES / 2**30:.0f} GiB, "
                f"got a {type(weights).__name__} of "
                f"{list(weights.loc.shape)} weights, which takes {num_bytes / 2**30:.1f} GiB; use "
                "a fit with guides.Diagonal() or guides.BlockDiagonal()"
            )
        parts = {name: value.detach().clone() for name, value in weights.tensors.items()}
        return cls(type(weights).__name__, parts, dict(frame.tensors), frame.bias)

    @cached_property
    def weights(self) -> WeightGaussian:
        """The Gaussian over ``[weight bias]`` ``[K, P]``, in the coordinates of the frame."""
        return WeightGaussian.kinds[self.kind](**self.parts)

    @cached_property
    def frame(self) -> Frame:  # type: ignore[override]
        """The coordinates."""
        return Frame(**self.constants, bias=self.bias)

    @cached_property
    def _precision(self) -> dict[torch.dtype, Tensor]:
        return {torch.float64: precision(self.weights)}

    def _at(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and precision on the device and in the dtype of a tensor."""
        found = self._precision.get(like.dtype)
        if found is None or found.device != like.device:
            found = self._precision[like.dtype] = self._precision[torch.float64].to(like)
        return self.weights.loc.to(like), found

    @cached_property
    def _log_peak(self) -> float:
        return float(self.weights.log_prob(self.weights.loc[None]))

    def expected_log_prob_of(self, weights: WeightGaussian) -> Float[Tensor, ""]:
        """``E_q[log p(weight, bias)]`` in closed form for a Gaussian q of any structure, in the frame."""
        loc, matrix = self._at(weights.loc)
        return self._log_peak - 0.5 * expected_quadratic(matrix, weights, loc)

    def log_prob(self, values: Float[Tensor, "*S K P"]) -> Float[Tensor, " *S"]:
        """Log density of ``[weight bias]`` ``[..., K, P]`` in the frame, nats."""
        loc, matrix = self._at(values)
        return self._log_peak - 0.5 * quadratic(matrix, values - loc)

    def sample(self, shape: Shape, **learned: Tensor) -> Float[Tensor, "*S K D"]:
        """The Pyro program: the site ``weight`` from its marginal."""
        self.check(shape)
        return pyro.sample("weight", WeightMarginal(self))

    def sample_bias(self, weight: Float[Tensor, "*S K D"]) -> Float[Tensor, "*S K"]:
        """The Pyro program, continued: the site ``bias`` given the weight ``[..., K, D]``."""
        loc, covariance = self.bias_given(weight)
        if loc.dim() > 1:  # the axis of the data plate stands before the outputs, as in the weight
            covariance = covariance.expand(*loc.shape[:-1], *covariance.shape)
        return pyro.sample("bias", dist.MultivariateNormal(loc, covariance, validate_args=False))

    def bias_given(
        self, weight: Float[Tensor, "*S K D"]
    ) -> tuple[Float[Tensor, "*S K"], Float[Tensor, "K K"]]:
        """Mean ``[..., K]`` and covariance ``[K, K]`` of the bias given the weight ``[..., K, D]``."""
        loc, matrix = self._at(weight)
        own = bias_precision(matrix)
        shifted = torch.cat([weight - loc[:, :-1], torch.zeros_like(weight[..., :1])], -1)
        pull = times(matrix, shifted)[..., -1]
        covariance = torch.linalg.inv(own)
        return loc[:, -1] - pull @ covariance, covariance

    def distribution(self, shape: Shape, **hyper: Tensor) -> dist.Normal:
        """There is none for single weights."""
        raise TypeError(
            "priors.Posterior: expected an inference that takes a joint prior of weight and bias, such as bll.SVI() or "
            "bll.Exact(); this inference asks for independent weights"
        )

    def check(self, shape: Shape) -> None:
        """Raise if the weight has another shape ``[K, D]`` than this prior."""
        expected = (self.weights.loc.shape[0], self.frame.num_features)
        if tuple(shape) != expected:
            raise ValueError(
                f"priors.Posterior: expected a weight of shape {list(expected)} (outputs, features), got "
                f"{list(shape)}; use the backbone and likelihood of the fit that it comes from"
            )


def bias_precision(matrix: Float[Tensor, "K P ..."]) -> Float[Tensor, "K K"]:
    """Precision ``[K, K]`` of the biases given the weights: the entries of the last columns."""
    if matrix.dim() == 4:
        return matrix[:, -1, :, -1]
    return torch.diag_embed(matrix[:, -1] if matrix.dim() == 2 else matrix[:, -1, -1])


class WeightMarginal(dist.TorchDistribution):
    """Marginal of the weight ``[K, D]`` under a joint Gaussian of weight and bias, for a Pyro site."""

    support = constraints.independent(constraints.real, 2)
    has_rsample = True

    def __init__(self, prior: Posterior, batch_shape: tuple[int, ...] = ()) -> None:
        self.prior = prior
        event_shape = torch.Size((prior.weights.loc.shape[0], prior.frame.num_features))
        super().__init__(torch.Size(batch_shape), event_shape, validate_args=False)

    def rsample(self, sample_shape: Any = ()) -> Float[Tensor, "*S K D"]:
        """Draw the joint and keep the weight."""
        shape = torch.Size(sample_shape) + self.batch_shape
        values = self.prior.weights.rsample(shape.numel())
        return values[..., : self.event_shape[1]].view(shape + self.event_shape)

    def log_prob(self, value: Float[Tensor, "*S K D"]) -> Float[Tensor, " *S"]:
        """Joint density over conditional density, both where the bias is its conditional mean."""
        if not self.prior.bias:
            return self.prior.log_prob(value)
        bias, covariance = self.prior.bias_given(value)
        joint = self.prior.log_prob(torch.cat([value, bias[..., None]], -1))
        return joint - dist.MultivariateNormal(bias, covariance, validate_args=False).log_prob(bias)

    def expand(self, batch_shape: Any, _instance: Any = None) -> WeightMarginal:
        """Independent copies."""
        return WeightMarginal(self.prior, tuple(batch_shape))
