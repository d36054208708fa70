"""The log evidence of a Gaussian process with a given kernel, for values and for labels, with its gradient in the kernel."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

JITTER = 1e-6  # variance of the noise at least, in squares of the targets' scale
NEWTON_STEPS = 60  # at most
SMALL_STEP = 0.01  # of outputs; what is left after a Newton step is of the size of its square
SLOW = 0.25  # of the step before; a step that is larger needs the curvature where it is

KernelEvidence = Callable[
    [Tensor, Tensor], Tensor
]  # of a kernel [n, n] and a log noise scale: minus the log evidence, nats


@dataclass(frozen=True)
class GaussianEvidence:
    r"""Independent noise of one scale s: ``-log N(Y; 0, K + s^2 W^-1)`` for each of the T columns.

    A row of weight w counts as w rows with the same target.
    """

    responses: Tensor
    weight: Tensor

    def __call__(self, kernel: Tensor, log_noise: Tensor) -> Tensor:
        """Its value, differentiable in both."""
        value: Tensor = GaussianLoss.apply(kernel, log_noise, self.responses, self.weight)
        return value


class GaussianLoss(torch.autograd.Function):
    """Minus the log density of responses ``[n, T]`` with weights ``[n]``."""

    @staticmethod
    def forward(ctx: Any, kernel: Tensor, log_noise: Tensor, responses: Tensor, weight: Tensor) -> Tensor:
        """The value; what the gradient needs is made with it, since it shares the factor."""
        variance, num = (2 * log_noise).exp() + JITTER, responses.shape[1]
        whole = kernel.clone()
        whole.diagonal().add_(variance / weight)
        matrix = whole.mT  # symmetric; by columns, as LAPACK has it, factored and inverted in place
        _, failed = torch.linalg.cholesky_ex(matrix, out=(matrix, torch.empty((), dtype=torch.int32)))
        if bool(failed):
            ctx.save_for_backward(torch.full_like(kernel, torch.nan), torch.full_like(log_noise, torch.nan))
            return torch.full_like(log_noise, torch.nan)
        log_det = whole.diagonal().log().sum()
        inverse = torch.cholesky_inverse(matrix, out=matrix)
        solved = inverse @ responses
        value = 0.5 * (responses * solved).sum() + num * log_det
        value = value + 0.5 * num * weight.sum() * math.log(2 * math.pi)
        repeated = 0.5 * (weight - 1).sum() * variance.log() + 0.5 * weight.log().sum()
        # in the kernel it is (T K^-1 - K^-1 Y Y' K^-1) / 2
        slope = inverse.addmm_(solved, solved.mT, beta=0.5 * num, alpha=-0.5)
        in_variance = (slope.diagonal() / weight).sum() + 0.5 * num * (weight - 1).sum() / variance
        ctx.save_for_backward(slope, in_variance * 2 * (variance - JITTER))
        return value + num * repeated

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, Tensor, None, None]:
        """The gradients in the kernel and in the log of the noise scale."""
        in_kernel, in_noise = ctx.saved_tensors
        if float(slopes[0]) == 1.0:  # as in a loss: spare a pass over the matrix
            return in_kernel, in_noise, None, None
        return slopes[0] * in_kernel, slopes[0] * in_noise, None, None


@dataclass
class LabelEvidence:
    """Laplace's approximation for labels 0 and 1, each of T by itself (Rasmussen and Williams 2006, 3.4 and 5.5.1)."""

    responses: Tensor
    weight: Tensor
    mode: Tensor | None = None  # of the last kernel, where the search for that of the next one begins

    def __call__(self, kernel: Tensor, log_noise: Tensor) -> Tensor:
        """Its value, differentiable in the kernel."""
        value: Tensor = LabelLoss.apply(kernel, self)
        return value + 0 * log_noise

    def at_mode(self, kernel: Tensor) -> LabelMode:
        """The mode of the outputs by Newton's method; NaN where a step of the search for the kernel went too far for one.

        A factor serves for several steps, as long as they shrink fast: it takes most of the time of a step.
        """
        labels = self.responses.mT
        outputs = torch.zeros_like(labels) if self.mode is None else self.mode
        around, before = LabelMode(kernel, outputs, self.weight), 1.0
        for _ in range(NEWTON_STEPS):
            moved = around.step(labels, outputs)
            change, outputs = float((moved - outputs).abs().max()), moved
            if not change**2 >= SMALL_STEP**2 * before:  # the next step would be about change^2 / before
                break
            if change > SLOW * before:
                around, change = LabelMode(kernel, outputs, self.weight), 1.0
            before = change
        found = LabelMode(kernel, outputs, self.weight)
        self.mode = found.outputs if bool(found.outputs.isfinite().all()) else None
        return found


class LabelMode:
    """The quadratic approximation at outputs ``[T, n]``: curvature W, and the Cholesky factor of ``B = I + W^1/2 K W^1/2``."""

    def __init__(self, kernel: Tensor, outputs: Tensor, weight: Tensor) -> None:
        self.kernel, self.outputs, self.weight = kernel, outputs, weight
        self.probs = torch.sigmoid(outputs)
        self.root = (weight * self.probs * (1 - self.probs)).sqrt()
        inner = self.root[..., None] * kernel * self.root[..., None, :]
        inner.diagonal(dim1=-2, dim2=-1).add_(1.0)
        self.factor, failed = torch.linalg.cholesky_ex(inner)
        if bool((failed > 0).any()):
            self.factor = torch.full_like(self.factor, torch.nan)

    def step(self, labels: Tensor, outputs: Tensor) -> Tensor:
        """Outputs ``[T, n]`` after a Newton step from given ones, with the curvature W of this approximation."""
        shift = self.root.square() * outputs + self.weight * (labels - torch.sigmoid(outputs))
        inner = torch.cholesky_solve((self.root * (shift @ self.kernel))[..., None], self.factor)[..., 0]
        return (shift - self.root * inner) @ self.kernel


class LabelLoss(torch.autograd.Function):
    """Minus the log evidence of labels by Laplace's approximation; the mode moves with the kernel, and its slope does too."""

    @staticmethod
    def forward(ctx: Any, kernel: Tensor, evidence: LabelEvidence) -> Tensor:
        """The value, with the gradient in the kernel, which shares its factor."""
        found, labels = evidence.at_mode(kernel), evidence.responses.mT
        outputs, root = found.outputs, found.root
        solved = evidence.weight * (labels - found.probs)  # K^-1 times the mode
        log_prob = (evidence.weight * (labels * outputs - torch.nn.functional.softplus(outputs))).sum()
        log_det = found.factor.diagonal(dim1=-2, dim2=-1).log().sum()
        inverse = torch.cholesky_inverse(found.factor)
        # of log det B in the outputs: half of diag((K^-1 + W)^-1) dW / df, where W (K^-1 + W)^-1 has 1 - diag(B^-1)
        pull = 0.5 * (1 - inverse.diagonal(dim1=-2, dim2=-1)) * (1 - 2 * found.probs)
        carried = (root * (pull @ kernel))[..., None]
        pull = pull - root * (inverse @ carried)[..., 0]  # (I + W K)^-1 times it
        slope = (root[..., None] * inverse * root[..., None, :]).sum(0).mul_(0.5)
        ctx.save_for_backward(slope.addmm_((pull - 0.5 * solved).mT, solved))
        return 0.5 * (outputs * solved).sum() - log_prob + log_det

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, None]:
        """The gradient in the kernel."""
        (slope,) = ctx.saved_tensors
        return slopes[0] * slope, None
