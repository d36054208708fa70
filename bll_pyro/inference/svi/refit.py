"""Fits by SVI at other prior scales, for the choice of a scale by held-out rows."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bll_pyro.guides import Diagonal, Start
from bll_pyro.inference.prior_scale.folds import Fold
from bll_pyro.inference.rows import DesignRows
from bll_pyro.inference.start import warm_start
from bll_pyro.inference.svi.objective import Learned, Objective, StateCopy
from bll_pyro.inference.svi.side_by_side import FoldFits, principal
from bll_pyro.inference.svi.train import Stepper
from bll_pyro.likelihoods.base import TargetShape
from bll_pyro.observation import stage
from bll_pyro.posterior import GaussianPosterior

if TYPE_CHECKING:
    from bll_pyro.inference.svi.frozen import FeatureTraining

NUM_PATH_STEPS = 100  # steps at each scale of a path, from the fit at the scale before


@dataclass(eq=False)
class SVIRefit:
    """What :func:`bll_pyro.inference.prior_scale.choose.choose_scale` needs of SVI.

    Parameters
    ----------
    training
        The fit of all rows at the scales of the highest ELBO.
    guide
        The declared guide.
    target_shape, num_steps, clip_norm
        Shape of one target, steps of the fit of all rows, and its largest gradient.
    random
        Where the fits draw from.
    """

    training: FeatureTraining
    guide: object
    target_shape: TargetShape
    num_steps: int
    clip_norm: float | None
    random: torch.Generator

    def __post_init__(self) -> None:
        self.learned: Learned = self.objective.learned

    @property
    def objective(self) -> Objective:
        """The objective of the fit of all rows."""
        return self.training.objective

    @property
    def scale(self) -> Tensor:
        """The learned scales of the fit of all rows, ``[n]``."""
        return torch.cat([value.flatten() for value in self.learned.values()])

    def scaled(self, x: float) -> Learned:
        """The learned scales times ``exp(x)``."""
        return {name: value * math.exp(x) for name, value in self.learned.items()}

    def side_by_side(self, rows: DesignRows, held_out: Tensor) -> Callable[[list[float]], list[float]]:
        """Losses of all folds at several x; guides with a covariance get independent weights in principal axes."""
        objective, training = self.objective, self.training
        sites, layer = objective.model.global_sites, objective.layer
        if not (isinstance(self.guide, Diagonal) and not self.guide.principal_axes):
            layer, rows = principal(layer, rows)
        values = sites.constrain(objective.guide.latents().globals_loc.detach())[0]

        def start(part: DesignRows, learned: Learned) -> Start:
            return warm_start(layer, sites, part, objective.model.num_outputs, learned)

        fits = FoldFits(
            layer, rows, held_out.to(rows.device), sites.noise(values), sites.hyper(values), start,
            objective.is_point, self.num_steps, training.batch_size, training.learning_rate,
        )  # fmt: skip
        return lambda xs: fits.losses([self.scaled(x) for x in xs], self.random)

    def start(self, parts: list[Fold]) -> StateCopy:
        """Where a path of fits begins: at the fit of all rows."""
        self.training.random = self.random
        return self.training.state()

    def fit_at(self, parts: list[Fold], x: float, state: StateCopy) -> tuple[float, StateCopy]:
        """Fit all rows at one scale from a neighbour's state; loss of rows that are left out, nats, and the new state."""
        (part,) = parts
        training, objective = self.training, self.objective
        training.restore(state)
        objective.hold(self.scaled(x))
        stepper = Stepper(training.optimizer(), NUM_PATH_STEPS, self.clip_norm)
        with stage("SVI", NUM_PATH_STEPS, num_rows=objective.num_rows) as steps:
            while stepper.done < NUM_PATH_STEPS:
                for batch in training.batches():
                    value = stepper.step(training.gradient, *batch)
                    if steps.observed:
                        steps.advance(elbo=value - training.rows.log_scale)
                    if stepper.done == NUM_PATH_STEPS:
                        break
        posterior = objective.posterior_in(training.rows.frame, self.target_shape)
        assert isinstance(posterior, GaussianPosterior)
        return part.loss(posterior), training.state()
