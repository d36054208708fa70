"""The log likelihood of all rows and its gradients in weights and noise, prepared for many evaluations.

A chain evaluates them about ten thousand times, so all that does not depend on the weights is computed once.

=============== ================================================= ========================================
class           likelihood                                        cost of one evaluation
=============== ================================================= ========================================
GaussianRows    Gaussian noise, by a triangular factor of rows    ``K P^2``, for any number of rows
SoftmaxRows     classes, with the gradient in closed form         ``2 N K P``
AnyRows         all others, by autograd in the outputs            ``2 N K P``, and autograd on ``[N, K]``
=============== ================================================= ========================================
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from bll_pyro.gaussian.weights import LOG_TWO_PI
from bll_pyro.inference.row_targets import NoiseValues, log_prob, values_of, weight_of
from bll_pyro.inference.rows import DesignRows
from bll_pyro.likelihoods import Categorical, Gaussian, Likelihood

BLOCK_NUMBERS = 2**18  # numbers in one block of rows; its outputs fit in a processor's cache
Gradients = tuple[
    Tensor, Tensor, NoiseValues
]  # value [], gradient in the weights [K, P], gradients in the noise


class RowTerms(ABC):
    """``sum_n log p(y_n | A h_n, noise)`` with its gradients: value in float64, gradients in the dtype of the rows."""

    @abstractmethod
    def __call__(self, weights: Tensor, noise: NoiseValues) -> Gradients:
        """Value in nats and gradients, at weights ``A [K, P]`` and noise in the shapes of the likelihood's sites."""

    def log_prob(self, weights: Tensor, noise: NoiseValues) -> Tensor:
        """The value, differentiable once in weights and noise."""
        return _LogProb.apply(self, tuple(noise), weights, *noise.values())

    def __getstate__(self) -> dict[str, Any]:
        """Pickle tensors as arrays, which joblib shares between processes instead of copying them."""
        return {name: _to_arrays(value) for name, value in self.__dict__.items()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update({name: _to_tensors(value) for name, value in state.items()})


class GaussianRows(RowTerms):
    """Gaussian noise: ``-sum_t [N log s_t + |y_t - H a_t|^2 / (2 s_t^2)]``, with the rows reduced to at most P + T.

    An orthogonal transformation of the rows keeps all distances, so the triangular factor of ``[H y] = Q R`` replaces the
    rows. Unlike ``H'H`` it does not square the condition number.
    """

    def __init__(self, likelihood: Gaussian, rows: DesignRows) -> None:
        self.likelihood, self.num_rows = likelihood, rows.total_weight
        num_columns, joined = rows.num_columns, None
        for design, targets in rows.blocks():
            block = torch.cat([design, values_of(targets)], 1).double()
            weight = weight_of(targets)
            block = block if weight is None else weight.double().sqrt()[:, None] * block
            joined = block if joined is None else torch.cat([joined, block])
            if len(joined) > joined.shape[1]:
                joined = torch.linalg.qr(joined, mode="r").R
        assert joined is not None
        self.design, self.targets = joined[:, :num_columns].contiguous(), joined[:, num_columns:].contiguous()

    def __call__(self, weights: Tensor, noise: NoiseValues) -> Gradients:
        residual = self.targets - self.design @ weights.to(self.design).mT
        scale = self.likelihood.scale(residual, **{k: v.to(residual) for k, v in noise.items()})
        scale = scale.reshape(-1).expand(residual.shape[1])
        precision, square = scale.square().reciprocal(), residual.square().sum(0)
        constant = self.num_rows * 0.5 * LOG_TWO_PI * len(scale)
        value = -self.num_rows * scale.log().sum() - 0.5 * (precision * square).sum() - constant
        gradient = (residual * precision).mT @ self.design
        of_noise = dict.fromkeys(noise, (square * precision - self.num_rows) / scale)
        return value, gradient, of_noise


class SoftmaxRows(RowTerms):
    """Classes: gradient ``(e_y - p) / temperature`` in the outputs, laid out ``[K, n]``, twice as fast as ``[n, K]``."""

    def __init__(self, likelihood: Categorical, rows: DesignRows) -> None:
        self.factor = 1.0 / likelihood.temperature
        self.blocks: list[tuple[Tensor, Tensor, Tensor]] = []
        number = likelihood.num_outputs(())
        for design, targets in rows.blocks(block_size(number, rows)):
            hot = torch.nn.functional.one_hot(values_of(targets), number).to(design)
            # stored as [n, K] and viewed as [K, n]: the fastest layout for the product in the gradient
            self.blocks.append((design.contiguous(), design.mT.contiguous(), hot.mT.contiguous()))

    def __call__(self, weights: Tensor, noise: NoiseValues) -> Gradients:
        flat = weights.to(self.blocks[0][0])
        flat = flat if self.factor == 1.0 else flat * self.factor
        value, gradient = weights.new_zeros((), dtype=torch.float64), torch.zeros_like(flat)
        for design, columns, hot in self.blocks:
            log_probs = (flat @ columns).log_softmax(0)
            value += (log_probs * hot).sum(dtype=torch.float64)
            gradient.addmm_(hot - log_probs.exp_(), design, alpha=self.factor)
        return value, gradient, {}


class AnyRows(RowTerms):
    """Any likelihood: its own log density, differentiated in the outputs and in the noise."""

    def __init__(self, likelihood: Likelihood, rows: DesignRows, num_outputs: int) -> None:
        self.likelihood = likelihood
        self.blocks = list(rows.blocks(block_size(num_outputs, rows)))

    def __call__(self, weights: Tensor, noise: NoiseValues) -> Gradients:
        flat = weights.to(self.blocks[0][0])
        value, gradient = weights.new_zeros((), dtype=torch.float64), torch.zeros_like(flat)
        leaves = {name: given.detach().to(flat).requires_grad_() for name, given in noise.items()}
        totals = {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}
        for design, targets in self.blocks:
            with torch.enable_grad():
                outputs = (design @ flat.mT).requires_grad_()
                rows = log_prob(self.likelihood, outputs, targets, leaves).sum(dtype=torch.float64)
                first, *others = torch.autograd.grad(
                    rows, (outputs, *leaves.values()), allow_unused=True, materialize_grads=True
                )
            value += rows.detach()
            gradient.addmm_(first.mT, design)
            for name, other in zip(leaves, others, strict=True):
                totals[name] += other
        return value, gradient, totals


def row_terms(likelihood: Likelihood, rows: DesignRows, num_outputs: int) -> RowTerms:
    """The cheapest exact terms of a likelihood."""
    if type(likelihood) is Gaussian:
        return GaussianRows(likelihood, rows)
    if type(likelihood) is Categorical and isinstance(rows.targets, Tensor):
        return SoftmaxRows(likelihood, rows)
    return AnyRows(likelihood, rows, num_outputs)


def block_size(num_outputs: int, rows: DesignRows) -> int:
    """Number of rows in one block."""
    return max(256, BLOCK_NUMBERS // max(num_outputs, rows.num_columns))


class _LogProb(torch.autograd.Function):
    """The value of row terms for autograd, with the gradients computed in the forward pass."""

    @staticmethod
    def forward(ctx: Any, terms: RowTerms, names: tuple[str, ...], weights: Tensor, *noise: Tensor) -> Tensor:
        value, gradient, of_noise = terms(weights, dict(zip(names, noise, strict=True)))
        others = [
            of_noise[name].reshape(given.shape).to(given) for name, given in zip(names, noise, strict=True)
        ]
        ctx.save_for_backward(gradient.to(weights), *others)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        return None, None, *(grad * gradient for gradient in ctx.saved_tensors)


def _to_arrays(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.cpu().numpy()
    return (
        [tuple(_to_arrays(part) for part in block) for block in value] if isinstance(value, list) else value
    )


def _to_tensors(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value)
    return (
        [tuple(_to_tensors(part) for part in block) for block in value] if isinstance(value, list) else value
    )
