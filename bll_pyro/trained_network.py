"""``bayesianize``: a network that was trained without us, with a posterior around the last layer that it has.

The prior of the weights is centred at the network's own head, and its scale is a share of the size of the head's weights. Neither
evidence nor left-out rows can choose that share: the network was trained on these rows, or may have been, and its features of
them are too good. Rows that are not fitted choose it, and the temperature or noise factor with it
(docs/decisions/0016-a-trained-network.md).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bll_pyro.checks import device as check_device
from bll_pyro.checks import positive_or_none
from bll_pyro.features.data import read
from bll_pyro.features.recorded import Recorded
from bll_pyro.features.sources import Source
from bll_pyro.features.splitting import split_last_layer
from bll_pyro.files import user_path
from bll_pyro.fitting import Fit
from bll_pyro.fitting.calibration import can_recalibrate, set_aside
from bll_pyro.fitting.entry import DEFAULT, check_kinds
from bll_pyro.fitting.labelled import LabelledRows
from bll_pyro.fitting.stages import fit_features
from bll_pyro.inference import Inference
from bll_pyro.inference.base import FitWarning
from bll_pyro.inference.rows import FeatureRows
from bll_pyro.inference.standardization import make_frame
from bll_pyro.inference.training_data import TrainingData
from bll_pyro.layer import LastLayer
from bll_pyro.likelihoods import Categorical, Gaussian, Likelihood
from bll_pyro.prediction.recalibration import PredictiveTemperature
from bll_pyro.priors.base import IS_DEVIATION
from bll_pyro.recalibrate import calibrate
from bll_pyro.scope import isolated, own_modes

OWNER = "bayesianize"
SHARE, STEP, NUM_STEPS = (
    0.25,
    4.0,
    2,
)  # of the size of the head's weights: the usual prior scale, and others beside it
GAIN = 2.0  # standard errors of log density that another share must gain
KEPT, MOST_KEPT, FEWEST_KEPT = 0.5, 1000, 20  # rows of the data for calibration, where no others are given
MEMORISED = 0.99  # accuracy on rows that a network was probably trained on
TRAINED_ON = (
    "the network is right on {accuracy:.1%} of the rows of the data that were kept for calibration, and they ask for sharper "
    "probabilities: it was probably trained on them, so that they do not say how sure it may be of new rows; pass "
    "calibration=(inputs, targets), rows that it has not seen"
)


@own_modes()
def bayesianize(
    net: nn.Module,
    data: Any,
    *,
    calibration: Any = None,
    likelihood: Likelihood | None = None,
    inference: Inference | None = None,
    prior_scale: float | None = None,
    seed: int = 0,
    store: str | Path | None = None,
    device: str | torch.device | None = None,
    batch_size: int = 256,
) -> Fit:
    """A fit of a network that is trained already: a posterior around its own last layer, and calibrated probabilities.

    The network is split (:func:`bll_pyro.split_last_layer`), and features are computed once a row. The prior of the weights has its
    centre at the head, so that nothing is learned anew: without data the outputs are the network's. Then the fit is recalibrated
    on the calibration rows. The network itself is not changed; the fit shares the memory of its weights.

    Which rows: those of ``data`` say in which directions the weights are known, and may be the rows that the network was trained
    on. Those of ``calibration`` say how far to trust it, and must be new to it. Of rows that it was trained on a network is
    always right, so that they ask for sharper probabilities where new rows ask for less sharp ones.

    Parameters
    ----------
    net
        A trained network that ends with a ``Linear``; see :func:`bll_pyro.split_last_layer`.
    data
        Rows with targets, in any form that :func:`bll_pyro.fit` takes.
    calibration
        Rows with targets that the network was not trained on: a few hundred are enough. None keeps half of the data for that
        (1,000 rows at most, stratified by class or value), and a number between 0 and 1 keeps that share; right if the network
        has not seen the data, and where it clearly has, the fit warns. Counts have no recalibration, and take none.
    likelihood
        Distribution of the target given the outputs. By default ``Categorical`` for integer labels and a head of several
        outputs, and ``Gaussian`` for real values. Labels 0 and 1 of one or several outputs need ``likelihoods.Bernoulli()``.
        Other labels need ``likelihoods.Categorical(classes=[...])``, with the labels in the order of the network's outputs.
    inference
        By default ``SVI()``. The backbone is not trained.
    prior_scale
        Standard deviation of weights and bias around the head, on the scale of the standardised features. By default a quarter
        of the root mean square of the head's weights, or a share four or sixteen times as large or small where the calibration
        rows are predicted better with it, by more than two standard errors of their log density.
    seed, store, device, batch_size
        As in :func:`bll_pyro.fit`.

    Returns
    -------
    Fit
        Like any other; ``print`` says what was done.

    Raises
    ------
    ValueError
        If the network cannot be split, no likelihood is given where several suit, or too few rows can be kept.
    """
    inference = DEFAULT if inference is None else inference
    check_kinds(inference, None)
    if inference.trains_backbone:
        raise ValueError(
            f"{OWNER}: expected an inference that leaves the backbone as it is, got {inference!r}; to train it along: "
            "backbone, head = bll.split_last_layer(net), and bll.fit(layer, data, backbone, inference)"
        )
    positive_or_none(prior_scale, "prior_scale", OWNER, IS_DEVIATION)
    check_device(device, OWNER)
    folder = None if store is None else user_path(store)
    with isolated(seed):
        source = read(data, need_targets=True, min_rows=2)
        backbone, head = split_last_layer(net, source.example()[0])
        head = head.to("cpu", torch.promote_types(head.weight.dtype, torch.float32))
        likelihood = _likelihood(likelihood, head, source)
        rows = TrainingData.of(LastLayer.from_linear(head, likelihood), source, finds_classes=False)
        rows, kept = _divided(rows, calibration, seed)
        features, targets = rows.features(backbone, folder, device, batch_size)
        judges = None
        if kept is not None:
            judges = _labelled(kept, *kept.features(backbone, folder, device, batch_size))
        size = _size(rows, features, targets)

        def at(scale: float) -> _Candidate:
            layer = LastLayer.from_linear(head, likelihood, scale, bias_scale=scale)
            shape, columns = rows.target_shape, rows.source.columns
            posterior, trace = fit_features(
                layer, features, targets, inference, shape, seed, columns, device=device
            )
            return _Candidate.of(
                Fit(layer, posterior, inference, trace, seed, len(targets)), scale / size, judges
            )

        if prior_scale is not None or judges is None:
            best = at(SHARE * size if prior_scale is None else prior_scale)
        else:
            best = _chosen(lambda share: at(share * size))
    trace = best.fit.trace
    said = f"prior centred at the head of the network ({type(net).__name__}), with a scale of {best.share:.2g} of its weights"
    trace.notes.insert(0, said)
    trace.messages += _doubts(best.fit) if calibration is None else []
    for message in trace.messages:
        warnings.warn(message, FitWarning, stacklevel=3)  # past the decorator
    made = replace(best.fit, backbone=backbone, store=folder, recorded=Recorded(backbone))
    return replace(made, feature_names=source.feature_names)


@dataclass(frozen=True, eq=False)
class _Candidate:
    """A recalibrated fit with a prior scale, and how well it predicts the calibration rows.

    Parameters
    ----------
    fit
        On features, with its recalibration.
    share
        Of the prior scale in the size of the head's weights.
    log_prob
        Of each calibration row, nats ``[n]``, times its weight; none without such rows.
    """

    fit: Fit
    share: float
    log_prob: Float[Tensor, " n"]

    @classmethod
    def of(cls, fit: Fit, share: float, judges: LabelledRows | None) -> Self:
        """Recalibrate a fit on the rows, and look at them again."""
        if judges is None:
            return cls(fit, share, torch.zeros(0))
        made = calibrate(fit, judges.data)
        log_prob = made.predict(judges.data).log_prob(judges.labels).double()
        weight = judges.columns.weight
        return cls(made, share, log_prob if weight is None else log_prob * weight.double())

    def gains_on(self, other: _Candidate) -> bool:
        """Whether the rows are predicted better than by the other, beyond their noise."""
        gain = self.log_prob - other.log_prob
        return float(gain.sum()) > GAIN * len(gain) ** 0.5 * float(gain.std())


def _chosen(at: Callable[[float], _Candidate]) -> _Candidate:
    """The usual share, or a narrower or wider one that gains on it."""
    usual = best = at(SHARE)
    for factor in (1 / STEP, STEP):
        for number in range(1, NUM_STEPS + 1):
            other = at(SHARE * factor**number)
            if not other.gains_on(best):
                break
            best = other
        if best is not usual:
            break
    return best


def _divided(rows: TrainingData, calibration: Any, seed: int) -> tuple[TrainingData, TrainingData | None]:
    """Rows to fit, and rows for the calibration, if there are any."""
    if calibration is None:
        if not can_recalibrate(rows.layer.likelihood):
            return rows, None
        number = rows.source.num_rows
        calibration = min(KEPT, MOST_KEPT / number)
        if calibration * number < FEWEST_KEPT:
            raise ValueError(
                f"{OWNER}: expected at least {round(FEWEST_KEPT / KEPT)} rows, of which half are kept for calibration, got "
                f"{number}; pass calibration=(inputs, targets), or more rows"
            )
    rows, aside = set_aside(rows, calibration, False, seed)
    return rows, aside.rows


def _labelled(rows: TrainingData, features: FeatureRows, targets: Tensor) -> LabelledRows:
    given = targets.reshape(len(targets), *rows.target_shape)
    return LabelledRows(
        features[slice(0, len(features))], given, targets, rows.source.columns, rows.layer.likelihood.coding
    )


def _size(rows: TrainingData, features: FeatureRows, targets: Tensor) -> float:
    """Root mean square of the head's weights on the scale of the standardised features and targets."""
    dtype = torch.promote_types(features.dtype, torch.float32)
    with isolated(dtype=dtype):
        frame = make_frame(rows.layer, features, targets, False, dtype, rows.source.columns, False)
        loc: Tensor = rows.layer.in_frame(frame).prior.loc  # type: ignore[attr-defined]  # of a Normal
    size = float(loc.double().square().mean().sqrt())
    if not size > 0:
        raise ValueError(
            f"{OWNER}: expected a trained head, got one whose weights are 0 on these features; train the network first, or fit a "
            "last layer without a centre: bll.fit(layer, data, backbone)"
        )
    return size


