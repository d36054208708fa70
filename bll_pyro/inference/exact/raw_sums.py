"""Sums over rows as they are stored, from which centre, scale and the sums of standardised rows follow: one pass for all of them.

For ``h' = R' ((h - c) / s)`` and ``y' = (y - d) / t`` the sums of :class:`SufficientStatistics` are

``mean(h') = R' ((mean(h) - c) / s)``,  ``G' = R' (G / s s') R``,  ``C' = R' (C / s t')``,  ``Q' = Q / t^2``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from bll_pyro.features.columns import Columns
from bll_pyro.frame import Frame
from bll_pyro.inference.exact.statistics import SufficientStatistics
from bll_pyro.inference.rows import FeatureRows, in_order
from bll_pyro.inference.standardization import Moments
from bll_pyro.observation import stage

BLOCK_NUMBERS = 2**17  # of a block of rows: what a core's cache holds
FEWEST_ROWS = 1024  # of a block: enough for a product
COLUMNS_PER_THREAD = (
    256  # of a product: with fewer, threads of BLAS wait for each other for longer than they compute
)


def raw_sums(features: FeatureRows, targets: Tensor, columns: Columns) -> SufficientStatistics:
    """Sums over features ``[N, D]`` and targets ``[N]`` or ``[N, T]`` in the user's units, in one pass."""
    size = max(FEWEST_ROWS, BLOCK_NUMBERS // features.shape[1])
    flat, start, num_rows = targets.reshape(len(targets), -1), 0, 0
    sums: _ShiftedSums | None = None
    with stage("sums", len(features), rows_per_step=1) as done, _blas_threads(features.shape[1]):
        for rows in in_order(features, size):
            part = slice(start, start + len(rows))
            values, weight = flat[part], None if columns.weight is None else columns.weight[part].double()
            start += len(rows)
            done.advance(len(rows))
            if weight is not None:
                rows, values, weight = (each[weight > 0] for each in (rows, values, weight))
            if len(rows):
                sums = sums or _ShiftedSums(rows, values, weight)
                sums.add(rows, values, weight)
                num_rows += len(rows)
    assert sums is not None  # the weights of a fit are not all 0
    return SufficientStatistics(num_rows, *sums.centred())


class _ShiftedSums:
    """Sums ``D' W D``, ``D' W Z``, ``sum w z^2`` over rows ``d = [h - a, 1]``, ``z = y - b``; a, b are means of the first block.

    Its last row and column hold the sums of d and of the weights. Taking out the mean in the end loses at most as many digits as
    N over the rows of the first block has: the mean of all rows is no further from that of a part, in standard deviations, than the
    root of that ratio.
    """

    def __init__(self, features: Tensor, targets: Tensor, weight: Tensor | None) -> None:
        w = features.new_ones(len(features)).double() if weight is None else weight.double()
        share = w / w.sum()
        self.feature_shift, self.target_shift = share @ features.double(), share @ targets.double()
        num_columns = features.shape[1] + 1
        self.gram = self.feature_shift.new_zeros(num_columns, num_columns)
        self.cross = self.feature_shift.new_zeros(num_columns, targets.shape[1])
        self.square = torch.zeros_like(self.target_shift)
        self._memory = self.feature_shift.new_ones(0, num_columns)

    def add(self, features: Tensor, targets: Tensor, weight: Tensor | None) -> None:
        """Add rows ``[B, D]`` with targets ``[B, T]`` and weights ``[B]``."""
        if len(self._memory) < len(features):
            self._memory = self.gram.new_ones(len(features), len(self.gram))
        rows = self._memory[: len(features)]
        rows[:, :-1].copy_(features).sub_(self.feature_shift)
        values = targets - self.target_shift
        if weight is not None:
            root = weight.sqrt()[:, None]
            rows, values = root * rows, root * values
        self.gram += _product_with_itself(rows)
        self.cross.addmm_(rows.mT, values)
        self.square.add_(values.square().sum(0))

    def centred(self) -> tuple[float, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Sum of the weights, means, and the sums about them."""
        total, moved, moved_targets = float(self.gram[-1, -1]), self.gram[:-1, -1], self.cross[-1]
        gram = self.gram[:-1, :-1].addr(moved, moved, alpha=-1 / total)
        gram.diagonal().clamp_min_(0.0)
        return (
            total,
            self.feature_shift + moved / total,
            self.target_shift + moved_targets / total,
            gram,
            self.cross[:-1].addr(moved, moved_targets, alpha=-1 / total),
            (self.square - moved_targets.square() / total).clamp_min(0.0),
        )


def _product_with_itself(rows: Tensor) -> Tensor:
    """``rows' rows`` ``[P, P]`` of float64 rows ``[B, P]`` on the CPU.

    By numpy, which sees that both factors are one matrix and computes half of the symmetric product (``syrk`` of BLAS), where
    torch computes all of it.
    """
    array = rows.numpy()
    return torch.from_numpy(array.T @ array)


class _BlasThreads:
    """Blocks in which numpy's products take as many threads as torch has, or fewer where there are few columns.

    The number is one of the process. Of several blocks at once, in as many threads, the first sets it and the last sets it back.
    """

    def __init__(self) -> None:
        self._lock, self._num_blocks = Lock(), 0
        self._limits: threadpool_limits | None = None

    @contextmanager
    def __call__(self, num_columns: int) -> Iterator[None]:
        """A block for products of so many columns."""
        with self._lock:
            self._num_blocks += 1
            if self._limits is None:
                most = max(num_columns // COLUMNS_PER_THREAD, 1)
                self._limits = threadpool_limits(min(torch.get_num_threads(), most), user_api="blas")
        try:
            yield
        finally:
            with self._lock:
                self._num_blocks -= 1
                if not self._num_blocks and self._limits is not None:
                    self._limits.restore_original_limits()
                    self._limits = None


_blas_threads = _BlasThreads()


def moments_of(sums: SufficientStatistics, dtype: torch.dtype) -> Moments:
    """Moments of the features, which are stored in a dtype."""
    return Moments(sums.weight, sums.feature_mean, sums.gram.diagonal().clone(), dtype)


def sums_in_frame(sums: SufficientStatistics, frame: Frame) -> SufficientStatistics:
    """The sums of the rows in a frame."""
    scale, target_scale = frame.scale.double(), frame.target_scale.double()
    mean = (sums.feature_mean - frame.center.double()) / scale
    gram = sums.gram / torch.outer(scale, scale)
    cross = sums.cross / torch.outer(scale, target_scale)
    if frame.rotation is not None:
        axes = frame.rotation.double()
        mean, gram, cross = mean @ axes, axes.mT @ gram @ axes, axes.mT @ cross
    return SufficientStatistics(
        sums.num_rows,
        sums.weight,
        mean,
        (sums.target_mean - frame.target_center.double()) / target_scale,
        gram,
        cross,
        sums.square / target_scale.square(),
    )
