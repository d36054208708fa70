"""Calibration of leave-one-out predictions: PIT of numbers, calibration error of classes and labels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bll_pyro import metrics
from bll_pyro.diagnostics.study import Study
from bll_pyro.diagnostics.verdicts import Check
from bll_pyro.gaussian import OutputDraws, Outputs
from bll_pyro.inference.exact.noise_mixture import NoiseMixturePosterior
from bll_pyro.inference.leave_one_out.mixtures import mixture_without
from bll_pyro.posterior import DrawsPosterior
from bll_pyro.prediction import (
    ClassPrediction,
    LabelPrediction,
    NoiseFactor,
    Prediction,
    PredictiveTemperature,
    ValuePrediction,
    predict_outputs,
)
from bll_pyro.prediction.recalibration import averaged
from bll_pyro.prediction.tilt import conditional_probs
from bll_pyro.scope import generator, own_modes

BLOCK_ROWS = 512
NUM_BINS = 15
NUM_SIMULATED = 500
MAX_P_VALUE = 0.01  # above it, the deviation may be due to chance
PIT_LIMITS = (
    0.05,
    0.1,
)  # Kolmogorov-Smirnov distance: share of the rows that are on the wrong side of a quantile
EVENT_LIMITS = (0.02, 0.05)  # calibration error beyond what a calibrated prediction would have


@own_modes(gradients=False)
def predictive(study: Study) -> Check:
    """PIT of numbers and counts, calibration of classes and labels, each row left out of its own prediction."""
    if study.stuck:
        return Check.skipped("predictive", study.stuck)
    if isinstance(study.posterior, DrawsPosterior):
        if study.tree is None:
            return Check.skipped("predictive", "too many weights and rows to weight the draws of each row")
        return _of_draws(study)
    if study.gaussian is None and not isinstance(study.posterior, NoiseMixturePosterior):
        return Check.skipped("predictive", "the prior has no density, so that rows cannot be left out")
    parts = [_judge(study, prediction, targets) for prediction, targets in _left_out(study)]
    return _verdict(study, parts)


@dataclass(frozen=True, eq=False)
class Judgement:
    """PIT values of numbers, or predicted probabilities and what happened, ``[n, T]``."""

    pit: np.ndarray | None = None
    said: np.ndarray | None = None
    happened: np.ndarray | None = None


def _left_out(study: Study) -> Iterator[tuple[Prediction, Tensor]]:
    """Predictions of the chosen rows, each by the fit without it, and their targets in the user's units."""
    posterior = study.posterior
    for index in study.chosen.split(BLOCK_ROWS):
        design, inside = study.rows[index.to(study.rows.device)]
        if isinstance(posterior, NoiseMixturePosterior):
            mixture = posterior.outputs(study.features[index])
            without: Outputs = mixture_without(mixture, inside)
        else:
            row_by_row, response = study.leaving_out
            without, _ = row_by_row.outputs_without(response, design, inside)
        prediction = predict_outputs(
            posterior, without, None, study.columns[index].exposure, study.fit.recalibration
        )
        yield prediction, study.targets[index]


def _judge(study: Study, prediction: Prediction, targets: Tensor) -> Judgement:
    match prediction:
        case ClassPrediction():
            label = prediction.probs.argmax(-1)
            hit = label == targets.to(label)
            return Judgement(said=_array(prediction.confidence)[:, None], happened=_array(hit)[:, None])
        case LabelPrediction():
            return Judgement(
                said=_array(prediction.probs.reshape(len(targets), -1)),
                happened=_array(targets.reshape(len(targets), -1)),
            )
        case ValuePrediction():
            shaped = targets.to(prediction.mean).view_as(prediction.mean)
            at = _array(prediction.cdf(shaped).clamp(0, 1))
            if study.fit.layer.likelihood.is_count:
                below = _array(prediction.cdf(shaped - 1).clamp(0, 1))
                at = metrics.pit_discrete(np.minimum(below, at), at, generator(study.seed))
            return Judgement(pit=at.reshape(len(targets), -1))
    raise TypeError(f"no check of {type(prediction).__name__}")


def _array(values: Tensor) -> np.ndarray:
    return values.double().cpu().numpy()


def _verdict(study: Study, parts: list[Judgement]) -> Check:
    if parts[0].pit is not None:
        pit = np.concatenate([part.pit for part in parts if part.pit is not None])
        return _pit(study, pit)
    said = np.concatenate([part.said for part in parts if part.said is not None])
    happened = np.concatenate([part.happened for part in parts if part.happened is not None])
    return _events(study, said, happened)


def _pit(study: Study, values: np.ndarray) -> Check:
    """Kolmogorov and Smirnov, for the target that does worst; significance and size both count."""
    judged = [metrics.pit(values[:, t]) for t in range(values.shape[1])]
    p_value = min(1.0, values.shape[1] * min(one.p_value for one in judged))
    distance = max(one.statistic for one in judged)
    worst = int(np.argmax([one.statistic for one in judged]))
    shape = _shape(values[:, worst])
    finding = (
        f"PIT values of {len(values)} rows differ from uniform by {100 * distance:.1f} % at most (p = {p_value:.2g})"
        + (f": {shape}" if p_value < MAX_P_VALUE else ", which may be chance")
    )
    value = distance if p_value < MAX_P_VALUE else 0.0
    remedy = "another likelihood: StudentT for outliers, HeteroscedasticGaussian for changing noise, NegativeBinomial for counts"
    by_row = {}
    if values.shape[1] == 1:
        by_row["pit"] = _spread_out(study, values[:, 0])
    return Check.graded("predictive (PIT)", value, PIT_LIMITS, finding, remedy, by_row=by_row)


