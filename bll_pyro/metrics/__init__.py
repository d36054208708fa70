"""Metrics: pure functions of tensors or arrays, computed in float64 on the CPU, without use of global random state.

A metric returns one float; a score of real values (`crps_*`, `interval_score`) returns one number per target, for
paired comparisons. SciPy and scikit-learn compute what takes more than a line. One-line formulas are written here,
because other libraries round to float32, clip probabilities, or take seconds to import; they are tested against them.
"""

from bll_pyro.metrics.calibration_error import Reliability, adaptive_ece, classwise_ece, ece, reliability
from bll_pyro.metrics.classification import accuracy, brier, nll
from bll_pyro.metrics.crps import crps_normal, crps_normal_mixture, crps_sample
from bll_pyro.metrics.ood import aupr, auroc, fpr_at_tpr
from bll_pyro.metrics.probability_transform import Pit, pit, pit_discrete, pit_histogram
from bll_pyro.metrics.regression import coverage, interval_score, mae, rmse, sharpness
from bll_pyro.metrics.selective import (
    Decision,
    RiskCoverage,
    aurc,
    expected_cost_decision,
    risk_coverage,
    selective_accuracy,
)
from bll_pyro.metrics.standard_errors import auroc_standard_error, ece_standard_error, standard_error

__all__ = [
    "Decision",
    "Pit",
    "Reliability",
    "RiskCoverage",
    "accuracy",
    "adaptive_ece",
    "aupr",
    "aurc",
    "auroc",
    "auroc_standard_error",
    "brier",
    "classwise_ece",
    "coverage",
    "crps_normal",
    "crps_normal_mixture",
    "crps_sample",
    "ece",
    "ece_standard_error",
    "expected_cost_decision",
    "fpr_at_tpr",
    "interval_score",
    "mae",
    "nll",
    "pit",
    "pit_discrete",
    "pit_histogram",
    "reliability",
    "risk_coverage",
    "rmse",
    "selective_accuracy",
    "sharpness",
    "standard_error",
]
