"""The log likelihood of all rows as a function of the weights: value, gradient and curvature, block by block."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cached_property

import torch
from torch import Tensor

from bll_pyro.gaussian.information import Information
from bll_pyro.inference.row_targets import NoiseValues, Targets, information, log_prob
from bll_pyro.inference.rows import DesignRows
from bll_pyro.likelihoods import Likelihood

BLOCK_NUMBERS = 2**20  # numbers in one block of rows
CACHE_NUMBERS = 2**26  # largest N K of outputs that are kept between passes; larger ones are recomputed


Block = tuple[Tensor, Targets, Tensor]  # design [B, P], targets, outputs [B, K]


class RowLikelihood:
    """``c sum_n log p(y_n | A h_n)`` for weights A ``[K, P]``, in nats.

    Blocks have the dtype of the rows; sums over them, and over ranks, are in float64.

    Parameters
    ----------
    likelihood
        The density of a row.
    rows
        The rows with their targets.
    factor
        c: ratio of the number of rows in the whole data to the number here.
    """

    def __init__(self, likelihood: Likelihood, rows: DesignRows, factor: float = 1.0) -> None:
        self.likelihood, self.rows, self.factor = likelihood, rows, factor

    def at(self, weights: Tensor, noise: NoiseValues) -> RowsAt:
        """The log likelihood at weights ``[K, P]`` and noise, both float64."""
        return RowsAt(self, weights, noise)

    def blocks(self, num_outputs: int) -> Iterator[tuple[Tensor, Targets]]:
        """Design and targets, in blocks that fit in a processor's cache where possible."""
        return self.rows.blocks(max(64, BLOCK_NUMBERS // max(self.rows.num_columns, num_outputs)))


class RowsAt:
    """The log likelihood at one point: ``value``, ``gradient [K, P]``, and products with its curvature."""

    def __init__(self, function: RowLikelihood, weights: Tensor, noise: NoiseValues) -> None:
        self.function, self.weights = function, weights
        self.likelihood, self.factor = function.likelihood, function.factor
        dtype = function.rows.frame.center.dtype
        self.noise = {name: value.detach().to(dtype) for name, value in noise.items()}
        self._flat = weights.to(dtype)
        shape = (function.rows.num_own, len(weights))
        # one allocation for all blocks: many small ones would fragment the memory
        self._outputs = self._flat.new_empty(shape) if math.prod(shape) <= CACHE_NUMBERS else None
        value, gradient = 0.0, torch.zeros_like(weights)
        for place, design, targets in self._places():
            out = None if self._outputs is None else self._outputs[place]
            outputs = torch.mm(design, self._flat.mT, out=out).requires_grad_()
            with torch.enable_grad():
                by_row = log_prob(self.likelihood, outputs, targets, self.noise)
                (of_outputs,) = torch.autograd.grad(by_row.sum(), outputs)
            value += self.factor * float(by_row.detach().double().sum())
            gradient.add_(of_outputs.mT @ design, alpha=self.factor)
        total, self.gradient = function.rows.ranks.sums(gradient.new_tensor(value), gradient)
        self.value = float(total)

    def _places(self) -> Iterator[tuple[slice, Tensor, Targets]]:
        start = 0
        for design, targets in self.function.blocks(len(self.weights)):
            yield slice(start, start + len(design)), design, targets
            start += len(design)

    def blocks(self) -> Iterator[Block]:
        """Design, targets and outputs of all own rows."""
        for place, design, targets in self._places():
            yield design, targets, design @ self._flat.mT if self._outputs is None else self._outputs[place]

    def informed(self) -> Iterator[tuple[Tensor, Information]]:
        """Design and information of all own rows."""
        if self._outputs is None:
            for design, targets, outputs in self.blocks():
                yield design, information(self.likelihood, outputs, targets, self.noise)
            return
        for place, design, _ in self._places():
            yield design, self._information[place]

    @cached_property
    def _information(self) -> Information:
        assert self._outputs is not None
        return information(self.likelihood, self._outputs, self.function.rows.targets, self.noise)

    def times(self, vectors: Tensor) -> Tensor:
        """Gauss-Newton curvature (positive semi-definite) times ``vectors [K, P]``."""
        flat, total = vectors.to(self._flat), torch.zeros_like(vectors)
        for design, row_information in self.informed():
            total.add_(row_information.times(design @ flat.mT).mT @ design, alpha=self.factor)
        return self.function.rows.ranks.sums(total)[0]

    def hessian_times(self, vectors: Tensor) -> Tensor:
        """Negative Hessian times ``vectors [K, P]``, by automatic differentiation in the outputs."""
        flat, total = vectors.to(self._flat), torch.zeros_like(vectors)
        for design, targets, outputs in self.blocks():
            with torch.enable_grad():
                point = outputs.detach().requires_grad_()
                total_log_prob = log_prob(self.likelihood, point, targets, self.noise).sum()
                (gradient,) = torch.autograd.grad(total_log_prob, point, create_graph=True)
                (product,) = torch.autograd.grad((gradient * (design @ flat.mT)).sum(), point)
            total.sub_(product.mT @ design, alpha=self.factor)
        return self.function.rows.ranks.sums(total)[0]
