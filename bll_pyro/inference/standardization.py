"""The frame of a fit from its training rows: centre, scale and principal axes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import reduce
from operator import add
from typing import Self

import torch
from torch import Tensor

from bll_pyro.features.columns import NO_COLUMNS, Columns
from bll_pyro.frame import Frame
from bll_pyro.inference.base import Trace
from bll_pyro.inference.rows import FeatureRows, in_order
from bll_pyro.inference.training_data import TrainingData
from bll_pyro.layer import LastLayer
from bll_pyro.ranks import ALONE, Processes

# most rows from which principal axes are estimated; any rotation is valid, so a part of a large data set is enough
NUM_AXES_ROWS = 65_536
NUM_TYPICAL_ROWS = 4096  # most rows from which the median of a column is taken
BATCH_SIZE = 8192  # rows in one pass over features
BLOCK_NUMBERS = 2**16  # of them worked on at once: what a core's cache holds in float64


@dataclass(frozen=True, eq=False)
class Moments:
    r"""Number, mean and variance of rows, in float64, column by column; ``a + b`` are the moments of the rows of both.

    For parts a and b with :math:`\delta = \bar x_b - \bar x_a`:

    .. math::
        \bar x = \bar x_a + \delta \frac{n_b}{n_a + n_b}, \qquad M = M_a + M_b + \delta^2 \frac{n_a n_b}{n_a + n_b},

    with M the sum of squared deviations (Chan, Golub and LeVeque 1983), which is stable also for means far from 0.
    """

    count: float
    """Number of rows, or the sum of their weights."""
    mean: Tensor
    """Mean of each column ``[D]``."""
    deviations: Tensor
    """Sum of squared deviations from the mean of each column ``[D]``."""
    dtype: torch.dtype
    """The dtype of the rows."""

    @classmethod
    def of(cls, rows: Tensor, weight: Tensor | None = None) -> Self:
        """Moments of rows ``[n, D]``, weighted by ``weight [n]``."""
        if rows.ndim != 2 or len(rows) == 0:
            raise ValueError(
                f"expected rows [n, D] with n > 0, got shape {list(rows.shape)}; reshape with .flatten(1)"
            )
        size = max(1, BLOCK_NUMBERS // max(rows.shape[1], 1))
        if weight is None and len(rows) > size:
            return reduce(add, (cls.of(part) for part in rows.split(size)))
        # centred on the first row, so that the variance of a constant column is exactly 0
        shift = rows[0].detach().double()
        centred = rows.detach().double().sub(shift)
        if weight is None:
            mean = centred.mean(0)
            return cls(len(rows), shift + mean, centred.sub_(mean).square_().sum(0), rows.dtype)
        weights = weight.to(centred)
        count = float(weights.sum())
        mean = weights @ centred / count
        return cls(count, shift + mean, weights @ centred.sub_(mean).square_(), rows.dtype)

    @property
    def variance(self) -> Tensor:
        """Variance of each column ``[D]``: the mean squared deviation (divided by n)."""
        return self.deviations / self.count

    @property
    def constant(self) -> Tensor:
        """Whether each column ``[D]`` is constant: its standard deviation is at most the rounding of its mean."""
        resolution = torch.finfo(self.dtype).eps if self.dtype.is_floating_point else 0.0
        return self.variance.sqrt() <= resolution * self.mean.abs()

    def of_all(self, ranks: Processes) -> Moments:
        """The moments of the rows of all ranks."""
        if ranks.size == 1:
            return self
        count, mean = ranks.sums(self.mean.new_tensor(self.count), self.count * self.mean)
        mean = mean / count
        (deviations,) = ranks.sums(self.deviations + self.count * (self.mean - mean).square())
        return Moments(float(count), mean, deviations, self.dtype)

    def __add__(self, other: Moments) -> Moments:
        if not isinstance(other, Moments):
            return NotImplemented
        if self.mean.shape != other.mean.shape:
            raise ValueError(
                f"expected rows of one width, got {len(self.mean)} and {len(other.mean)} features; use one backbone for all "
                "rows"
            )
        count = self.count + other.count
        delta = other.mean.to(self.mean.device) - self.mean
        return Moments(
            count,
            self.mean + delta * (other.count / count),
            self.deviations
            + other.deviations.to(self.mean.device)
            + delta.square() * (self.count * (other.count / count)),
            self.dtype,
        )


def make_frame(
    layer: LastLayer,
    features: FeatureRows,
    targets: Tensor,
    rotates: bool,
    dtype: torch.dtype,
    columns: Columns = NO_COLUMNS,
    is_table: bool = False,
    moments: Moments | None = None,
    target_moments: Moments | None = None,
    ranks: Processes = ALONE,
) -> Frame:
    """Centre, scale and axes of the training rows, weighted by ``columns.weight``.

    ``moments`` of the features and ``target_moments`` are given where they are known already.

    ``is_table``: whether the features came as a table and not from a network, for layers that leave the choice of the scales
    to that. Constants of the features are in ``dtype``, those of the targets in the wider of ``dtype`` and their own.
    """
    num_targets = 1 if targets.dim() == 1 else targets.shape[1]
    like = torch.empty(0, dtype=dtype)
    if layer.prior.frame is not None:
        return brought_frame(layer, layer.prior.frame, features.shape[1], num_targets, dtype)
    frame = Frame.identity(features.shape[1], num_targets, like, layer.bias)
    if layer.standardize:
        if moments is None:
            moments = weighted_moments(in_order(features, BATCH_SIZE), columns.weight)
        moments = moments.of_all(ranks)
        if layer.standardize == "columns" or (is_table and layer.standardize is True):
            scale = scale_by_column(moments, features, columns.weight, ranks)
        else:
            scale = common_scale(moments)
        frame = replace(frame, center=moments.mean.to(dtype), scale=scale.to(dtype))
        if layer.likelihood.real_valued:
            if target_moments is None:
                target_moments = weighted_moments([targets], columns.weight)
            center, spread = target_scale(target_moments.of_all(ranks))
            wider = torch.promote_types(dtype, targets.dtype)
            frame = replace(frame, target_center=center.to(wider), target_scale=spread.to(wider))
    if rotates:
        frame = replace(frame, rotation=principal_axes(features, frame, columns.weight, ranks))
    return frame


def weighted_moments(batches: Iterable[Tensor], weight: Tensor | None) -> Moments:
    """Moments of rows in batches, weighted by ``weight [N]``."""
    if weight is None:
        return reduce(add, (Moments.of(batch) for batch in batches))
    parts, start = [], 0
    for batch in batches:
        batch_weight = weight[start : start + len(batch)]
        start += len(batch)
        if bool((batch_weight > 0).any()):
            parts.append(Moments.of(batch[batch_weight > 0], batch_weight[batch_weight > 0]))
    return reduce(add, parts)


def brought_frame(
    layer: LastLayer, frame: Frame, num_features: int, num_targets: int, dtype: torch.dtype
) -> Frame:
    """The frame of a prior that comes from an earlier fit; ValueError if it does not match the layer and the rows."""
    expected = (frame.num_features, len(frame.target_center), frame.bias)
    if expected != (num_features, num_targets, layer.bias):
        raise ValueError(
            f"{type(layer.prior).__name__}: expected rows with {expected[0]} features and {expected[1]} targets, and "
            f"bias={expected[2]}, as in the fit that the prior comes from, got {num_features}, {num_targets} and "
            f"bias={layer.bias}; use the same backbone, targets and bias"
        )
    constants = {k: v if k.startswith("target") else v.to(dtype) for k, v in frame.tensors.items()}
    return Frame(**constants, bias=frame.bias)


def target_scale(moments: Moments) -> tuple[Tensor, Tensor]:
    """Centre and scale ``[T]`` of real-valued targets; the scale of constant targets is 1."""
    scale = moments.variance.sqrt()
    return moments.mean, torch.where(moments.constant, torch.ones_like(scale), scale)


def target_moments(layer: LastLayer, data: TrainingData) -> tuple[int, Tensor, Tensor]:
    """Number T of targets and their centre and scale ``[T]``, in one pass over the data; 0 and 1 where not standardised.

    In the type of the targets, and in float32 at least.
    """
    if not (layer.likelihood.real_valued and layer.standardize):
        num_targets = math.prod(data.target_shape)
        return num_targets, torch.zeros(num_targets), torch.ones(num_targets)
    moments = weighted_moments(data.all_targets(), data.source.columns.weight)
    wider = torch.promote_types(torch.float32, moments.dtype)
    center, scale = target_scale(moments)
    return len(center), center.to(wider), scale.to(wider)


def common_scale(moments: Moments) -> Tensor:
    """One divisor for all features ``[D]``: root of the mean variance of those that vary; 1 where none does.

    The model is then that of the raw features up to one factor. On features of a network its ELBO is higher than with a
    scale for each, and units that are nearly dead in the training rows stay small in other rows.
    """
    variance = moments.variance[~moments.constant]
    common = variance.mean().sqrt() if len(variance) else variance.new_ones(())
    return common.expand_as(moments.mean).clone()


def scale_by_column(
    moments: Moments, features: FeatureRows, weight: Tensor | None, ranks: Processes = ALONE
) -> Tensor:
    r"""A divisor for each feature ``[D]``, proportional to its unit: ``s_j / min(1, 2 p_j)``.

    Here ``s_j`` is the standard deviation, and ``p_j`` the share of rows away from the median ``m_j``, in which a row that is
    nearer than a third of ``s_j`` counts in part:

    .. math:: p_j = \frac1N \sum_n \min\{1, (3 (x_{nj} - m_j) / s_j)^2\}.

    So a column has standard deviation ``min(1, 2 p_j)``. That is 1 for any column that moves in most rows (``p_j`` is 0.8 for
    a Normal one), and for an indicator of half of them. A column that rests at one value, or near it, in most rows says
    little, and rows in which it moves must not outweigh all others. Nothing in it jumps, with more rows or with small changes
    of the values. Constant columns are left out: their divisor is infinite.
    """
    weights = moments.mean.new_ones(len(features)) if weight is None else weight.to(moments.mean)
    rows = next(evenly_spaced(len(features), NUM_TYPICAL_ROWS, NUM_TYPICAL_ROWS, ranks))
    typical = ranks.cat(features[rows])
    median = (
        typical.median(0).values.double()
        if weight is None
        else _weighted_median(typical, ranks.cat(weights[rows]))
    )
    scale = moments.variance.sqrt()
    near = torch.where(moments.constant, 1.0, scale / 3)
    nearness, away = near.reciprocal(), torch.zeros_like(scale)
    start, size = 0, max(1, BLOCK_NUMBERS // len(scale))
    for part in in_order(features, BATCH_SIZE):
        for block in part.split(size):
            distance = (block.double() - median).mul_(nearness)
            away += weights[start : start + len(block)] @ distance.square_().clamp_max_(1.0)
            start += len(block)
    away, total = ranks.sums(away, weights.sum())
    share = (2 * away / total).clamp_max(1.0)
    return torch.where(moments.constant, torch.inf, scale / share)


def _weighted_median(values: Tensor, weight: Tensor) -> Tensor:
    """The lowest value of each column that half of the weight reaches ``[D]``; with equal weights it is ``torch.median``."""
    values, order = values.sort(0)
    reached = weight[order].cumsum(0)
    return values.gather(0, (reached >= reached[-1] / 2).int().argmax(0, keepdim=True))[0].double()


def principal_axes(
    features: FeatureRows, frame: Frame, weight: Tensor | None = None, ranks: Processes = ALONE
) -> Tensor:
    """Eigenvectors ``[D, D]`` of ``H'H`` of the standardised features."""
    gram = torch.zeros(frame.num_features, frame.num_features, dtype=torch.float64)
    for part in evenly_spaced(len(features), NUM_AXES_ROWS, BATCH_SIZE, ranks):
        standardized = frame.standardized(features[part])
        weighted = standardized if weight is None else weight[part].to(standardized)[:, None] * standardized
        gram += (weighted.mT @ standardized).double()
    # eigh returns a column-major matrix, files hold row-major ones: the same layout gives the same bits after loading
    (gram,) = ranks.sums(gram)
    return torch.linalg.eigh(gram).eigenvectors.to(frame.center.dtype).contiguous()


def evenly_spaced(num_rows: int, most: int, size: int, ranks: Processes = ALONE) -> Iterator[Tensor | slice]:
    """Up to ``most`` of N row numbers in parts of ``size``; slices, which copy nothing, if all rows are taken.

    N are the rows of all ranks, of which this one has ``num_rows``, and gets the numbers of its own among them.
    """
    sizes = ranks.gather(num_rows)
    if sum(sizes) <= most:
        yield from (slice(start, start + size) for start in range(0, num_rows, size))
    else:
        chosen = torch.linspace(0, sum(sizes) - 1, most, dtype=torch.float64).round().long()
        chosen = chosen - sum(sizes[: ranks.rank])
        yield from chosen[(chosen >= 0) & (chosen < num_rows)].split(size)


def log_densities_in_user_units(trace: Trace, frame: Frame, num_rows: float) -> None:
    """Bring log densities of N targets (by weight) from the standardised scale to the user's: ``- N sum_t log scale_t``."""
    shift = num_rows * frame.log_target_scale
    trace.elbo = None if trace.elbo is None else trace.elbo - shift
    for name in ("elbo", "log_evidence", "evidence_path"):
        if name in trace.statistics:
            trace.statistics[name] = trace.statistics[name] - shift
