r"""Length scales of the columns of a table, by the evidence of a Gaussian process on some rows.

The process has the kernel of Gaussian random features beside the columns themselves, ``c^2 = 100`` for the bias, and

.. math:: k(x, x') = c^2 + b^2 x^\top x' + a^2 \exp\bigl(-\tfrac12 \sum_d (x_d - x'_d)^2 / l_d^2\bigr).

Three forms are tried: the linear one (a = 0), one length for all columns, and one for each (Rasmussen and Williams 2006, 5.1). Each
number that a form has more must raise the log evidence by a nat, as in Akaike's criterion, or the form before it stays.
The form is chosen on few rows, and its numbers are then found on more of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from bll_pyro.optimizers import InverseHessian, minimise

BIAS_VARIANCE = 100.0
JITTER = 1e-6  # variance of the noise at least, in squares of the targets' scale
SPREAD = 3.0  # standard deviation of the prior of each log: a factor of 20
TOLERANCE = 0.3  # nats of evidence that a further step would gain
NUM_STEPS, HISTORY = 60, 20
ROWS_PER_COLUMN = 4  # fewest rows for each length that is found
NEWTON_STEPS, SMALL_STEP = 30, 1e-4

KernelEvidence = Callable[
    [Tensor, Tensor], Tensor
]  # of a kernel [n, n] and a log noise scale: minus the log evidence, nats


@dataclass(frozen=True)
class Kernel:
    """What was found: lengths ``[D]`` and amplitude a of the smooth part, None and 0 without one, and b of the columns."""

    linear: float
    amplitude: float = 0.0
    lengths: Tensor | None = None
    noise: float = 0.0


@dataclass(frozen=True)
class Form:
    """Which numbers there are; their logs are one vector: b, noise, and where there is a smooth part a and its lengths."""

    num_columns: int
    num_lengths: int

    def start(self) -> Tensor:
        """Outputs of each part about as large as the targets, and lengths as large as the distance of two rows."""
        apart = 0.5 * math.log(self.num_columns)
        logs = torch.tensor([-apart, math.log(0.3)], dtype=torch.float64)
        if self.num_lengths:
            smooth = torch.full((1 + self.num_lengths,), apart, dtype=torch.float64)
            smooth[0] = 0.0
            logs = torch.cat([logs, smooth])
        return logs

    def kernel(self, logs: Tensor, rows: Tensor) -> Tensor:
        """``k(x, x') - c^2`` of all pairs of rows ``[n, D]``, differentiable in the logs."""
        values: Tensor = KernelOf.apply(logs, rows)
        return values

    def found(self, logs: Tensor) -> Kernel:
        """The numbers by name."""
        linear, noise = (float(value.exp()) for value in logs[:2])
        if not self.num_lengths:
            return Kernel(linear, noise=noise)
        return Kernel(linear, float(logs[2].exp()), logs[3:].exp().expand(self.num_columns).clone(), noise)


class KernelOf(torch.autograd.Function):
    """The kernel of a form, of rows ``[n, D]``; its gradient needs products of ``[n, n]`` with ``[n, D]`` only."""

    @staticmethod
    def forward(ctx: Any, logs: Tensor, rows: Tensor) -> Tensor:
        """``b^2 x'x + a^2 exp(...)``, the exponent as one product of matrices."""
        linear = rows * logs[0].exp()
        if len(logs) == 2:
            ctx.save_for_backward(linear, linear, logs)
            return linear @ linear.mT
        scaled = rows / logs[3:].exp()
        height = logs[2] - scaled.square().sum(1, keepdim=True) / 2
        one = torch.ones_like(height)
        smooth = torch.cat([scaled, height, one], 1) @ torch.cat([scaled, one, height], 1).mT
        smooth.clamp_(max=2 * float(logs[2])).exp_()  # rounding may give a distance below 0
        ctx.save_for_backward(linear, scaled, logs, smooth)
        return torch.addmm(smooth, linear, linear.mT)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, None]:
        """The gradient in the logs; that of a length is ``sum_ij G_ij k_ij (x_i - x_j)^2 / l^2`` without differences of pairs."""
        (slope,) = slopes
        linear, scaled, logs, *smooth = ctx.saved_tensors
        gradient = torch.zeros_like(logs)
        gradient[0] = 2 * (linear * (slope @ linear)).sum()
        if smooth:
            parts = slope * smooth[0]
            ends = parts.sum(0) + parts.sum(1)
            gradient[2] = ends.sum()
            of_columns = ends @ scaled.square() - 2 * (scaled * (parts @ scaled)).sum(0)
            gradient[3:] = of_columns if len(logs) - 3 == scaled.shape[1] else of_columns.sum()
        return gradient, None


@dataclass(frozen=True)
class KernelRows:
    """Rows ``[n, D]`` about 0, responses ``[n, T]`` (values about 0, or labels 0 and 1), and weights ``[n]``."""

    columns: Tensor
    responses: Tensor
    weight: Tensor
    are_labels: bool

    def first(self, number: int) -> KernelRows:
        """The first of them, which are in random order where there are more."""
        part = (self.columns[:number], self.responses[:number], self.weight[:number])
        return replace(self, columns=part[0], responses=part[1], weight=part[2])

    def evidence(self) -> KernelEvidence:
        """The evidence for such responses."""
        return (LabelEvidence if self.are_labels else GaussianEvidence)(self.responses, self.weight)


