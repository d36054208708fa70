"""Rows that a fit keeps for its recalibration, and the recalibration that is found on them.

Features of the rows that a backbone was trained on are too good, so that intervals and probabilities of a fit on these rows are
too narrow. What other rows say of it is one number: a noise factor or a temperature (docs/decisions/0013-calibration-rows.md).
:func:`set_aside` decides before the fit which rows those are, :func:`recalibrated` finds the number after it. Where no backbone is
trained no rows are kept: :func:`cross_fitted` takes the training rows, each predicted by the fit without it
(docs/decisions/0014-few-rows.md). Of few rows each one counts, and those that were kept are trained on the second time
(:func:`trains_again`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from enum import Enum
from numbers import Real
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bll_pyro import checks
from bll_pyro.features.columns import Columns
from bll_pyro.fitting.stratified import by_target, one_of_each_bin
from bll_pyro.gaussian.factorization import NotPositiveDefinite
from bll_pyro.inference.leave_one_out import outputs_left_out
from bll_pyro.inference.rows import FeatureRows, is_streamed
from bll_pyro.inference.training_data import TrainingData
from bll_pyro.likelihoods import Likelihood
from bll_pyro.likelihoods.gaussian_noise import GaussianNoise
from bll_pyro.posterior import GaussianPosterior
from bll_pyro.prediction import QuasiMonteCarlo, predict, predict_outputs
from bll_pyro.prediction.base import gathered
from bll_pyro.prediction.held_out import Caution, found_on
from bll_pyro.ranks import ALONE, Processes
from bll_pyro.scope import generator

if TYPE_CHECKING:
    from bll_pyro.fitting.result import Fit

SHARE, FEWEST = 0.1, 50  # of the rows that joint training keeps by default, and their number at least,
MOST = 3  # but no more than one in three,
TOO_FEW = 20  # and none where these would be fewer: the error of a noise factor is about (2 n)^-1/2, here 16%
FEW = 2000  # rows below which a joint fit trains a second time, with the rows that it kept among them
ROWS_AT_ONCE = 2048  # of a prediction
FEWEST_LEFT_OUT = 10  # rows; the number that fewer of them give is noise
PRIOR_SCALE = 0.5  # of the log of what left-out rows say, and of a temperature from kept ones: they are few where it matters
LEAST = 0.5  # left-out rows make predictions at most twice as sharp
GAIN = 2.0  # standard errors of log density that a number must gain
SMOOTHING = (
    0.0015  # of the labels where predictions become sharper: rows that a network knows have hardly an error
)
MOST_DRAWN = 2**25  # outputs of left-out rows at all points
FROM_TRAINING, LEFT_OUT = "rows kept from training", "training rows, each left out of the fit"
FROM_THE_FIRST = "rows kept from a first training"
OVERCONFIDENT = (
    "no rows were kept from the joint training{why}: features of the rows that a backbone was trained on are too good, and nothing "
    "says by how much, so that intervals and probabilities are usually overconfident; {remedy}"
)
GIVE = "pass calibration=(inputs, targets), rows that the backbone has not seen"
SHARE_OR_GIVE = "pass calibration=0.1, which keeps a tenth of the rows, or calibration=(inputs, targets)"


class Automatic(Enum):
    """The type of ``bll.AUTOMATIC``: the library decides."""

    AUTOMATIC = "automatic"

    def __repr__(self) -> str:
        return "bll.AUTOMATIC"


AUTOMATIC = Automatic.AUTOMATIC


@dataclass(frozen=True, eq=False)
class Aside:
    """What was set aside before a fit.

    Parameters
    ----------
    rows
        Rows for the recalibration, which are not fitted; None if there are none.
    source
        What rows these are, for the record.
    warning, note
        What ``bll.fit`` warns of, and what is only printed.
    """

    rows: TrainingData | None = None
    source: str = ""
    warning: str = ""
    note: str = ""


def set_aside(
    rows: TrainingData, calibration: Any, trains_backbone: bool, seed: int
) -> tuple[TrainingData, Aside]:
    """The rows to fit, and what was set aside of them or given beside them; see ``calibration`` of :func:`bll_pyro.fit`."""
    likelihood = rows.layer.likelihood
    if calibration is None:
        warning = OVERCONFIDENT.format(why=" (calibration=None)", remedy=SHARE_OR_GIVE)
        return rows, Aside(warning=warning if trains_backbone else "")
    is_automatic = calibration is AUTOMATIC
    if is_automatic and not trains_backbone:
        return rows, Aside()
    if isinstance(calibration, Real):
        checks.share(
            calibration,
            "calibration",
            "fit",
            "it is the share of the rows that is kept; None keeps all in training",
        )
    elif isinstance(calibration, str):
        raise TypeError(
            f"fit(calibration=...): expected a share such as 0.1, held-out rows (inputs, targets), or None, got {calibration!r}"
        )
    if not can_recalibrate(likelihood):
        reason = (
            f"calibration: no rows were kept, since {type(likelihood).__name__} has no noise scale that a factor could change: its "
            "spread follows from its outputs"
        )
        if is_automatic:
            return rows, Aside(note=reason)
        raise TypeError(f"{reason}; leave calibration out")
    if not (is_automatic or isinstance(calibration, Real)):
        return rows, Aside(_given(rows, calibration), "held-out rows")
    if (stored := rows.source.stored) is not None and is_streamed(stored):
        raise ValueError(
            f"fit(calibration={calibration}): expected rows in memory of which some can be kept, got a store that is read ahead; "
            "fit data=store.between(10_000, len(store)) with calibration=store.between(0, 10_000)"
        )
    index, why = _kept(rows, None if is_automatic else float(calibration), seed)
    if index is None:
        if is_automatic:
            return rows, Aside(warning=OVERCONFIDENT.format(why=f" ({why})", remedy=GIVE))
        raise ValueError(
            f"fit(calibration={calibration}): expected rows of which some can be kept, got {why}; {GIVE}"
        )
    left = torch.ones(rows.source.num_rows, dtype=torch.bool)
    left[index] = False
    return rows.subset(left.nonzero().squeeze(1)), Aside(rows.subset(index), FROM_TRAINING)


def recalibrated(fit: Fit, aside: Aside, device: str | torch.device | None, batch_size: int) -> Fit:
    """The fit with the recalibration that the rows aside call for; the reason is in its trace where there are none."""
    if aside.warning:
        fit.trace.messages.append(aside.warning)
    if aside.note:
        fit.trace.notes.append(aside.note)
    if aside.rows is None:
        return fit
    columns = aside.rows.source.columns
    features, targets = aside.rows.features(fit.backbone, fit.store, device, batch_size)
    starts = range(0, len(features), ROWS_AT_ONCE)
    blocks = [slice(start, start + ROWS_AT_ONCE) for start in starts]
    parts = (predict(fit.posterior, features[block], exposure=columns[block].exposure) for block in blocks)
    prediction = gathered(parts, len(features))
    given = targets.reshape(len(targets), *fit.posterior.target_shape)
    caution = Caution()
    if aside.source == FROM_TRAINING:
        caution = of_few_rows(fit.layer.likelihood, len(targets))
    return replace(
        fit, recalibration=found_on(prediction, given, targets, columns.weight, aside.source, caution)
    )


def of_few_rows(likelihood: Likelihood, num_rows: int) -> Caution:
    """Of a number from rows kept from training, often 50, of which a network may predict the class of each one right.

    For a temperature one row in all is taken to be of another class where predictions become sharper. Of many rows, neither this
    nor the prior counts. Values say more of their noise: a factor has a standard error of ``(2 n)^-1/2`` and needs no caution.
    """
    if not (likelihood.is_discrete or likelihood.is_binary):
        return Caution()
    return Caution(PRIOR_SCALE, label_smoothing=1 / num_rows)


def trains_again(first: Fit, rows: TrainingData, calibration: Any) -> bool:
    """Whether a fit that has kept some of its rows is to be trained once more, on all: if it did so by default.

    Not where a callback ended the first training, or where it became infinite: the second would do the same.
    """
    joint = first.trace.statistics.get("joint") or first.trace
    return calibration is AUTOMATIC and rows.source.num_rows < FEW and joint.converged


def trained_again(first: Fit, second: Fit) -> Fit:
    """The fit to all rows, with the number that the first one found on the rows that it kept.

    A number from .9 N rows is taken for N; the errors of new rows shrink a little with more rows, so that intervals are rather
    too wide than too narrow.
    """
    found = first.recalibration
    if found is not None and found.found_on is not None:
        found = replace(found, found_on=replace(found.found_on, source=FROM_THE_FIRST))
    parts = [[fit.trace, fit.trace.statistics.get("joint")] for fit in (first, second)]
    for earlier, later in zip(*parts, strict=True):
        if later is not None:
            later.wall_time += earlier.wall_time
    return replace(second, recalibration=found)


def cross_fitted(
    fit: Fit,
    features: FeatureRows,
    targets: Tensor,
    columns: Columns,
    at_mode: bool,
    ranks: Processes = ALONE,
) -> Fit:
    """The fit with the temperature or noise factor of its own rows, each predicted by the fit without it.

    There is none unless it gains more than two standard errors of log density. A Gaussian has its noise among the unknowns,
    counts have none to scale, and posteriors that are draws, or of a prior without a density, cannot leave out a row. ``ranks``
    share the rows.
    """
    posterior, likelihood = fit.posterior, fit.layer.likelihood
    if (
        not isinstance(posterior, GaussianPosterior)
        or not can_recalibrate(likelihood)
        or isinstance(likelihood, GaussianNoise)
        or not fit.layer.prior.has_density
        or fit.num_rows < FEWEST_LEFT_OUT
    ):
        return fit
    try:
        left = outputs_left_out(posterior, features, targets, columns, fit.seed, at_mode, ranks)
    except NotPositiveDefinite as error:
        fit.trace.notes.append(f"no recalibration was found: {error}")
        return fit
    if not bool(torch.isfinite(left.outputs.mean + left.outputs.variance).all()):
        fit.trace.notes.append("no recalibration was found: outputs of left-out rows are not finite")
        return fit
    targets, columns = left.targets, left.columns
    points = 2 ** min(8, max(5, int(math.log2(MOST_DRAWN / left.outputs.mean.numel()))))
    prediction = predict_outputs(posterior, left.outputs, QuasiMonteCarlo(points), columns.exposure)
    given = targets.reshape(len(targets), *posterior.target_shape)
    caution = Caution(PRIOR_SCALE, LEAST, GAIN, SMOOTHING)
    found = found_on(prediction, given, targets, columns.weight, LEFT_OUT, caution)
    return replace(fit, recalibration=found)


def can_recalibrate(likelihood: Likelihood) -> bool:
    """Whether it has probabilities that can be tempered, or noise that can be scaled."""
    has_noise = type(likelihood).with_noise_times is not Likelihood.with_noise_times
    return likelihood.is_discrete or likelihood.is_binary or has_noise


def _kept(rows: TrainingData, share: float | None, seed: int) -> tuple[Tensor | None, str]:
    """Numbers of the rows to keep, of a share or by default, and why there are none."""
    targets = rows.in_order()
    if targets is None:
        return None, "rows of a loader or stream that cannot be reached by number"
    likelihood, weight, random = rows.layer.likelihood, rows.source.columns.weight, generator(seed)
    positive = torch.ones(len(targets), dtype=torch.bool) if weight is None else weight > 0
    order = by_target(targets, positive, likelihood.is_discrete or likelihood.is_binary, random)
    num_rows, fewest = int(positive.sum()), 2  # rows of weight 0 do not count
    if share is None:
        most = min(num_rows // MOST, len(order) // 2)  # of classes of one and two rows few can leave
        number, fewest = min(max(round(SHARE * num_rows), FEWEST), most), TOO_FEW
    else:
        number = round(share * num_rows)
    if not fewest <= number <= min(len(order), num_rows - 2):
        return None, f"{len(targets)} rows are too few"
    return one_of_each_bin(order, number, random), ""


def _given(rows: TrainingData, calibration: Any) -> TrainingData:
    """Held-out rows that were given, checked against those of the fit."""
    names = rows.source.feature_names
    given = TrainingData.of(rows.layer, calibration, "calibration", trains=False, feature_names=names)
    if given.target_shape != rows.target_shape:
        raise ValueError(
            f"calibration: expected targets of shape {[given.source.num_rows, *rows.target_shape]}, as in the data, got "
            f"{[given.source.num_rows, *given.target_shape]}; pass as many targets a row"
        )
    ours, theirs = rows.source.example()[0], given.source.example()[0]
    if isinstance(ours, Tensor) and isinstance(theirs, Tensor) and ours.shape[1:] != theirs.shape[1:]:
        raise ValueError(
            f"calibration: expected inputs of shape {['N', *ours.shape[1:]]}, as in the data, got {['N', *theirs.shape[1:]]}; pass "
            "rows of the same form"
        )
    return given
