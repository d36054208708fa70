"""Detectors: a score, and a threshold with a stated rate of false alarms."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor

from bll_pyro.calibrated import Calibrated
from bll_pyro.conformal import benjamini_hochberg, conformal_quantile, p_values
from bll_pyro.features.store import Features
from bll_pyro.metrics.arrays import ROUNDING
from bll_pyro.ood.base import Score, View
from bll_pyro.ood.scores import Leverage
from bll_pyro.prediction.verdict import Verdict

if TYPE_CHECKING:
    from bll_pyro.fitting import Fit

ROWS_AT_ONCE = 8192


@dataclass(frozen=True, eq=False)
class Detector(Calibrated):
    """An alarm for inputs that are unlike the known ones (split conformal: Vovk et al. 2005).

    With n calibration scores a row of score s has the p-value ``(1 + #{calibration score >= s}) / (n + 1)`` and raises an
    alarm when that is at most ``alpha``. If a row is exchangeable with the calibration rows, this happens with probability
    ``alpha`` or less.

    Parameters
    ----------
    score
        What is strange: ``Leverage()`` (default), ``Epistemic()``, ``Mahalanobis()``, ...; larger is further out.
    alpha
        Allowed rate of false alarms.
    calibration_scores
        Scores ``[n]`` of the calibration rows, in order; found by :meth:`calibrate`.
    """

    score: Score = Leverage()
    alpha: float = 0.05
    calibration_scores: Tensor | None = None
    family: ClassVar[str] = "ood"

    def __post_init__(self) -> None:
        if not isinstance(self.score, Score):
            raise TypeError(
                f"Detector(score=...): expected a score such as bll.ood.Leverage(), got {self.score!r}"
            )
        if not isinstance(self.alpha, (int, float)) or isinstance(self.alpha, bool) or not 0 < self.alpha < 1:
            raise ValueError(
                f"Detector(alpha=...): expected a rate between 0 and 1, got {self.alpha!r}; 5 % is 0.05"
            )

    def calibrate(self, fit: Fit, inputs: Any, *, train: Any = None, batch_size: int = 256) -> Self:
        """Find the threshold on known rows; returns a new detector, for use with this fit.

        Parameters
        ----------
        fit
            The fit to watch over.
        inputs
            At least ``1 / alpha`` known rows that neither the backbone nor the last layer was trained on.
        train
            ``(inputs, targets)`` of training rows, for the scores that need them (``Mahalanobis``,
            ``RelativeMahalanobis``, ``Combination``). They must be other rows than those of the calibration.
        batch_size
            Rows at a time through the backbone.

        Raises
        ------
        ValueError
            For fewer than ``1 / alpha`` rows, a score that needs training rows and gets none, or is NaN somewhere.
        TypeError
            For a score that has no meaning for the fit's likelihood.
        """
        features = fit.features(inputs, batch_size=batch_size)
        least = math.ceil((1 - ROUNDING) / self.alpha)
        if len(features) < least:
            raise ValueError(
                f"Detector.calibrate: expected at least 1/alpha = {least} rows for alpha={self.alpha:g}, got {len(features)}; "
                "with fewer rows no p-value is small enough: add known rows or raise alpha"
            )
        score = self.score
        if score.needs_training_rows:
            if train is None:
                raise ValueError(
                    f"Detector.calibrate: {type(score).__name__} needs training rows, got none; pass "
                    "train=(inputs, targets), of other rows than the calibration's"
                )
            rows = fit.features(train, need_targets=True, batch_size=batch_size)
            assert rows.targets is not None
            targets = fit.layer.likelihood.check_targets(torch.as_tensor(rows.targets))
            whole = torch.cat([part for part, _ in rows.batches(ROWS_AT_ONCE)])
            score = score.fitted(fit.posterior, whole, targets, lambda other: score_rows(fit, other, rows))
        scores = score_rows(fit, score, features)
        if bool(scores.isnan().any()) or bool((scores == scores[0]).all()):
            raise ValueError(
                f"Detector.calibrate: expected scores that differ from row to row, got {float(scores[0]):.4g} for every row or "
                f"NaN by {type(score).__name__}; a point estimate (MAP) has no spread: fit a guide with a covariance"
            )
        ordered = scores.sort().values.cpu()
        made = replace(self, score=score, calibration_scores=ordered, fingerprint=fit.fingerprint)
        return made.bound(fit)

    @property
    def threshold(self) -> float:
        """Score above which a row raises an alarm."""
        self.check_calibrated()
        assert self.calibration_scores is not None
        return conformal_quantile(self.calibration_scores, self.alpha)

    def detect(self, inputs: Any, *, fdr: float | None = None, batch_size: int = 256) -> Verdict:
        """Judge inputs.

        Parameters
        ----------
        inputs
            As for ``fit.predict``.
        fdr
            None judges each row by itself: of the known rows a share of ``alpha`` raises an alarm. A number judges the batch
            as a whole: of the alarms a share of ``fdr`` at most is false, on average (Benjamini and Hochberg 1995, for
            conformal p-values Bates et al. 2023).
        batch_size
            Rows at a time through the backbone.
        """
        fit = self.check_bound()
        features = fit.features(inputs, batch_size=batch_size)
        verdict = self.judge(score_rows(fit, self.score, features))
        if fdr is None:
            return verdict
        chosen = torch.from_numpy(benjamini_hochberg(verdict.p_value, fdr))
        return replace(verdict, is_ood=chosen.to(verdict.is_ood.device))

    def judge(self, scores: Tensor) -> Verdict:
        """The verdict on rows with given scores ``[N]``."""
        self.check_calibrated()
        assert self.calibration_scores is not None
        probs = torch.from_numpy(p_values(self.calibration_scores, scores)).to(scores.device)
        return Verdict(scores.double() > self.threshold, probs, scores)


def views(fit: Fit, features: Features) -> Iterator[View]:
    """What the fit says about features, some rows at a time."""
    for part, _ in features.batches(ROWS_AT_ONCE):
        yield View(part, fit.posterior, fit.recalibration)


@torch.no_grad()
def score_rows(fit: Fit, score: Score, features: Features) -> Tensor:
    """Scores ``[N]`` of all rows."""
    return torch.cat([score.of(view) for view in views(fit, features)])
