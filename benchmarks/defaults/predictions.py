"""What a fitted method says of test rows, and its scores."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from benchmarks import scores

LEVEL = 0.9  # of the intervals


@dataclass(frozen=True)
class Classes:
    """Class probabilities ``[N, K]``."""

    probs: np.ndarray

    def scores(self, targets: np.ndarray) -> dict[str, float]:
        """NLL, accuracy and ECE of the labels."""
        probs, labels = torch.from_numpy(self.probs).double(), torch.from_numpy(targets)
        return {
            "nll": scores.nll(probs, labels),
            "accuracy": scores.accuracy(probs, labels),
            "ece": scores.expected_calibration_error(probs, labels),
        }


@dataclass(frozen=True)
class Values:
    """Mean, ends of the 90% interval, ``[N]`` each, and the log density of N values, in the units of the targets."""

    mean: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    log_prob: Callable[[np.ndarray], np.ndarray]

    @classmethod
    def normal(cls, mean: np.ndarray, scale: np.ndarray) -> "Values":
        """Normal distributions."""
        reach = 1.6448536269514722 * scale  # the 95% quantile

        def log_prob(values: np.ndarray) -> np.ndarray:
            return -0.5 * ((values - mean) / scale) ** 2 - np.log(scale) - 0.5 * np.log(2 * np.pi)

        return cls(mean, mean - reach, mean + reach, log_prob)

    def scores(self, targets: np.ndarray) -> dict[str, float]:
        """NLL, root mean squared error, and share of the targets inside their intervals."""
        values = targets.astype(np.float64)
        return {
            "nll": -float(self.log_prob(values).mean()),
            "rmse": float(((self.mean - values) ** 2).mean() ** 0.5),
            "coverage": float(((self.lower <= values) & (values <= self.upper)).mean()),
        }


Prediction = Classes | Values
Predict = Callable[[np.ndarray], Prediction]
