"""Gaussians over the weights A = [W b] of the last layer, one class for each structure of the covariance.

Every class has the same methods in the same order: ``outputs`` for given rows, ``marginal_scale``,
``rsample``, ``log_prob``, ``entropy``, and (by its fields) what has to be saved. Rows come as a design matrix
``[N, P]``: the features, and a last column of ones where there is a bias, so that ``f = h A'``.

============= =============================================== ======================================
class         covariance of vec(A)                            numbers
============= =============================================== ======================================
Delta         0                                               K P
Diagonal      diag(scale^2); with mixing C: (C x I) ... '     2 K P (+ K^2)
BlockDiagonal blockdiag_k(T_k T_k')                           K P + K P^2
LowRank       diag(scale^2) + F F'                            K P (2 + R)
MatrixNormal  U U' (over outputs)  x  V V' (over columns)     K P + K^2 + P^2
Dense         F F' with F square                              K P + (K P)^2
============= =============================================== ======================================
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from bll_pyro.gaussian.outputs import OutputGaussian
from bll_pyro.summary import Summary

LOG_TWO_PI = math.log(2 * math.pi)


def standard_normals(shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draw standard normals on the device and in the dtype of ``like``."""
    return torch.randn(shape, dtype=like.dtype, device=like.device, generator=generator)


