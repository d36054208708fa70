"""Sums over rows as they are stored, from which centre, scale and the sums of standardised rows follow: one pass for all of them.

For ``h' = R' ((h - c) / s)`` and ``y' = (y - d) / t`` the sums of :class:`SufficientStatistics` are

``mean(h') = R' ((mean(h) - c) / s)``,  ``G' = R' (G / s s') R``,  ``C' = R' (C / s t')``,  ``Q' = Q / t^2``.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from bll_pyro.features.columns import Columns
from bll_pyro.frame import Frame
from bll_pyro.inference.exact.statistics import SufficientStatistics
from bll_pyro.inference.rows import FeatureRows, in_order
from bll_pyro.inference.standardization import Moments
from bll_pyro.observation import stage

BLOCK_NUMBERS = 2**18  # numbers of a block of rows: what a processor's cache holds


def raw_sums(features: FeatureRows, targets: Tensor, columns: Columns) -> SufficientStatistics:
    """Sums over features ``[N, D]`` and targets ``[N]`` or ``[N, T]`` in the user's units, in one pass."""
    size = max(1, BLOCK_NUMBERS // features.shape[1])
    flat = targets.reshape(len(targets), -1)
    with stage("sums", len(features), rows_per_step=1) as done:

        def blocks() -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
            start = 0
            for rows in in_order(features, size):
                part = slice(start, start + len(rows))
                yield rows, flat[part], None if columns.weight is None else columns.weight[part]
                start += len(rows)
                done.advance(len(rows))

        return SufficientStatistics.of_blocks(blocks())


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
