"""``Study``: a fit, its training rows, and quantities that several checks need, computed once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bll_pyro.elpd import loo
from bll_pyro.features.columns import Columns, Data
from bll_pyro.fitting import Fit
from bll_pyro.fitting.labelled import LabelledRows
from bll_pyro.inference.leave_one_out.response import Response
from bll_pyro.inference.leave_one_out.row_by_row import RowByRow
from bll_pyro.inference.rows import DesignRows
from bll_pyro.posterior import DrawsPosterior, GaussianPosterior, Posterior
from bll_pyro.scope import generator, without_warnings

if TYPE_CHECKING:
    import xarray as xr
    from arviz_stats.utils import ELPDData

NUM_POINTS = 256
MAX_DRAWN_WORK = 2e12  # multiplications for the outputs of all draws
MAX_DENSITIES = 2e7  # draws x rows
MIN_DRAWS = 100


@dataclass(frozen=True, eq=False)
class Study:
    """A fit and the rows that it was made from.

    Parameters
    ----------
    fit
        Without its backbone.
    labelled
        The rows.
    num_draws, num_rows, seed
        See :func:`bll_pyro.diagnose`.
    """

    fit: Fit
    labelled: LabelledRows
    num_draws: int
    num_rows: int
    seed: int

    @property
    def features(self) -> Tensor:
        """Features ``[N, D]``."""
        return self.labelled.features

    @property
    def targets(self) -> Tensor:
        """Targets as the likelihood takes them, in the user's units."""
        return self.labelled.targets

    @property
    def columns(self) -> Columns:
        """Weights and exposures."""
        return self.labelled.columns

    @property
    def posterior(self) -> Posterior:
        """The posterior of the fit."""
        return self.fit.posterior

    @property
    def gaussian(self) -> GaussianPosterior | None:
        """The posterior if it is one Gaussian over the weights whose prior has a density."""
        posterior = self.fit.posterior
        fits = isinstance(posterior, GaussianPosterior) and posterior.layer.prior.has_density
        return posterior if fits else None  # type: ignore[return-value]

    @property
    def num_weights(self) -> int:
        """Number of weights K P."""
        return self.posterior.num_outputs * (self.posterior.frame.num_features + int(self.fit.layer.bias))

    @property
    def num_outcomes(self) -> int:
        """Number of entries of the targets."""
        return self.targets.numel()

    @cached_property
    def stuck(self) -> str:
        """Why draws cannot be weighted, where chains hardly moved; empty if they can."""
        posterior = self.posterior
        if not isinstance(posterior, DrawsPosterior):
            return ""
        weight = posterior.draws["weight"].flatten(0, 1).flatten(1)
        distinct = len(torch.unique(weight, dim=0))
        if 2 * distinct >= len(weight):
            return ""
        return f"only {distinct} of {len(weight)} draws differ from each other: the chains are stuck"

    @cached_property
    def chosen(self) -> Tensor:
        """Numbers of the rows that are looked at one by one, in order ``[n]``."""
        num_all = len(self.targets)
        if self.num_rows >= num_all:
            return torch.arange(num_all)
        order = torch.randperm(num_all, generator=generator(self.seed))
        return order[: self.num_rows].sort().values

    @property
    def data(self) -> Data:
        """The rows as the functions of a fit take them."""
        return self.labelled.data

    @cached_property
    def rows(self) -> DesignRows:
        """All rows in the frame of the fit."""
        frame = self.posterior.frame
        return DesignRows(self.features, self.targets, frame, frame.center.device, self.columns)

    @cached_property
    def row_by_row(self) -> RowByRow:
        """Derivatives of the log likelihood under the posterior (Gaussian posteriors)."""
        assert self.gaussian is not None
        return RowByRow.of(self.gaussian, NUM_POINTS)

    @cached_property
    def response(self) -> Response:
        """Covariance of the weights by linear response (Gaussian posteriors)."""
        assert self.gaussian is not None
        return self.row_by_row.response(self.gaussian, self.rows)

    @cached_property
    def leaving_out(self) -> tuple[RowByRow, Response]:
        """The same with the derivatives of which the posterior was made: what a fit without a row would be made of."""
        if not self.fit.inference.at_mode:
            return self.row_by_row, self.response
        assert self.gaussian is not None
        rows = RowByRow.of(self.gaussian, NUM_POINTS, at_mode=True)
        return rows, rows.response(self.gaussian, self.rows)

    @cached_property
    def loo(self) -> ELPDData:
        """Leave-one-out, of the chosen rows."""
        with without_warnings(
            "Estimated shape parameter of Pareto|loo: the layer is too large"
        ):  # the checks report it
            num_rows = None if self.num_rows >= len(self.targets) else self.num_rows
            return loo(self.fit, self.data, num_rows, self.seed)

    @cached_property
    def affordable_draws(self) -> int:
        """How many draws of the weights can be scored on all rows."""
        work = float(len(self.targets)) * self.num_weights
        return int(min(self.num_draws, MAX_DRAWN_WORK / work, MAX_DENSITIES / self.num_outcomes))

    @cached_property
    def tree(self) -> xr.DataTree | None:
        """Draws with their log densities; None where too few can be afforded."""
        if self.affordable_draws < MIN_DRAWS:
            return None
        options: dict[str, Any] = {"prior": False, "posterior_predictive": False}
        return self.fit.to_datatree(self.data, num_draws=self.affordable_draws, seed=self.seed, **options)
