"""Rows that are left out one at a time: derivatives of each under the posterior, and its outputs without itself."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from bll_pyro.gaussian import Delta, OutputGaussian, WeightGaussian
from bll_pyro.gaussian.factorization import cholesky
from bll_pyro.inference.leave_one_out.predicted import PredictedDensity
from bll_pyro.inference.leave_one_out.response import MAX_JOINT_COLUMNS, Response, has_ties, response
from bll_pyro.inference.row_targets import NoiseValues, Targets, row_data, values_of, weight_of
from bll_pyro.inference.rows import DesignRows
from bll_pyro.likelihoods import Likelihood
from bll_pyro.observation import Stage
from bll_pyro.posterior import GaussianPosterior

NUM_DERIVATIVE_POINTS = 128  # quasi-random points for the expected gradient and Hessian of a row
NUM_NOISE_POINTS = 128  # draws of the noise: its tail decides for rows far from their prediction
NUM_POINTS_GIVEN_NOISE = 64  # quasi-random points of the outputs, for each draw of the noise
CHUNK_NUMBERS = 4_000_000  # numbers held at once
LEAST_OWN = 1e-7  # added to the diagonal of the summed curvature, as a share of its trace, for features that do not vary
NUM_FIRST_ROWS = 64  # rows that show whether the likelihood ties outputs
MAX_KEPT_NUMBERS = 2**26  # largest size of the curvatures of all rows that are kept between two passes
MAX_SHARE = 0.99  # a larger share is rounding, or comes from a likelihood that is not log-concave

Derivatives = tuple[Tensor, Tensor]  # gradient [N, K] and negative Hessian [N, K, K]


@dataclass(frozen=True, eq=False)
class RowByRow:
    """What is needed of a posterior to leave out rows that come as design matrix and targets.

    ``predicted`` is what the prediction says of a row given its outputs; which rows tell how much about the outputs is a matter
    of the likelihood alone. ``at_mode``: derivatives are those at the mean and not expectations, for posteriors that were made
    of the derivatives at the mode. ``seen``: the stage whose steps are the rows that have been gone through.
    """

    weights: WeightGaussian
    likelihood: Likelihood
    noise: NoiseValues
    num_points: int
    predicted: PredictedDensity
    at_mode: bool = False
    seen: Stage = Stage()

    @classmethod
    def of(
        cls,
        posterior: GaussianPosterior,
        num_points: int,
        predicted: PredictedDensity | None = None,
        at_mode: bool = False,
    ) -> RowByRow:
        latents, likelihood = posterior.latents, posterior.layer.likelihood
        predicted = predicted or PredictedDensity(likelihood)
        if likelihood.noise_moves_outputs and latents.coupling is not None:
            # neither may be drawn without the other: the noise at its posterior mean, and the weights given it
            sites = posterior.global_sites
            at = sites.noise(sites.constrain(latents.globals_loc)[0])
            known = {name: value[None, None] for name, value in at.items()}
            return cls(
                latents.given_first(sites.num_noise), likelihood, known, num_points, predicted, at_mode
            )
        noise = {name: value[:, None] for name, value in posterior.noise(num_points).items()}
        return cls(latents.marginal_weights(), likelihood, noise, num_points, predicted, at_mode)

    @property
    def row_size(self) -> int:
        """Numbers that one row takes: draws, matrices of the outputs, and a wide factor."""
        num_outputs, num_columns = self.weights.loc.shape
        return num_outputs * max(self.num_points, num_outputs, num_columns)

    def response(
        self, posterior: GaussianPosterior, rows: DesignRows, kept: Derivatives | None = None
    ) -> Response:
        """How far the rows move their own outputs."""
        return response(posterior, lambda: self.curvatures(rows, kept), rows.num_rows)

    def estimated_response(self, posterior: GaussianPosterior, rows: DesignRows, num_rows: int) -> Response:
        """The same from evenly spaced rows that stand for all: its relative error is about that of their mean curvature."""
        part = rows.subset(num_rows)
        factor = rows.total_weight / part.total_weight
        return response(
            posterior,
            lambda: ((h, factor * curvature) for h, curvature in self.curvatures(part)),
            rows.num_rows,
        )

    def can_sample(self, rows: DesignRows) -> bool:
        """Whether the likelihood ties outputs, of a layer small enough to keep the ties, and all rows count the same."""
        num_outputs, num_columns = self.weights.loc.shape
        design, targets = rows[:NUM_FIRST_ROWS]
        if weight_of(targets) is not None or not 1 < num_outputs * num_columns <= MAX_JOINT_COLUMNS:
            return False
        return num_outputs > 1 and has_ties(self.derivatives(self.weights.outputs(design), targets)[1])

    def sizes(self, rows: DesignRows) -> tuple[Tensor, Tensor, Tensor]:
        """``|g|^2``, ``tr L`` and leverage ``h' (sum_n tr L_n h_n h_n')^-1 h`` of all rows, each ``[N]``."""
        num_columns = self.weights.loc.shape[1]
        total = self.weights.loc.new_zeros(num_columns, num_columns, dtype=torch.float64)
        parts = []
        for design, targets in row_blocks(rows, None, self.row_size):
            gradient, curvature = self.derivatives(self.weights.outputs(design), targets)
            own = curvature.diagonal(dim1=-2, dim2=-1).sum(-1).clamp_min(0)
            total += (design * own[:, None]).mT @ design
            parts.append((gradient.square().sum(-1), own))
            self.seen.advance(len(design))
        pull, own = (torch.cat(values) for values in zip(*parts, strict=True))
        total.diagonal().add_(LEAST_OWN * total.trace() + torch.finfo(total.dtype).tiny)
        inverse = torch.cholesky_inverse(cholesky(total, "curvature of the rows")).to(self.weights.loc)
        leverage = [
            ((design @ inverse) * design).sum(-1).clamp_min(0)
            for design, _ in row_blocks(rows, None, self.row_size)
        ]
        return pull, own, torch.cat(leverage)

    def kept_derivatives(self, rows: DesignRows) -> Derivatives | None:
        """Derivatives of all rows, where they fit in memory: they are needed twice."""
        return self.all_derivatives(rows) if self.can_keep(rows) else None

    def can_keep(self, rows: DesignRows) -> bool:
        """Whether derivatives of all rows fit in memory."""
        return rows.num_rows * self.weights.loc.shape[0] ** 2 <= MAX_KEPT_NUMBERS

    def all_derivatives(self, rows: DesignRows) -> Derivatives:
        """Derivatives of all rows."""
        parts = []
        for design, targets in row_blocks(rows, None, self.row_size):
            parts.append(self.derivatives(self.weights.outputs(design), targets))
            self.seen.advance(len(design))
        gradient, curvature = zip(*parts, strict=True)
        return torch.cat(gradient), torch.cat(curvature)

    def curvatures(
        self, rows: DesignRows, kept: Derivatives | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Design and expected negative Hessian of all rows."""
        start = 0
        for design, targets in row_blocks(rows, None, self.row_size):
            stop = start + len(design)
            if kept is None:
                yield design, self.derivatives(self.weights.outputs(design), targets)[1]
            else:
                yield design, kept[1][start:stop]
            start = stop

    def log_density(self, design: Tensor, targets: Targets, num_points: int) -> Tensor:
        """Log predictive density of some rows under the whole posterior."""
        noise = {name: value[:num_points] for name, value in self.noise.items()}
        density = self.predicted.log_prob(self.weights.outputs(design), targets, noise, num_points)
        self.seen.advance(len(design))
        return density

    def leave_out(
        self, answer: Response, design: Tensor, targets: Targets, own: Derivatives | None = None
    ) -> tuple[Tensor, Tensor]:
        """``elpd`` and influence of some rows; ``own``: their derivatives, if they are known."""
        without, influence = self.outputs_without(answer, design, targets, own)
        density = self._density_without(without, targets)
        self.seen.advance(len(design))
        return density, influence

    def outputs_without(
        self, answer: Response, design: Tensor, targets: Targets, own: Derivatives | None = None
    ) -> tuple[OutputGaussian, Tensor]:
        """Outputs of some rows, each as the fit without the row has them, and influence."""
        outputs = self.weights.outputs(design)
        gradient, curvature = self.derivatives(outputs, targets) if own is None else own
        if not answer.ties:
            curvature = torch.diag_embed(curvature.diagonal(dim1=-2, dim2=-1))
        root, share, influence = own_share(answer.of(design), curvature)
        grown = root / (1 - share).sqrt()[:, None]
        moved = (grown @ (grown.mT @ gradient[..., None])).squeeze(-1)
        if isinstance(self.weights, Delta):
            return OutputGaussian(outputs.mean - moved), influence
        more = root * (share / (1 - share)).clamp_min(0).sqrt()[:, None]
        return OutputGaussian(outputs.mean - moved, factor=_factor(outputs.covariance, more)), influence

    def derivatives(self, outputs: OutputGaussian, targets: Targets) -> tuple[Tensor, Tensor]:
        """Gradient ``[N, K]`` and negative Hessian ``[N, K, K]`` of some rows: expected, or at the mode."""
        if self.at_mode:
            draws = outputs.mean.expand(
                min(self.num_points, NUM_DERIVATIVE_POINTS) if self.noise else 1, -1, -1
            )
        else:
            draws = outputs.draws(min(self.num_points, NUM_DERIVATIVE_POINTS))
            draws = draws + (outputs.mean - draws.mean(0))  # so that what is linear in the outputs is exact
        noise = {name: value[: len(draws)] for name, value in self.noise.items()}
        weight, values = weight_of(targets), values_of(targets)
        gradient, curvature = self.likelihood.expected_derivatives(
            draws, values, **noise, **row_data(targets)
        )
        if weight is None:
            return gradient, curvature
        return weight[:, None] * gradient, weight[:, None, None] * curvature

    def _density_without(self, outputs: OutputGaussian, targets: Targets) -> Tensor:
        """Average over the noise as it is without the row: given the noise the row's density is p, so divide by it.

        The noise given the others has the density ``1 / p(y_n | others, noise)`` against that given all rows, whatever is then
        averaged. For the density itself that is ``p(y_n | others) = 1 / E[1 / p(y_n | others, noise)]``.
        """
        if not self.noise or weight_of(targets) is not None:  # a weighted row leaves the noise as it is
            return self.predicted.log_prob(outputs, targets, self.noise, self.num_points)
        num_draws = min(len(next(iter(self.noise.values()))), NUM_NOISE_POINTS)
        num_points = min(self.num_points, NUM_POINTS_GIVEN_NOISE)
        parts = [
            (outputs, {name: value[s : s + 1] for name, value in self.noise.items()})
            for s in range(num_draws)
        ]
        model = PredictedDensity(self.likelihood)
        given = torch.stack([model.log_prob(one, targets, noise, num_points) for one, noise in parts])
        log_weights = given.neg().log_softmax(0)
        if self.predicted.is_of_model:
            return (log_weights + given).logsumexp(0)
        return self.predicted.weighted_log_prob(parts, log_weights, targets, num_points)


