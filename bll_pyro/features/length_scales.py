r"""Length scales of the columns of a table, by the evidence of a Gaussian process on some rows.

The process has the kernel of Gaussian random features beside the columns themselves, ``c^2 = 100`` for the bias, and

.. math:: k(x, x') = c^2 + b^2 x^\top x' + a^2 \exp\bigl(-\tfrac12 \sum_d (x_d - x'_d)^2 / l_d^2\bigr).

Three forms are tried: the linear one (a = 0), one length for all columns, and one for each (Rasmussen and Williams 2006, 5.1). Each
number that a form has more must raise the log evidence by a nat, as in Akaike's criterion, or the form before it stays.
The form is chosen on few rows, and its numbers are then found on more of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from bll_pyro.features.kernel_evidence import GaussianEvidence, KernelEvidence, LabelEvidence
from bll_pyro.optimizers import InverseHessian, minimise

BIAS_VARIANCE = 100.0
SPREAD = 3.0  # standard deviation of the prior of each log: a factor of 20
# nats of evidence that a further step has to gain; on more rows in proportion to its cost, their third power
TOLERANCE, TOLERANCE_ROWS = 0.3, 512
NUM_STEPS, HISTORY = 60, 20
ROWS_PER_COLUMN = 4  # fewest rows for each length that is found


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
        tried = Search(Form(num_columns, num_lengths), best).on(few)
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
    before
        The search for a smaller form. A length for each column begins at the length that was found for all: from there the search
        ends at a higher evidence than from its own start.
    """

    def __init__(self, form: Form, before: Search | None = None) -> None:
        self.form, self.logs, self.loss = form, form.start(), math.inf  # minus the log evidence
        if before is not None and before.form.num_lengths:
            shared, length = before.logs.split([3, 1])
            self.logs = torch.cat([shared, length.expand(form.num_lengths)])
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
        tolerance = TOLERANCE * max(1.0, len(rows.columns) / TOLERANCE_ROWS) ** 3
        found = minimise(loss, [logs], NUM_STEPS, tolerance=tolerance, inverse=self.curvature)
        self.logs, self.num_rows = logs.detach(), len(rows.columns)
        self.loss = float(found.value) + float(log_prior().detach())
        return self
