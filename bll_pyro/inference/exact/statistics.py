"""Sufficient statistics of the linear Gaussian model: the sums over the rows that determine the exact posterior.

Rows are centred on the mean of their block before they are multiplied, and blocks are joined by the rule of Chan,
Golub and LeVeque (1983), so that means far from 0 cost no precision. All in float64. Memory does not grow with the
number of rows, and statistics of parts add up to the same, in any order, up to rounding.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from bll_pyro.inference.row_targets import values_of, weight_of
from bll_pyro.inference.rows import DesignRows
from bll_pyro.observation import stage
from bll_pyro.ranks import Processes
from bll_pyro.summary import Summary

BLOCK_NUMBERS = 4_000_000  # numbers in one block of rows
MIN_BLOCK = 256  # fewest rows in one block


@dataclass(frozen=True, eq=False)
class SufficientStatistics(Summary):
    """Sums over N rows of features ``h [D]`` and targets ``y [T]``, in float64; a row of weight w counts w times.

    =============== =========================================== ==========
    on paper        in code                                     shape
    =============== =========================================== ==========
    N               ``num_rows``, of weight above 0
    ``sum w``       ``weight``; N without weights
    mean of h       ``feature_mean``                            ``[D]``
    mean of y       ``target_mean``                             ``[T]``
    ``Hc' Hc``      ``gram``, of centred features               ``[D, D]``
    ``Hc' Yc``      ``cross``, of centred features and targets  ``[D, T]``
    ``sum yc^2``    ``square``, of each centred target          ``[T]``
    =============== =========================================== ==========

    ``a + b`` are the statistics of the rows of both. ``root [N, D]`` has the product ``root' root = gram``; it is kept where one
    block holds all rows and there are at most half as many as columns, since a decomposition is then cheaper.
    """

    num_rows: int
    weight: float
    feature_mean: Tensor
    target_mean: Tensor
    gram: Tensor
    cross: Tensor
    square: Tensor
    root: Tensor | None = None

    @classmethod
    def of(cls, features: Tensor, targets: Tensor, weight: Tensor | None = None) -> Self:
        """Statistics of rows ``[N, D]``, targets ``[N, T]`` and weights ``[N]``."""
        return cls.of_blocks([(features, targets, weight)])

    @classmethod
    def of_blocks(cls, blocks: Iterable[Sequence[Tensor | None]]) -> Self:
        """Statistics of blocks of rows ``[B, D]`` with targets ``[B, T]`` (and weights ``[B]``), in one pass.

        Raises
        ------
        ValueError
            If there are no rows, or the blocks have different widths.
        """
        total: Self | None = None
        for features, targets, *rest in blocks:
            assert features is not None and targets is not None
            weight = rest[0] if rest else None
            if weight is not None:
                features, targets, weight = (v[weight > 0] for v in (features, targets, weight))
            if not len(features):
                continue
            _check(features, targets)
            h, y, count = features.double(), targets.double(), float(len(features))
            if weight is None:
                feature_mean, target_mean = h.mean(0), y.mean(0)
                h, y = h - feature_mean, y - target_mean
            else:
                w = weight.double()
                count = float(w.sum())
                feature_mean, target_mean = w @ h / count, w @ y / count
                root = w.sqrt()[:, None]
                h, y = root * (h - feature_mean), root * (y - target_mean)
            if total is None:
                sums = (h.mT @ h, h.mT @ y, y.square().sum(0))
                few = h if 2 * len(h) <= h.shape[1] else None
                total = cls(len(h), count, feature_mean, target_mean, *sums, few)
                continue
            _check_widths(total, features.shape[1], targets.shape[1])
            total.gram.addmm_(h.mT, h)
            total.cross.addmm_(h.mT, y)
            total.square.add_(y.square().sum(0))
            total = total._shifted(len(h), count, feature_mean, target_mean)
        if total is None:
            raise ValueError(
                "statistics: expected at least one row of weight above 0, got none; check the data"
            )
        return total

    def __add__(self, other: SufficientStatistics) -> SufficientStatistics:
        if not isinstance(other, SufficientStatistics):
            return NotImplemented
        _check_widths(self, len(other.feature_mean), len(other.target_mean))
        other = other.to(self.gram.device)
        joined = SufficientStatistics(
            self.num_rows,
            self.weight,
            self.feature_mean,
            self.target_mean,
            self.gram + other.gram,
            self.cross + other.cross,
            self.square + other.square,
        )
        return joined._shifted(other.num_rows, other.weight, other.feature_mean, other.target_mean)

    def _shifted(self, num_rows: int, weight: float, feature_mean: Tensor, target_mean: Tensor) -> Self:
        """Shift to the mean of these rows and ``num_rows`` more, whose centred sums have already been added."""
        total = self.weight + weight
        h, y = feature_mean - self.feature_mean, target_mean - self.target_mean
        factor, share = self.weight * weight / total, weight / total
        self.gram.addr_(h, h, alpha=factor)
        self.cross.addr_(h, y, alpha=factor)
        self.square.add_(y.square(), alpha=factor)
        means = self.feature_mean + share * h, self.target_mean + share * y
        sums = (*means, self.gram, self.cross, self.square)
        return type(self)(self.num_rows + num_rows, total, *sums)

    def of_all(self, ranks: Processes) -> SufficientStatistics:
        """The statistics of the rows of all ranks: each shifts its sums to the common mean, where they add up."""
        if ranks.size == 1:
            return self
        like = self.gram
        num_rows, weight, *means = ranks.sums(
            like.new_tensor(self.num_rows),
            like.new_tensor(self.weight),
            self.weight * self.feature_mean,
            self.weight * self.target_mean,
        )
        feature_mean, target_mean = (mean / weight for mean in means)
        h, y = self.feature_mean - feature_mean, self.target_mean - target_mean
        sums = ranks.sums(
            self.gram.addr(h, h, alpha=self.weight),
            self.cross.addr(h, y, alpha=self.weight),
            self.square + self.weight * y.square(),
        )
        return SufficientStatistics(int(num_rows), float(weight), feature_mean, target_mean, *sums)

    def to(self, device: torch.device | str) -> SufficientStatistics:
        """The same sums on another device."""
        sums = (self.feature_mean, self.target_mean, self.gram, self.cross, self.square)
        return SufficientStatistics(self.num_rows, self.weight, *(value.to(device) for value in sums))


def _check(features: Tensor, targets: Tensor) -> None:
    if features.dim() != 2 or targets.dim() != 2 or len(features) != len(targets):
        raise ValueError(
            f"statistics: expected features [N, D] and targets [N, T] of the same rows, got {list(features.shape)} and "
            f"{list(targets.shape)}; reshape them with .flatten(1) and targets[:, None]"
        )


def _check_widths(own: SufficientStatistics, num_features: int, num_targets: int) -> None:
    expected = (len(own.feature_mean), len(own.target_mean))
    if (num_features, num_targets) != expected:
        raise ValueError(
            f"statistics: expected rows with {expected[0]} features and {expected[1]} targets, got {num_features} and "
            f"{num_targets}; only rows of one model can be added"
        )


def sum_rows(rows: DesignRows) -> SufficientStatistics:
    """Sums over all rows, block by block, in the frame of the rows; those that are known already are not summed again."""
    if rows.sums is not None:
        return rows.sums.of_all(rows.ranks)
    num_features = rows.frame.num_features
    size = max(MIN_BLOCK, BLOCK_NUMBERS // num_features)
    with stage("sums", rows.num_rows, rows_per_step=1) as done:

        def parts() -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
            for design, y in rows.blocks(size):
                yield design[:, :num_features], values_of(y), weight_of(y)
                done.advance(len(design))

        return SufficientStatistics.of_blocks(parts()).of_all(rows.ranks)
