"""What a method predicts, and the arrays that are kept of it: enough for measures that nobody has thought of yet."""

from dataclasses import dataclass

import numpy as np
from scipy.special import logsumexp, ndtr

LEVELS = np.concatenate([[0.005, 0.01, 0.025], np.linspace(0.05, 0.95, 37), [0.975, 0.99, 0.995]])
"""Levels of the quantiles that are kept of a prediction of values."""


@dataclass(frozen=True, eq=False)
class Classes:
    """Class probabilities ``[N, K]``, and how unknown each row is by the method's own score ``[N]``.

    The own score of a method is fixed for all tasks: mutual information where the method has it (None: the entropy of
    the probabilities), and the default detector for bll_pyro.
    """

    probs: np.ndarray
    unknown: np.ndarray | None = None

    def arrays(self, part: str) -> dict[str, np.ndarray]:
        """What is kept of the rows of a part."""
        kept = {f"probs_{part}": self.probs.astype(np.float32)}
        if self.unknown is not None:
            kept[f"unknown_{part}"] = self.unknown.astype(np.float32)
        return kept


@dataclass(frozen=True, eq=False)
class Normals:
    """An equally weighted mixture of M Normal distributions for each row, ``[M, N]`` or ``[N]`` each."""

    mean: np.ndarray
    scale: np.ndarray

    def arrays(self, targets: np.ndarray) -> dict[str, np.ndarray]:
        """What is kept: moments, quantiles, and density and CRPS at the targets."""
        mean, scale = (np.atleast_2d(np.asarray(a, np.float64)) for a in (self.mean, self.scale))
        center = mean.mean(0)
        variance = np.square(scale).mean(0) + np.square(mean - center).mean(0)
        z = (targets - mean) / scale
        log_prob = logsumexp(-0.5 * z**2 - np.log(scale) - 0.5 * np.log(2 * np.pi), axis=0) - np.log(
            len(mean)
        )
        return {
            "mean": center,
            "scale": np.sqrt(variance),
            "log_prob": log_prob,
            "crps": crps(mean, scale, targets),
            "quantiles": quantiles(mean, scale),
        }


@dataclass(frozen=True, eq=False)
class Kept:
    """Arrays that a method computes itself, under the names of `Normals.arrays`."""

    values: dict[str, np.ndarray]

    def arrays(self, targets: np.ndarray) -> dict[str, np.ndarray]:
        """What is kept."""
        return self.values


Prediction = Classes | Normals | Kept


def crps(mean: np.ndarray, scale: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """CRPS ``[N]`` of a mixture ``[M, N]`` of Normals in closed form (Grimit et al. 2006)."""

    def mean_distance(gap: np.ndarray, spread: np.ndarray) -> np.ndarray:
        z = gap / spread
        density = np.exp(-0.5 * z**2) / np.sqrt(2 * np.pi)
        found: np.ndarray = gap * (2 * ndtr(z) - 1) + 2 * spread * density
        return found

    first = mean_distance(targets - mean, scale).mean(0)
    second = np.zeros_like(first)
    for one in range(len(mean)):
        second += mean_distance(mean[one] - mean, np.sqrt(scale[one] ** 2 + scale**2)).mean(0)
    return first - 0.5 * second / len(mean)


def quantiles(mean: np.ndarray, scale: np.ndarray, num_halvings: int = 50) -> np.ndarray:
    """Quantiles ``[Q, N]`` of a mixture ``[M, N]`` of Normals, by bisection."""
    reach = 4.0 * scale.max(0)
    found = np.empty((len(LEVELS), mean.shape[1]))
    for i, level in enumerate(LEVELS):
        low, high = mean.min(0) - reach, mean.max(0) + reach
        for _ in range(num_halvings):
            middle = 0.5 * (low + high)
            is_below = ndtr((middle - mean) / scale).mean(0) < level
            low, high = np.where(is_below, middle, low), np.where(is_below, high, middle)
        found[i] = 0.5 * (low + high)
    return found