def kernel_of(rows: KernelRows, num_choosing: int) -> Kernel:
    """The kernel of these rows, its form chosen on the first ``num_choosing`` of them."""
    few = rows.first(num_choosing)
    num_columns, varies = rows.columns.shape[1], bool(rows.columns.abs().sum() > 0)
    each = (
        [num_columns] if num_columns > 1 and float(few.weight.sum()) >= ROWS_PER_COLUMN * num_columns else []
    )
    best: Search | None = None
    for num_lengths in [0, *([1, *each] if varies else [])]:
        tried = Search(Form(num_columns, num_lengths)).on(few)
        if best is not None and best.loss - tried.loss <= len(tried.logs) - len(best.logs):
            break
        best = tried
    assert best is not None
    while best.form.num_lengths and num_choosing < len(rows.columns):
        num_choosing *= 2
        best = best.on(rows.first(num_choosing))
    return best.form.found(best.logs)


class Search:
    """The search for the logs of a form; from some rows it goes on to more of them with the curvature that it has learned.

    Parameters
    ----------
    form
        Which logs there are.
    """

    def __init__(self, form: Form) -> None:
        self.form, self.logs, self.loss = form, form.start(), math.inf  # minus the log evidence
        self.curvature, self.num_rows = InverseHessian(HISTORY), 0

    def on(self, rows: KernelRows) -> Search:
        """Move to the logs of highest evidence of these rows times prior."""
        evidence, center = rows.evidence(), self.form.start()
        logs = self.logs.clone().requires_grad_(True)

        def log_prior() -> Tensor:
            return -0.5 * ((logs - center) / SPREAD).square().sum()

        def loss() -> Tensor:
            kernel = self.form.kernel(logs, rows.columns).add_(BIAS_VARIANCE)
            return evidence(kernel, logs[1]) - log_prior()

        self.curvature.multiply(max(1, self.num_rows) / len(rows.columns))  # the evidence is a sum over rows
        found = minimise(loss, [logs], NUM_STEPS, tolerance=TOLERANCE, inverse=self.curvature)
        self.logs, self.num_rows = logs.detach(), len(rows.columns)
        self.loss = float(found.value) + float(log_prior().detach())
        return self


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
        factor, failed = torch.linalg.cholesky_ex(whole)
        if bool(failed):
            ctx.save_for_backward(torch.full_like(kernel, torch.nan), torch.full_like(log_noise, torch.nan))
            return torch.full_like(log_noise, torch.nan)
        inverse = torch.cholesky_inverse(factor)
        solved = inverse @ responses
        value = 0.5 * (responses * solved).sum() + num * factor.diagonal().log().sum()
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
    mode: Tensor | None = None

    def __call__(self, kernel: Tensor, log_noise: Tensor) -> Tensor:
        """Its value; one step of Newton's method that gradients pass through carries how the mode moves with the kernel."""
        labels = self.responses.mT
        outputs = torch.zeros_like(labels) if self.mode is None else self.mode
        with torch.no_grad():
            for _ in range(NEWTON_STEPS):
                moved, _ = self._step(kernel, outputs, labels)
                change, outputs = float((moved - outputs).abs().max()), moved
                if not change >= SMALL_STEP:
                    break
        self.mode = outputs if bool(outputs.isfinite().all()) else None
        outputs, solved = self._step(kernel, outputs, labels)
        log_prob = (self.weight * (labels * outputs - torch.nn.functional.softplus(outputs))).sum()
        factor = self._factor(kernel, self._curvature(outputs))
        log_det = factor.diagonal(dim1=-2, dim2=-1).log().sum()
        return 0.5 * (outputs * solved).sum() - log_prob + log_det + 0 * log_noise

    def _step(self, kernel: Tensor, outputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The mode of the quadratic approximation at ``outputs [T, n]``, and ``K^-1`` times it."""
        curvature = self._curvature(outputs)
        shift = curvature * outputs + self.weight * (labels - torch.sigmoid(outputs))
        root = curvature.sqrt()
        factor = self._factor(kernel, curvature)
        inner = torch.cholesky_solve((root * (shift @ kernel))[..., None], factor)[..., 0]
        solved = shift - root * inner
        return solved @ kernel, solved

    def _curvature(self, outputs: Tensor) -> Tensor:
        curvature = self.weight * torch.sigmoid(outputs) * torch.sigmoid(-outputs)
        return curvature.clamp_min(torch.finfo(curvature.dtype).tiny)  # its root has a slope

    def _factor(self, kernel: Tensor, curvature: Tensor) -> Tensor:
        """Cholesky factor of ``I + W^1/2 K W^1/2``; NaN where a step of the search went too far for one."""
        root = curvature.sqrt()
        inner = root[..., None] * kernel * root[..., None, :] + torch.eye(len(kernel), dtype=kernel.dtype)
        factor, failed = torch.linalg.cholesky_ex(inner)
        return factor * torch.where(failed > 0, torch.nan, 1.0)[..., None, None]
