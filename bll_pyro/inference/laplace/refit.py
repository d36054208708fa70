"""Fits by Laplace's approximation at other prior scales, for the choice of a scale by held-out rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bll_pyro.inference.base import Trace
from bll_pyro.inference.laplace.evidence import LaplaceAt, LaplaceEvidence
from bll_pyro.inference.laplace.maximize import maximize_evidence
from bll_pyro.inference.prior_scale.folds import Fold
from bll_pyro.inference.rows import DesignRows

if TYPE_CHECKING:
    from bll_pyro.inference.laplace.laplace import Laplace

FoldPoints = list[tuple[LaplaceEvidence, LaplaceAt]]  # of each part


@dataclass(eq=False)
class LaplaceRefit:
    """What :func:`bll_pyro.inference.prior_scale.choose.choose_scale` needs of Laplace.

    Parameters
    ----------
    laplace
        The inference.
    evidence, at
        The evidence of all rows, and its highest point.
    """

    laplace: Laplace
    evidence: LaplaceEvidence
    at: LaplaceAt

    @property
    def log_scale(self) -> Tensor:
        """Logarithms of the learned scales at the highest evidence, ``[n]``."""
        return self.at.psi[: self.evidence.settings.num_learned]

    @property
    def scale(self) -> Tensor:
        """The learned scales at the highest evidence, ``[n]``."""
        return self.log_scale.exp()

    def side_by_side(self, rows: DesignRows, held_out: Tensor) -> Callable[[list[float]], list[float]] | None:
        """None: the modes are sought one after the other."""
        return None

    def start(self, parts: list[Fold]) -> FoldPoints:
        """The evidence of each part, and where its search begins: at the fit of all rows."""
        whole = self.evidence
        return [
            (self.laplace.evidence(whole.layer, part.fitted, whole.target_shape), self.at) for part in parts
        ]

    def fit_at(self, parts: list[Fold], x: float, state: FoldPoints) -> tuple[float, FoldPoints]:
        """Fit every part at one x; return the loss of the rows that were left out, nats, and the new state."""
        found = [(evidence, self.at_scale(evidence, x, at)) for evidence, at in state]
        losses = [
            part.loss(self.laplace.posterior_at(evidence, at, Trace()), at_mode=True)
            for part, (evidence, at) in zip(parts, found, strict=True)
        ]
        return sum(losses), found

    def at_scale(self, evidence: LaplaceEvidence, x: float, start: LaplaceAt) -> LaplaceAt:
        """The highest evidence with the learned scales held at ``exp(x)`` times those of all rows."""
        psi = torch.cat([self.log_scale + x, start.psi[len(self.log_scale) :]])
        return maximize_evidence(evidence, psi, start.mode.weights).point