def _shape(values: np.ndarray) -> str:
    """The form of the histogram of PIT values, in words."""
    middle = float(((values > 0.25) & (values < 0.75)).mean())
    lean = float(values.mean() - 0.5)
    if abs(lean) > abs(middle - 0.5) / 2:
        return "targets are " + ("higher" if lean > 0 else "lower") + " than predicted"
    return "predictions are too wide" if middle > 0.5 else "predictions are too narrow"


def _events(study: Study, said: np.ndarray, happened: np.ndarray) -> Check:
    """Expected calibration error against what it would be if the probabilities were right (Broecker and Smith 2007)."""
    said, happened = said.ravel(), happened.ravel()
    random = np.random.default_rng(study.seed)
    found = _calibration_error(said, happened)
    chance = np.array(
        [_calibration_error(said, random.random(len(said)) < said) for _ in range(NUM_SIMULATED)]
    )
    p_value = float((1 + (chance >= found).sum()) / (NUM_SIMULATED + 1))
    gap = float(happened.mean() - said.mean())
    finding = (
        f"calibration error {found:.3f} where right probabilities would have {chance.mean():.3f} (p = {p_value:.2g}); events "
        f"predicted with probability {said.mean():.3f} happened in {100 * happened.mean():.1f} % of cases"
    )
    value = max(found - float(chance.mean()), 0.0) if p_value < MAX_P_VALUE else 0.0
    remedy = (
        "calibration on held-out rows, a richer guide, or a prior scale chosen by leave-one-out (bll.compare)"
    )
    if gap > 0:
        remedy = "a richer guide or a larger prior scale (the fit is underconfident); " + remedy
    return Check.graded("predictive (events)", value, EVENT_LIMITS, finding, remedy)


def _calibration_error(said: np.ndarray, happened: np.ndarray) -> float:
    index = np.minimum((said * NUM_BINS).astype(int), NUM_BINS - 1)
    gap = np.bincount(index, happened - said, NUM_BINS)
    return float(np.abs(gap).sum() / len(said))


def _spread_out(study: Study, values: np.ndarray) -> np.ndarray:
    full = np.full(len(study.targets), np.nan)
    full[study.chosen.numpy()] = values
    return full


def _of_draws(study: Study) -> Check:
    """Draws of a Markov chain or a flow, with weights that leave each row out (PSIS)."""
    from arviz_stats.base import array_stats

    posterior = study.posterior
    assert isinstance(posterior, DrawsPosterior) and study.tree is not None
    log_likelihood = study.tree["log_likelihood"]["y"]
    flat = log_likelihood.stack(draws=("chain", "draw")).transpose("draws", "obs", ...).values
    by_row = flat.reshape(*flat.shape[:2], -1).sum(-1)
    index = study.chosen
    log_weights = np.asarray(array_stats.psislw(-by_row[:, index.numpy()].T)[0])  # [n, S]
    weights = torch.from_numpy(np.exp(log_weights - log_weights.max(-1, keepdims=True)))
    weights = (weights / weights.sum(-1, keepdim=True)).mT  # [S, n]
    sites = {name: torch.from_numpy(value.values) for name, value in study.tree["posterior"].items()}
    sites = {k: v.to(posterior.frame.center) for k, v in sites.items()}
    inner = posterior.global_sites.from_user(sites)
    noise = {k: inner[k].flatten(0, 1)[:, None] for k in posterior.global_sites.noise_names}
    parts, said = [], study.fit.recalibration
    temperature = said.temperature if isinstance(said, PredictiveTemperature) else 1.0
    for rows, chosen in zip(weights.split(BLOCK_ROWS, 1), index.split(BLOCK_ROWS), strict=True):
        likelihood, outputs = (
            posterior.layer.likelihood,
            posterior.draw_outputs(sites, study.features[chosen]),
        )
        exposure = study.columns[chosen].exposure
        known = noise if exposure is None else {**noise, "exposure": exposure.to(outputs)}
        targets, w = study.targets[chosen], rows.to(outputs)
        if likelihood.is_discrete:
            probs = torch.einsum("sn,snk->nk", w, likelihood.class_probs(outputs, **noise))
            probs = averaged(probs[None], temperature)[0]
            confidence, label = probs.max(-1)
            parts.append(
                Judgement(
                    said=_array(confidence)[:, None], happened=_array(label == targets.to(label))[:, None]
                )
            )
        elif likelihood.is_binary:
            probs = torch.einsum("sn,sntc->ntc", w, conditional_probs(likelihood, outputs, noise))
            probs = averaged(probs[None], temperature)[0][..., 1]
            parts.append(Judgement(said=_array(probs), happened=_array(targets.reshape(len(targets), -1))))
        else:
            if isinstance(said, NoiseFactor):
                likelihood, changed, known = likelihood.with_noise_times(
                    said.factor, OutputDraws(outputs), known
                )
                outputs = changed.draws(0)
            given = likelihood.marginals(outputs, **known)
            inside = posterior.frame.targets(targets).to(outputs)
            at = _array(torch.einsum("sn,snt->nt", w, given.cdf(inside)).clamp(0, 1))
            if likelihood.is_count:
                below = _array(torch.einsum("sn,snt->nt", w, given.cdf(inside - 1)).clamp(0, 1))
                at = metrics.pit_discrete(np.minimum(below, at), at, generator(study.seed))
            parts.append(Judgement(pit=at))
    return _verdict(study, parts)