@dataclass(frozen=True, eq=False)
class WeightGaussian(Summary, ABC):
    """A Gaussian over ``A [K, P]`` with mean ``loc``."""

    loc: Float[Tensor, "K P"]
    kinds: ClassVar[dict[str, type[WeightGaussian]]] = {}

    def __init_subclass__(cls) -> None:
        WeightGaussian.kinds[cls.__name__] = cls

    @abstractmethod
    def outputs(self, design: Float[Tensor, "N P"]) -> OutputGaussian:
        """Gaussian of the outputs ``[N, K]`` of the rows ``design [N, P]``."""

    @abstractmethod
    def marginal_scale(self) -> Float[Tensor, "K P"]:
        """Standard deviation of each weight, ``[K, P]``."""

    @abstractmethod
    def rsample(self, num_draws: int, generator: torch.Generator | None = None) -> Float[Tensor, "S K P"]:
        """Draw weights ``[S, K, P]``; differentiable."""

    @abstractmethod
    def log_prob(self, values: Float[Tensor, "S K P"]) -> Float[Tensor, " S"]:
        """Log density ``[S]`` of weights ``[S, K, P]``, in nats."""

    @abstractmethod
    def _log_det_scale(self) -> Float[Tensor, ""]:
        """Half the log determinant of the covariance."""

    def entropy(self) -> Float[Tensor, ""]:
        """Differential entropy in nats."""
        return self._log_det_scale() + 0.5 * self.loc.numel() * (1 + LOG_TWO_PI)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The parts by name, as they are saved."""
        parts = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {k: v for k, v in parts.items() if v is not None}

    def detach(self) -> WeightGaussian:
        """Cut the parts from the graph of gradients and copy them, so that further training cannot reach them."""
        return type(self)(
            **{k: v.detach().clone(memory_format=torch.contiguous_format) for k, v in self.tensors.items()}
        )

    def _normal_log_prob(
        self, whitened: Float[Tensor, "S ..."], log_det_scale: Float[Tensor, ""]
    ) -> Float[Tensor, " S"]:
        square = whitened.flatten(1).square().sum(-1)
        return -0.5 * square - log_det_scale - 0.5 * self.loc.numel() * LOG_TWO_PI


@dataclass(frozen=True, eq=False)
class Delta(WeightGaussian):
    """A point: the weights are ``loc``. Its entropy is taken as 0, so that its ELBO is the log joint density."""

    def outputs(self, design: Float[Tensor, "N P"]) -> OutputGaussian:
        return OutputGaussian(design @ self.loc.mT)

    def marginal_scale(self) -> Float[Tensor, "K P"]:
        return torch.zeros_like(self.loc)

    def rsample(self, num_draws: int, generator: torch.Generator | None = None) -> Float[Tensor, "S K P"]:
        return self.loc.expand(num_draws, *self.loc.shape)

    def log_prob(self, values: Float[Tensor, "S K P"]) -> Float[Tensor, " S"]:
        raise ValueError(
            "a point estimate (MAP) has no density; use a guide with a covariance, e.g. Diagonal()"
        )

    def entropy(self) -> Float[Tensor, ""]:
        return self.loc.new_zeros(())

    def _log_det_scale(self) -> Float[Tensor, ""]:
        return self.loc.new_full((), -math.inf)


@dataclass(frozen=True, eq=False)
class Diagonal(WeightGaussian):
    """Independent weights with standard deviations ``scale [K, P]``.

    With ``mixing C [K, K]`` (orthogonal: Kronecker Laplace in its eigenbasis) the weights are ``loc + C (scale * e)``.
    """

    scale: Float[Tensor, "K P"]
    mixing: Float[Tensor, "K K"] | None = None

    def outputs(self, design: Float[Tensor, "N P"]) -> OutputGaussian:
        variance = design.square() @ self.scale.square().mT
        # the square root has no derivative at 0, the variance of a row of zeros without a bias
        scale = variance.clamp_min(torch.finfo(variance.dtype).tiny).sqrt()
        return OutputGaussian(design @ self.loc.mT, scale, mixing=self.mixing)

    def marginal_scale(self) -> Float[Tensor, "K P"]:
        if self.mixing is None:
            return self.scale
        return (self.mixing.square() @ self.scale.square()).sqrt()

    def rsample(self, num_draws: int, generator: torch.Generator | None = None) -> Float[Tensor, "S K P"]:
        noise = self.scale * standard_normals((num_draws, *self.loc.shape), self.loc, generator)
        return self.loc + (noise if self.mixing is None else self.mixing @ noise)

    def log_prob(self, values: Float[Tensor, "S K P"]) -> Float[Tensor, " S"]:
        shifted = values - self.loc
        if self.mixing is not None:
            shifted = torch.linalg.solve(self.mixing, shifted)
        return self._normal_log_prob(shifted / self.scale, self._log_det_scale())

    def _log_det_scale(self) -> Float[Tensor, ""]:
        log_det = self.scale.log().sum()
        if self.mixing is not None:
            log_det = log_det + self.loc.shape[1] * torch.linalg.slogdet(self.mixing).logabsdet
        return log_det


@dataclass(frozen=True, eq=False)
class BlockDiagonal(WeightGaussian):
    """A full covariance for each output: ``tril [K, P, P]`` lower Cholesky factors; outputs are independent."""

    tril: Float[Tensor, "K P P"]

    def outputs(self, design: Float[Tensor, "N P"]) -> OutputGaussian:
        spread = design @ self.tril  # [K, N, P]
        variance = spread.square().sum(-1).mT
        scale = variance.clamp_min(torch.finfo(variance.dtype).tiny).sqrt()
        return OutputGaussian(design @ self.loc.mT, scale)

    def marginal_scale(self) -> Float[Tensor, "K P"]:
        return self.tril.square().sum(-1).sqrt()

    def rsample(self, num_draws: int, generator: torch.Generator | None = None) -> Float[Tensor, "S K P"]:
        noise = standard_normals((num_draws, *self.loc.shape, 1), self.loc, generator)
        return self.loc + (self.tril @ noise).squeeze(-1)

    def log_prob(self, values: Float[Tensor, "S K P"]) -> Float[Tensor, " S"]:
        whitened = torch.linalg.solve_triangular(self.tril, (values - self.loc)[..., None], upper=False)
        return self._normal_log_prob(whitened.squeeze(-1), self._log_det_scale())

    def _log_det_scale(self) -> Float[Tensor, ""]:
        return self.tril.diagonal(dim1=-2, dim2=-1).log().sum()


@dataclass(frozen=True, eq=False)
class LowRank(WeightGaussian):
    """A diagonal and R common directions: ``scale [K, P]``, ``factor [K, P, R]``."""

    scale: Float[Tensor, "K P"]
    factor: Float[Tensor, "K P R"]

    def outputs(self, design: Float[Tensor, "N P"]) -> OutputGaussian:
        variance = design.square() @ self.scale.square().mT
        scale = variance.clamp_min(torch.finfo(variance.dtype).tiny).sqrt()
        num_outputs, _, rank = self.factor.shape
        # one matrix product [N, P] x [P, K R]: no batched small products, nothing larger than N K R
        factor = (design @ self.factor.transpose(0, 1).flatten(1)).view(-1, num_outputs, rank)
        return OutputGaussian(design @ self.loc.mT, scale, factor=factor)

    def marginal_scale(self) -> Float[Tensor, "K P"]:
        return (self.scale.square() + self.factor.square().sum(-1)).sqrt()

    def rsample(self, num_draws: int, generator: torch.Generator | None = None) -> Float[Tensor, "S K P"]:
        independent = self.scale * standard_normals((num_draws, *self.loc.shape), self.loc, generator)
        common = standard_normals((num_draws, self.factor.shape[-1]), self.loc, generator)
        return self.loc + independent + torch.einsum("kpr,sr->skp", self.factor, common)

    def log_prob(self, values: Float[Tensor, "S K P"]) -> Float[Tensor, " S"]:
        # Woodbury: only an R x R matrix is factored
        scaled = (self.factor / self.scale[..., None]).flatten(0, 1)
        shifted = ((values - self.loc) / self.scale).flatten(1)
        capacitance = torch.linalg.cholesky(self._capacitance())
        projected = torch.linalg.solve_triangular(capacitance, (shifted @ scaled).mT, upper=False)
        square = shifted.square().sum(-1) - projected.square().sum(0)
        return -0.5 * square - self._log_det_scale() - 0.5 * self.loc.numel() * LOG_TWO_PI

    def _capacitance(self) -> Float[Tensor, "R R"]:
        scaled = (self.factor / self.scale[..., None]).flatten(0, 1)
        return scaled.mT @ scaled + torch.eye(scaled.shape[-1], dtype=scaled.dtype, device=scaled.device)

    def _log_det_scale(self) -> Float[Tensor, ""]:
        return self.scale.log().sum() + 0.5 * torch.linalg.slogdet(self._capacitance()).logabsdet


@dataclass(frozen=True, eq=False)
class MatrixNormal(WeightGaussian):
    """``A = loc + U E V'`` with ``row_tril U [K, K]`` and ``column_tril V [P, P]``; their product is never built."""

    row_tril: Float[Tensor, "K K"]
    column_tril: Float[Tensor, "P P"]

    def outputs(self, design: Float[Tensor, "N P"]) -> OutputGaussian:
        variance = (design @ self.column_tril).square().sum(-1, keepdim=True)
        scale = variance.clamp_min(torch.finfo(variance.dtype).tiny).sqrt()
        return OutputGaussian(design @ self.loc.mT, scale, mixing=self.row_tril)

    def marginal_scale(self) -> Float[Tensor, "K P"]:
        rows, columns = self.row_tril.square().sum(-1), self.column_tril.square().sum(-1)
        return (rows[:, None] * columns).sqrt()

    def rsample(self, num_draws: int, generator: torch.Generator | None = None) -> Float[Tensor, "S K P"]:
        noise = standard_normals((num_draws, *self.loc.shape), self.loc, generator)
        return self.loc + self.row_tril @ noise @ self.column_tril.mT

    def log_prob(self, values: Float[Tensor, "S K P"]) -> Float[Tensor, " S"]:
        whitened = torch.linalg.solve_triangular(self.row_tril, values - self.loc, upper=False)
        whitened = torch.linalg.solve_triangular(self.column_tril, whitened.mT, upper=False).mT
        return self._normal_log_prob(whitened, self._log_det_scale())

    def _log_det_scale(self) -> Float[Tensor, ""]:
        num_outputs, num_columns = self.loc.shape
        rows, columns = self.row_tril.diagonal().log().sum(), self.column_tril.diagonal().log().sum()
        return num_columns * rows + num_outputs * columns


