"""Rows with their targets as one fit sees them: what everything takes that judges or calibrates a fit on rows."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from bll_pyro.features.columns import Columns, Data


@dataclass(frozen=True, eq=False)
class LabelledRows:
    """Rows, read once: the features that a fit makes of them, and targets, weights and exposures in their order.

    Parameters
    ----------
    features
        Features ``[N, D]``.
    given
        Targets as they were given, in the shape of the fit's: ``[N]`` or ``[N, T]``.
    targets
        Targets as the likelihood uses them.
    columns
        Weights and exposures.
    """

    features: Float[Tensor, "N D"]
    given: Tensor
    targets: Tensor
    columns: Columns

    @property
    def data(self) -> Data:
        """The same for ``fit.head``."""
        return Data((self.features, self.given), self.columns.weight, self.columns.exposure)
