"""Sums over rows as they are stored, from which centre, scale and the sums of standardised rows follow: one pass for all of them.

For ``h' = R' ((h - c) / s)`` and ``y' = (y - d) / t`` the sums of :class:`SufficientStatistics` are

``mean(h') = R' ((mean(h) - c) / s)``,  ``G' = R' (G / s s') R``,  ``C' = R' (C / s t')``,  ``Q' = Q / t^2``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import reduce
from operator import add
from threading import Lock

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from bll_pyro.features.columns import Columns
from bll_pyro.frame import Frame
from bll_pyro.inference.exact.statistics import SufficientStatistics
from bll_pyro.inference.rows import FeatureRows, in_order
from bll_pyro.inference.standardization import Moments
from bll_pyro.observation import stage

BLOCK_NUMBERS = 2**16  # of a block of rows: what a core's cache holds
FEWEST_ROWS = 512  # of a block: enough for a product
CALL_NUMBERS = 2**21  # for one call of a thread
COLUMNS_PER_THREAD = (
    256  # of one product: with fewer, threads of BLAS wait for each other for longer than they compute
)


def raw_sums(features: FeatureRows, targets: Tensor, columns: Columns) -> SufficientStatistics:
    """Sums over features ``[N, D]`` and targets ``[N]`` or ``[N, T]`` in the user's units, in one pass.

    Blocks of rows go in turn to as many threads as torch has, each of which has sums of its own; where there are many columns,
    to fewer threads that share the work of a product.
    """
    size, start = max(FEWEST_ROWS, CALL_NUMBERS // features.shape[1]), 0
    flat, turns = targets.reshape(len(targets), -1), deque[tuple[_ShiftedSums, Future[None]]]()
    num_together = min(torch.get_num_threads(), max(features.shape[1] // COLUMNS_PER_THREAD, 1))
    num_threads = max(torch.get_num_threads() // num_together, 1)
    with (
        stage("sums", len(features), rows_per_step=1) as done,
        _blas_threads(num_together),
        ThreadPoolExecutor(num_threads) as pool,
    ):
        for rows in in_order(features, size):
            place = slice(start, start + len(rows))
            values, weight = flat[place], None if columns.weight is None else columns.weight[place].double()
            start += len(rows)
            done.advance(len(rows))
            if weight is not None:
                rows, values, weight = (each[weight > 0] for each in (rows, values, weight))
            if not len(rows):
                continue
            if len(turns) < num_threads:
                part = _ShiftedSums(rows, values, weight)
            else:
                part, added = turns.popleft()
                added.result()
            turns.append((part, pool.submit(part.add, rows, values, weight)))
        for _, added in turns:
            added.result()
    assert turns  # the weights of a fit are not all 0
    return reduce(add, (part.statistics() for part, _ in turns))


class _ShiftedSums:
    """Sums ``sum w``, ``D' w``, ``Z' w``, ``D' W D``, ``D' W Z``, ``sum w z^2`` of rows ``d = h - a``, ``z = y - b``.

    The shifts a and b are means of the first block. Taking out the mean in the end loses at most as many digits as N over the rows
    of the first block has: the mean of all rows is no further from that of a part, in standard deviations, than the root of that
    ratio.

    By numpy: it sees that both factors of ``D' D`` are one matrix and computes half of the symmetric product (``syrk`` of BLAS),
    and it computes in the calling thread. Threads of torch wait for the next block at full speed, in place of the one that reads.
    """

    def __init__(self, features: Tensor, targets: Tensor, weight: Tensor | None) -> None:
        w = torch.ones(len(features), dtype=torch.float64) if weight is None else weight
        share, num_features, num_targets = w / w.sum(), features.shape[1], targets.shape[1]
        self.feature_shift = (share @ features.double()).numpy()
        self.target_shift = (share @ targets.double()).numpy()
        self.num_rows, self.total = 0, 0.0
        self.moved, self.moved_targets = np.zeros(num_features), np.zeros(num_targets)
        self.gram = np.zeros((num_features, num_features))
        self.cross = np.zeros((num_features, num_targets))
        self.square = np.zeros(num_targets)
        size = max(FEWEST_ROWS, BLOCK_NUMBERS // num_features)
        # numpy is slow where it has to repeat a row of few columns
        self._shift = np.tile(self.feature_shift, (size, 1))
        self._memory, self._ones = np.empty((size, num_features)), np.ones((size, 1))

    def add(self, features: Tensor, targets: Tensor, weight: Tensor | None) -> None:
        """Add rows ``[B, D]`` with targets ``[B, T]`` and weights ``[B]``."""
        self.num_rows += len(features)
        rows, values, size = _array(features), _array(targets), len(self._memory)
        roots = None if weight is None else np.sqrt(weight.numpy())[:, None]
        for start in range(0, len(rows), size):
            part = slice(start, start + size)
            self._add(rows[part], values[part], None if roots is None else roots[part])

    def _add(self, features: np.ndarray, targets: np.ndarray, roots: np.ndarray | None) -> None:
        rows, values = self._memory[: len(features)], targets - self.target_shift
        np.copyto(rows, features)
        rows -= self._shift[: len(features)]
        if roots is None:
            roots = self._ones[: len(features)]
        else:
            rows *= roots
            values = roots * values
        self.total += float(np.einsum("nk,nk->", roots, roots))
        self.moved += (roots.T @ rows)[0]
        self.moved_targets += (roots.T @ values)[0]
        self.gram += rows.T @ rows
        self.cross += rows.T @ values
        self.square += np.einsum("nt,nt->t", values, values)

    def statistics(self) -> SufficientStatistics:
        """The sums about the means."""
        total, moved, moved_targets = self.total, self.moved, self.moved_targets
        gram = self.gram - np.outer(moved, moved) / total
        np.fill_diagonal(gram, np.maximum(gram.diagonal(), 0.0))
        means = self.feature_shift + moved / total, self.target_shift + moved_targets / total
        cross = self.cross - np.outer(moved, moved_targets) / total
        square = np.maximum(self.square - moved_targets**2 / total, 0.0)
        sums = (torch.from_numpy(each) for each in (*means, gram, cross, square))
        return SufficientStatistics(self.num_rows, total, *sums)


def _array(rows: Tensor) -> np.ndarray:
    """Rows on the CPU as an array; numpy has no bfloat16."""
    return (rows.float() if rows.dtype == torch.bfloat16 else rows).numpy()


class _BlasThreads:
    """Blocks in which each of numpy's products takes so many threads.

    The number is one of the process. Of several blocks at once, in as many threads, the first sets it and the last sets it back.
    """

    def __init__(self) -> None:
        self._lock, self._num_blocks = Lock(), 0
        self._limits: threadpool_limits | None = None

    @contextmanager
    def __call__(self, num_threads: int) -> Iterator[None]:
        """A block in which a product takes so many threads."""
        with self._lock:
            self._num_blocks += 1
            if self._limits is None:
                self._limits = threadpool_limits(num_threads, user_api="blas")
        try:
            yield
        finally:
            with self._lock:
                self._num_blocks -= 1
                if not self._num_blocks and self._limits is not None:
                    self._limits.restore_original_limits()
                    self._limits = None


_blas_threads = _BlasThreads()


def moments_of(
    sums: SufficientStatistics, dtype: torch.dtype, target_dtype: torch.dtype
) -> tuple[Moments, Moments]:
    """Moments of the features and of the targets, which are stored in these dtypes."""
    deviations = sums.gram.diagonal().clone()
    return (
        Moments(sums.weight, sums.feature_mean, deviations, dtype),
        Moments(sums.weight, sums.target_mean, sums.square, target_dtype),
    )


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
