"""Detectors: a score with a threshold for a given rate of false alarms."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from jaxtyping import Float
from torch import Tensor

from bll_pyro.calibrated import Calibrated
from bll_pyro.checks import fitted, is_number
from bll_pyro.conformal import benjamini_hochberg, conformal_quantile, p_values
from bll_pyro.features.data import read
from bll_pyro.features.store import Features
from bll_pyro.ood.base import Score, View
from bll_pyro.ood.default import default_score
from bll_pyro.ood.learning import ONE_EACH, learned
from bll_pyro.prediction.verdict import Verdict
from bll_pyro.scope import own_modes

if TYPE_CHECKING:
    from bll_pyro.fitting import Fit

ROWS_AT_ONCE = 8192  # rows that are scored at a time
ROWS_TO_LOOK_AT = 64  # rows from which it is seen whether a posterior spreads


@dataclass(frozen=True, eq=False)
class Detector(Calibrated):
    """A detector of inputs from outside the known distribution (split conformal: Vovk et al. 2005).

    With n calibration scores a row of score s has the p-value ``(1 + #{calibration score >= s}) / (n + 1)`` and raises an
    alarm if that is at most ``alpha``. For a row exchangeable with the calibration rows, the probability of an alarm is
    at most ``alpha``.

    Parameters
    ----------
    score
        ``Leverage()``, ``Epistemic()``, ``Mahalanobis()``, ...; larger is further out. None (default) takes the scores that
        have a meaning for the fit, joined by their p-values, without any unknown rows: :func:`bll_pyro.ood.default_score`.
    alpha
        Allowed rate of false alarms, between 0 and 1.
    calibration_scores
        Scores ``[n]`` of the calibration rows, in increasing order; set by :meth:`calibrate`.
    split
        How many of the rows of the calibration served for what, where the score learned from some of them; set by
        :meth:`calibrate`.

    Raises
    ------
    TypeError, ValueError
        If ``score`` is not a score, or ``alpha`` is not between 0 and 1.
    """

    score: Score | None = None
    alpha: float = 0.05
    calibration_scores: Tensor | None = field(default=None, repr=False)
    split: dict[str, int] | None = None
    family: ClassVar[str] = "ood"

    def __post_init__(self) -> None:
        if not isinstance(self.score, Score | None):
            raise TypeError(
                f"Detector(score=...): expected a score such as bll.ood.Leverage(), got {self.score!r}"
            )
        if not is_number(self.alpha, 0.0, 1.0):
            raise ValueError(
                f"Detector(alpha=...): expected a rate between 0 and 1, got {self.alpha!r}; 5 % is 0.05"
            )

    @own_modes()
    def calibrate(self, fit: Fit, inputs: Any, *, train: Any = None, batch_size: int = 256) -> Self:
        """A new detector with the threshold from known rows, for use with this fit.

        Parameters
        ----------
        fit
            The fit whose inputs are to be checked.
        inputs
            At least ``1 / alpha`` known rows that neither the backbone nor the last layer was trained on. The default and
            ``Fisher`` or ``HarmonicMean`` need twice as many: half of them, 500 at most, give the p-values of the parts, and
            the rest the threshold, so that the rate of false alarms holds.
        train
            ``(inputs, targets)`` of training rows, for the scores that need them (``Mahalanobis``, ``KNearestNeighbours``,
            ``ViM``, ``Combination``, ...). They must not contain the calibration rows. The default takes half of the
            calibration rows for it where none are given, with the labels that the fit predicts; then it needs four times as
            many. ``split`` says how many went where.
        batch_size
            Number of rows in a batch of the backbone.

        Raises
        ------
        ValueError
            If there are too few rows, a score needs training rows and gets none, or scores are NaN or
            all equal.
        TypeError
            If the score is not defined for the fit's likelihood.
        """
        fitted(fit, "Detector.calibrate")
        known = _scored_features(fit, inputs, batch_size)
        score = self.score
        if score is None:
            score = default_score(View(known[:ROWS_TO_LOOK_AT], fit.posterior))
        elif score.needs_training_rows and train is None:
            raise ValueError(
                f"Detector.calibrate: {type(score).__name__} needs training rows, got none; pass "
                "train=(inputs, targets) without the calibration rows"
            )
        found = learned(fit, score, known, train, self.alpha, score_rows)
        scores = score_rows(fit, found.score, found.rows)
        if bool(scores.isnan().any()) or bool((scores == scores[0]).all()):
            raise ValueError(
                f"Detector.calibrate: expected scores that differ from row to row, got {float(scores[0]):.4g} for every row or "
                f"NaN by {type(score).__name__}; a point estimate (MAP) has no epistemic uncertainty: fit a guide with a covariance"
            )
        ordered = scores.sort().values.cpu()
        calibrated = replace(
            self,
            score=found.score,
            calibration_scores=ordered,
            split=found.split,
            fingerprint=fit.fingerprint,
        )
        return calibrated.bound(fit)

    @property
    def rows_of_each(self) -> str:
        """How many rows of the calibration served for what; nothing where all of them made the threshold."""
        return ", ".join(f"{number:,} {what}" for what, number in (self.split or {}).items())

    @property
    def threshold(self) -> float:
        """Score above which a row raises an alarm."""
        self.check_calibrated()
        assert self.calibration_scores is not None
        return conformal_quantile(self.calibration_scores, self.alpha)

    @own_modes()
    def detect(self, inputs: Any, *, fdr: float | None = None, batch_size: int = 256) -> Verdict:
        """Test inputs for being outside the known distribution.

        Parameters
        ----------
        inputs
            Inputs as for ``fit.predict``.
        fdr
            None tests each row separately, with a rate of false alarms of at most ``alpha``. A number tests the batch
            together: the expected share of false alarms among the alarms is at most ``fdr`` (Benjamini and Hochberg 1995,
            for conformal p-values Bates et al. 2023).
        batch_size
            Number of rows in a batch of the backbone.
        """
        fit = self.check_bound()
        features = _scored_features(fit, inputs, batch_size)
        assert self.score is not None
        verdict = self.judge(score_rows(fit, self.score, features))
        if fdr is None:
            return verdict
        chosen = torch.from_numpy(benjamini_hochberg(verdict.p_value, fdr))
        return replace(verdict, is_ood=chosen.to(verdict.is_ood.device))

    def scores_of(self, view: View) -> Float[Tensor, " N"]:
        """Scores ``[N]`` of the rows of a view."""
        self.check_calibrated()
        assert self.score is not None
        return self.score.of(view)

    def judge(self, scores: Float[Tensor, " N"]) -> Verdict:
        """The verdict on rows with given scores ``[N]``."""
        self.check_calibrated()
        assert self.calibration_scores is not None
        probs = torch.from_numpy(p_values(self.calibration_scores, scores)).to(scores.device)
        return Verdict(scores.double() > self.threshold, probs, scores, len(self.calibration_scores))


def _scored_features(fit: Fit, inputs: Any, batch_size: int) -> Features:
    """Features of rows that count once each."""
    source = read(inputs, need_targets=False, what="inputs")
    fit.columns(source).refused("Detector", ONE_EACH, ONE_EACH)
    return fit.features(source, batch_size=batch_size)


def views(fit: Fit, features: Features) -> Iterator[View]:
    """Views of a fit on features, block by block."""
    for part, _ in features.batches(ROWS_AT_ONCE):
        yield View(part, fit.posterior, fit.recalibration)


@own_modes(gradients=False)
def score_rows(fit: Fit, score: Score, features: Features) -> Float[Tensor, " N"]:
    """Scores ``[N]`` of all rows."""
    return torch.cat([score.of(view) for view in views(fit, features)])
