"""The score of a detector that is declared without one."""

from __future__ import annotations

from bll_pyro.likelihoods import Categorical
from bll_pyro.ood.base import Score, View
from bll_pyro.ood.distances import Mahalanobis
from bll_pyro.ood.fisher import Fisher
from bll_pyro.ood.neighbours import KNearestNeighbours
from bll_pyro.ood.scores import Energy, Leverage


def default_score(view: View) -> Fisher:
    """The scores that have a meaning for the fit of a view of some known rows, joined by their p-values.

    ============================== ====================== =======================================================
    score                          for                    what it sees
    ============================== ====================== =======================================================
    Mahalanobis                    every fit              directions that no class has
    KNearestNeighbours             every fit              directions away from every training row
    Mahalanobis, not normalised    every fit              sizes: a table row far out along a direction of its own
    Leverage                       posteriors that spread directions in which the weights are uncertain
    Energy                         ``Categorical``        rows that no class claims
    ============================== ====================== =======================================================
    """
    scores: list[Score] = [Mahalanobis(), KNearestNeighbours(), Mahalanobis(normalize=False)]
    if bool((view.outputs.variance > 0).any()):  # a point estimate (MAP) has none
        scores.append(Leverage())
    if isinstance(view.posterior.layer.likelihood, Categorical):
        scores.append(Energy())
    return Fisher(tuple(scores))