def _doubts(made: Fit) -> list[str]:
    """Whether the rows that were kept for calibration look like rows that the network was trained on."""
    found = made.recalibration
    if not isinstance(found, PredictiveTemperature) or found.found_on is None:
        return []
    accuracy = found.found_on.aim
    return [TRAINED_ON.format(accuracy=accuracy)] if accuracy >= MEMORISED and found.temperature < 1 else []


def _likelihood(given: Likelihood | None, head: nn.Linear, source: Source) -> Likelihood:
    """The likelihood that is given, or the only one that suits targets and head."""
    whole = source.tensors()
    targets, width = (source.example() if whole is None else whole)[1], head.out_features
    assert targets is not None
    if source.classes is not None and (given is None or given.coding is None):
        raise ValueError(
            f"{OWNER}: expected class numbers, or the labels of the network's outputs in their order, got targets with labels "
            f"{source.classes}; pass likelihood=bll.likelihoods.Categorical(classes=[...])"
        )
    shape = tuple(targets.shape[1:])
    if given is not None:
        needed = given.num_outputs(() if given.is_discrete else shape)
        if needed != width:
            raise ValueError(
                f"{OWNER}: expected a head with {needed} outputs for {given!r} and targets of shape {['N', *shape]}, got {width}; "
                "pass another likelihood="
            )
        return given
    is_real = targets.is_floating_point() and not bool(((targets == 0) | (targets == 1)).all())
    is_integer = not (targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool)
    if is_integer and shape == () and width > 1:
        return Categorical(width)
    if is_real and width == (shape or (1,))[0] and len(shape) <= 1:
        return Gaussian()
    raise ValueError(
        f"{OWNER}: expected integer labels [N] for a head of several outputs, or real values, one for each output, got "
        f"{targets.dtype} of shape {['N', *shape]} for {width} outputs; pass likelihood=: Bernoulli() for labels 0 and 1, "
        "Gaussian() for values, Poisson() for counts"
    )
