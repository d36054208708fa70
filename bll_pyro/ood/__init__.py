"""Out-of-distribution detection: scores of rows, and detectors with a given rate of false alarms.

The threshold comes from held-out known rows (split conformal: Vovk et al. 2005; Laxhammar and Falkman 2010; Bates et al.
2023), so that the probability of an alarm on a new known row is at most ``alpha``, for any score and without any unknown
rows. The share of unknown rows that are detected depends on the score. :class:`Drift` watches a stream of verdicts.
"""

from bll_pyro.ood.base import Score, View
from bll_pyro.ood.combination import Combination
from bll_pyro.ood.default import default_score
from bll_pyro.ood.detector import Detector
from bll_pyro.ood.distances import Mahalanobis, RelativeMahalanobis
from bll_pyro.ood.drift import Drift
from bll_pyro.ood.fisher import Fisher, HarmonicMean
from bll_pyro.ood.groups import NearestGroup
from bll_pyro.ood.length import Length
from bll_pyro.ood.neighbours import KNearestNeighbours
from bll_pyro.ood.pytorch_ood import PytorchOOD
from bll_pyro.ood.scores import Energy, Epistemic, FeatureNorm, Leverage, MaxProbability, PredictiveEntropy
from bll_pyro.ood.virtual_logit import ViM
from bll_pyro.prediction.verdict import Verdict

__all__ = [
    "Combination",
    "Detector",
    "Drift",
    "Energy",
    "Epistemic",
    "FeatureNorm",
    "Fisher",
    "HarmonicMean",
    "KNearestNeighbours",
    "Length",
    "Leverage",
    "Mahalanobis",
    "MaxProbability",
    "NearestGroup",
    "PredictiveEntropy",
    "PytorchOOD",
    "RelativeMahalanobis",
    "Score",
    "Verdict",
    "ViM",
    "View",
    "default_score",
]
