"""The log likelihood of all rows and its slopes in weights and noise, for one evaluation after another.

A chain evaluates them ten thousand times at different weights, so that what can be done once is done here.

=============== ================================================ ========================================
terms           of                                               cost of one evaluation
=============== ================================================ ========================================
GaussianRows    Gaussian noise, by sums over the rows            ``K P^2``, whatever the number of rows
SoftmaxRows     classes, with the slope written out              ``2 N K P``
AnyRows         every other likelihood, by autograd in outputs   ``2 N K P``, and autograd on ``[N, K]``
=============== ================================================ ========================================
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from bll_pyro.gaussian.weights import LOG_TWO_PI
from bll_pyro.inference.rows import DesignRows
from bll_pyro.inference.targets import log_prob, values_of, weight_of
from bll_pyro.likelihoods import Categorical, Gaussian, Likelihood

BLOCK_NUMBERS = 2**18  # numbers of a block of rows: its outputs stay in a processor's cache
NoiseValues = dict[str, Tensor]
Slopes = tuple[Tensor, Tensor, NoiseValues]  # value [], slope in the weights [K, P], slopes in the noise


class RowTerms(ABC):
    """``sum_n log p(y_n | A h_n, noise)`` with its slopes: value in float64, the rest in the precision of the rows."""

    @abstractmethod
    def __call__(self, weights: Tensor, noise: NoiseValues) -> Slopes:
        """Value and slopes at weights ``A [K, P]`` and noise of the likelihood's own shapes."""

    def log_prob(self, weights: Tensor, noise: NoiseValues) -> Tensor:
        """The value, differentiable once in weights and noise."""
        return _LogProb.apply(self, tuple(noise), weights, *noise.values())

    def __getstate__(self) -> dict[str, Any]:
        """Tensors go to other processes as arrays, which can be shared and not copied."""
        return {name: _to_arrays(value) for name, value in self.__dict__.items()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update({name: _to_tensors(value) for name, value in state.items()})


class GaussianRows(RowTerms):
    """Gaussian noise: ``-sum_t [N log s_t + |y_t - H a_t|^2 / (2 s_t^2)]``, with all rows brought to P + T at most.

    An orthogonal turn of the rows changes no distance, so the triangular factor of ``[H y] = Q R`` says of the weights
    all that the rows do, at any N, and without squaring the condition number as ``H'H`` would.
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

    def __call__(self, weights: Tensor, noise: NoiseValues) -> Slopes:
        residual = self.targets - self.design @ weights.to(self.design).mT
        scale = self.likelihood.scale(residual, **{k: v.to(residual) for k, v in noise.items()})
        scale = scale.reshape(-1).expand(residual.shape[1])
        precision, square = scale.square().reciprocal(), residual.square().sum(0)
        constant = self.num_rows * 0.5 * LOG_TWO_PI * len(scale)
        value = -self.num_rows * scale.log().sum() - 0.5 * (precision * square).sum() - constant
        slope = (residual * precision).mT @ self.design
        of_noise = dict.fromkeys(noise, (square * precision - self.num_rows) / scale)
        return value, slope, of_noise


class SoftmaxRows(RowTerms):
    """Classes: slope ``(e_y - p) / temperature`` in the outputs, laid out ``[K, n]``, twice as fast as ``[n, K]``."""

    def __init__(self, likelihood: Categorical, rows: DesignRows) -> None:
        self.factor = 1.0 / likelihood.temperature
        self.blocks: list[tuple[Tensor, Tensor, Tensor]] = []
        for design, targets in rows.blocks(block_size(likelihood.num_classes, rows)):
            hot = torch.nn.functional.one_hot(values_of(targets), likelihood.num_classes).to(design)
            # laid out [n, K] and seen as [K, n] by the slope, which this product reads fastest
            self.blocks.append((design.contiguous(), design.mT.contiguous(), hot.mT.contiguous()))

    def __call__(self, weights: Tensor, noise: NoiseValues) -> Slopes:
        flat = weights.to(self.blocks[0][0])
        flat = flat if self.factor == 1.0 else flat * self.factor
        value, slope = weights.new_zeros((), dtype=torch.float64), torch.zeros_like(flat)
        for design, columns, hot in self.blocks:
            log_probs = (flat @ columns).log_softmax(0)
            value += (log_probs * hot).sum(dtype=torch.float64)
            slope.addmm_(hot - log_probs.exp_(), design, alpha=self.factor)
        return value, slope, {}


class AnyRows(RowTerms):
    """Any likelihood: its own log density, differentiated in the outputs and in the noise."""

    def __init__(self, likelihood: Likelihood, rows: DesignRows, num_outputs: int) -> None:
        self.likelihood = likelihood
        self.blocks = list(rows.blocks(block_size(num_outputs, rows)))

    def __call__(self, weights: Tensor, noise: NoiseValues) -> Slopes:
        flat = weights.to(self.blocks[0][0])
        value, slope = weights.new_zeros((), dtype=torch.float64), torch.zeros_like(flat)
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
            slope.addmm_(first.mT, design)
            for name, other in zip(leaves, others, strict=True):
                totals[name] += other
        return value, slope, totals


def row_terms(likelihood: Likelihood, rows: DesignRows, num_outputs: int) -> RowTerms:
    """The terms that suit a likelihood."""
    if type(likelihood) is Gaussian:
        return GaussianRows(likelihood, rows)
    if type(likelihood) is Categorical and isinstance(rows.targets, Tensor):
        return SoftmaxRows(likelihood, rows)
    return AnyRows(likelihood, rows, num_outputs)


def block_size(num_outputs: int, rows: DesignRows) -> int:
    """Rows at a time."""
    return max(256, BLOCK_NUMBERS // max(num_outputs, rows.num_columns))


class _LogProb(torch.autograd.Function):
    """The value of row terms, with the slopes that were computed beside it."""

    @staticmethod
    def forward(ctx: Any, terms: RowTerms, names: tuple[str, ...], weights: Tensor, *noise: Tensor) -> Tensor:
        value, slope, of_noise = terms(weights, dict(zip(names, noise, strict=True)))
        others = [
            of_noise[name].reshape(given.shape).to(given) for name, given in zip(names, noise, strict=True)
        ]
        ctx.save_for_backward(slope.to(weights), *others)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        return None, None, *(grad * slope for slope in ctx.saved_tensors)


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