def own_share(response_of_rows: Tensor, curvature: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Root T with ``T T' = R`` and ``T' L T = diag(share)``, ``share [N, K]`` below 1, and the influence ``[N]``."""
    root = cholesky(response_of_rows + _jitter(response_of_rows), "response of the rows")
    share, axes = torch.linalg.eigh(root.mT @ curvature @ root)
    return root @ axes, share.clamp_max(MAX_SHARE), share[:, -1]


def _factor(covariance: Tensor, more: Tensor) -> Tensor:
    """Cholesky factor of ``covariance + more more'``."""
    total = covariance + more @ more.mT
    return cholesky(total + _jitter(total), "covariance of the outputs")


def _jitter(matrices: Tensor) -> Tensor:
    """A diagonal at the rounding level, which keeps numerically singular matrices factorable."""
    size = matrices.diagonal(dim1=-2, dim2=-1).mean(-1, keepdim=True)
    info = torch.finfo(size.dtype)
    return torch.diag_embed((10 * info.eps * size + info.tiny).expand(matrices.shape[:-1]))


def row_blocks(rows: DesignRows, index: Tensor | None, row_size: int) -> Iterator[tuple[Tensor, Targets]]:
    """Design and targets of chosen rows, as many at a time as memory allows."""
    size = rows_in_memory(row_size)
    if index is None:
        yield from rows.blocks(size)
        return
    for part in index.split(size):
        yield rows[part.to(rows.device)]


def rows_in_memory(row_size: int) -> int:
    """How many rows of so many numbers are held at once."""
    return max(1, CHUNK_NUMBERS // row_size)
