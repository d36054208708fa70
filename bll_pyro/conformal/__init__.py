"""Conformal prediction: thresholds, p-values, sets and intervals with finite-sample coverage, from scores."""

from bll_pyro.conformal.fit_sets import APS, LAC, Interval, PredictionIntervals, PredictionSets, SetScore
from bll_pyro.conformal.intervals import normalized_residual_interval, normalized_residual_scores
from bll_pyro.conformal.sets import aps_scores, lac_scores, own_scores, prediction_sets, set_coverage
from bll_pyro.conformal.thresholds import benjamini_hochberg, conformal_quantile, coverage_band, p_values

__all__ = [
    "APS",
    "LAC",
    "Interval",
    "PredictionIntervals",
    "PredictionSets",
    "SetScore",
    "aps_scores",
    "benjamini_hochberg",
    "conformal_quantile",
    "coverage_band",
    "lac_scores",
    "normalized_residual_interval",
    "normalized_residual_scores",
    "own_scores",
    "p_values",
    "prediction_sets",
    "set_coverage",
]