@dataclass(frozen=True, eq=False)
class Dense(WeightGaussian):
    """One covariance over all weights, as a square factor: ``factor [K, P, K P]``, vec(A) = vec(loc) + F e.

    The factor need not be triangular in this order (a guide stores its latent vector in an order of its own), so its
    log determinant is a field.
    """

    factor: Float[Tensor, "K P K*P"]
    log_det: Float[Tensor, ""]

    def outputs(self, design: Float[Tensor, "N P"]) -> OutputGaussian:
        num_outputs, _, rank = self.factor.shape
        factor = (design @ self.factor.transpose(0, 1).flatten(1)).view(-1, num_outputs, rank)
        return OutputGaussian(design @ self.loc.mT, factor=factor)

    def marginal_scale(self) -> Float[Tensor, "K P"]:
        return self.factor.square().sum(-1).sqrt()

    def rsample(self, num_draws: int, generator: torch.Generator | None = None) -> Float[Tensor, "S K P"]:
        noise = standard_normals((num_draws, self.factor.shape[-1]), self.loc, generator)
        return self.loc + torch.einsum("kpr,sr->skp", self.factor, noise)

    def log_prob(self, values: Float[Tensor, "S K P"]) -> Float[Tensor, " S"]:
        shifted = (values - self.loc).flatten(1)
        whitened = torch.linalg.solve(self.factor.flatten(0, 1), shifted.mT).mT
        return self._normal_log_prob(whitened, self.log_det)

    def _log_det_scale(self) -> Float[Tensor, ""]:
        return self.log_det
