"""The score of a detector that is declared without one."""

from __future__ import annotations

from bll_pyro.likelihoods import Categorical
from bll_pyro.ood.base import Score, View
from bll_pyro.ood.distances import Mahalanobis
from bll_pyro.ood.fisher import Fisher, HarmonicMean
from bll_pyro.ood.groups import NearestGroup
from bll_pyro.ood.length import Length
from bll_pyro.ood.scores import Energy, Epistemic, Leverage, PredictiveEntropy
from bll_pyro.ood.virtual_logit import ViM

# Of predictions, over that of features. Features far from all that is known have p-values of many orders of magnitude, which a
# factor hardly touches; where they say little, predictions decide. Found on the tasks of docs/decisions/0012-default-detector.md.
WEIGHT_OF_PREDICTIONS = 8.0


def default_score(view: View) -> Fisher | HarmonicMean:
    """The scores that have a meaning for the fit of a view of some known rows, joined by their p-values.

    ============================== ====================== =======================================================
    score                          for                    what it sees
    ============================== ====================== =======================================================
    Mahalanobis                    every fit              directions that no class has
    NearestGroup                   every fit              directions away from every training row
    Length                         every fit              features that are longer or shorter than those of training
    Leverage                       posteriors that spread directions in which the weights are uncertain
    ViM                            ``Categorical``        parts of the features that training rows hardly use
    Energy                         ``Categorical``        rows that no class claims
    PredictiveEntropy              ``Categorical``        rows that several classes claim
    Epistemic                      ``Categorical`` whose  rows on which weights of the posterior disagree
                                   posterior spreads
    ============================== ====================== =======================================================

    The first five judge features and the others predictions. Where there are both, they are two groups
    (:class:`HarmonicMean`): an input may be strange to one and not to the other.
    """
    spreads = bool((view.outputs.variance > 0).any())  # a point estimate (MAP) does not
    has_classes = isinstance(view.posterior.layer.likelihood, Categorical)
    of_features: list[Score] = [Mahalanobis(), NearestGroup(), Length()]
    if spreads:
        of_features.append(Leverage())
    if has_classes and view.features.shape[1] > 1:  # a single feature has no part that is hardly used
        of_features.append(ViM())
    features = Fisher(tuple(of_features))
    if not has_classes:
        return features
    of_predictions: list[Score] = [Energy(), PredictiveEntropy()]
    if spreads:
        of_predictions.append(Epistemic())
    return HarmonicMean((features, Fisher(tuple(of_predictions))), (1.0, WEIGHT_OF_PREDICTIONS))
