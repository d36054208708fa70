"""Linear response: the change of a row's outputs when the row is left out.

When a row is left out of a variational or exact fit, the mean of the weights changes by ``-P^-1`` times the gradient of
the row's term, where P is the curvature of the objective in the means (linear response; Giordano, Broderick and Jordan
2018; for one row left out, Rad and Maleki 2020):

======================================================== ==================================================
on paper                                                 in code
======================================================== ==================================================
``P = P0 + sum_n L_n (x) h_n h_n'``                      ``curvatures.Full``, ``curvatures.Diagonal``
``L_n = -E_q[d2 log p(y_n | f) / df df']``               ``likelihood.expected_derivatives``
``P0 = -E_q[d2 log p(W) / dW dW']``                      ``expected_prior_precision``
``R_n = H_n P^-1 H_n'``, with ``f_n = H_n vec(W)``       ``Response.of``
======================================================== ==================================================

For an exact posterior ``P^-1`` is its covariance. A mean-field covariance ignores posterior correlations between the
weights, so in output space the precision of one row could exceed the total precision that it implies. P is the sum over
all rows, and with a log-concave likelihood ``L_n`` is always smaller than ``R_n^-1``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from bll_pyro import curvatures
from bll_pyro.gaussian import Delta, Dense, WeightGaussian, normal_points
from bll_pyro.gaussian.factorization import NotPositiveDefinite
from bll_pyro.gaussian.information import DenseInformation, DiagonalInformation
from bll_pyro.gaussian.precision import precision
from bll_pyro.layer import LastLayer
from bll_pyro.posterior import GaussianPosterior
from bll_pyro.priors import GaussianPrior

MAX_JOINT_COLUMNS = 8192  # largest K P of a joint precision: 0.5 GB per copy
MAX_BLOCK_WORK = 2e13  # most multiplications for one P x P block per output
NUM_GLOBAL_POINTS = 32  # quasi-random points over the hyper-parameters
NUM_NODES = 64  # quantiles of a weight in the expectation of a prior's curvature
MAX_POINTS = 2**17  # weights at all of their quantiles at which a density is differentiated at once
MIN_DISTANCE = 1e-6  # smallest distance of a point estimate from the prior's centre, a possible pole
SHARE_OF_PRECISION = 1e-6  # smallest prior precision of a weight, as a share of its posterior precision

# yields design [B, P] and curvature L [B, K, K] of all rows
CurvatureBlocks = Callable[[], Iterable[tuple[Tensor, Tensor]]]


@dataclass(frozen=True, eq=False)
class Response:
    """``R_n``, the covariance of row n's outputs under ``N(0, P^-1)``.

    Parameters
    ----------
    weights
        The Gaussian with precision P.
    ties
        Whether P includes the likelihood's coupling of outputs. If not, only the diagonals of ``L_n`` are used.
    """

    weights: WeightGaussian
    ties: bool

    def of(self, design: Tensor) -> Tensor:
        """``R [N, K, K]`` for rows ``design [N, P]``."""
        if not isinstance(self.weights, Dense):
            return self.weights.outputs(design).covariance
        # h' C_kl h for each pair of outputs: half the work of multiplying by the factor
        num_outputs = len(self.weights.loc)
        result = design.new_empty(len(design), num_outputs, num_outputs)
        for row in range(num_outputs):
            for column in range(row + 1):
                value = ((design @ self._covariance[row, :, column]) * design).sum(-1)
                result[:, row, column] = value
                result[:, column, row] = value
        return result

    @cached_property
    def _covariance(self) -> Tensor:
        """Covariance ``[K, P, K, P]`` of dense weights."""
        assert isinstance(self.weights, Dense)
        factor = self.weights.factor.flatten(0, 1)
        return (factor @ factor.mT).view(*self.weights.loc.shape, *self.weights.loc.shape)


@torch.no_grad()
def response(posterior: GaussianPosterior, rows: CurvatureBlocks, num_rows: int) -> Response:
    """Sum the curvature over all rows, in the largest form that the size of the layer allows.

    ============================== ================================= =====================================
    form                           numbers                           where
    ============================== ================================= =====================================
    P                              ``(K P)^2``, or ``K P^2`` where   ``K P <= 8192``, or a likelihood with
                                   the ``L_n`` are diagonal          diagonal ``L_n``
    a block of P for each output   ``K P^2``                         ``N K P^2 <= 2e13``
    the diagonal of P              ``K P``                           everything larger
    ============================== ================================= =====================================
    """
    weights = posterior.latents.marginal_weights()
    num_outputs, num_columns = weights.loc.shape
    prior = expected_prior_precision(posterior)
    independent = num_outputs == 1 or not _ties_outputs(rows)
    joint = (not independent or prior.dim() == 4) and num_outputs * num_columns <= MAX_JOINT_COLUMNS
    if not joint and prior.dim() == 4:
        prior = diagonal_of(prior)
    curvature: curvatures.Curvature = curvatures.Full()
    if not joint and 2.0 * num_rows * num_outputs * num_columns**2 > MAX_BLOCK_WORK:
        curvature, prior = curvatures.Diagonal(), diagonal_of(prior)
    ties = joint or independent
    for concave in (False, True):
        sums = curvature.zeros(num_outputs, num_columns, independent or not joint, weights.loc)
        for design, row_curvature in rows():
            values = _without_negative(row_curvature) if concave else row_curvature
            diagonal = DiagonalInformation(values.diagonal(dim1=-2, dim2=-1))
            curvature.add(sums, design, diagonal if independent or not joint else DenseInformation(values))
        try:
            gaussian = curvature.precision(sums, prior.to(sums[0])).gaussian(weights.loc.double())
        except NotPositiveDefinite:
            if concave:
                raise
            # P is not positive definite, since some rows are not log-concave: drop the negative eigenvalues of each L_n
            continue
        break
    parts = {name: value.to(weights.loc) for name, value in gaussian.tensors.items()}
    return Response(type(gaussian)(**parts), ties)


def expected_prior_precision(posterior: GaussianPosterior) -> Tensor:
    """``-E_q[d2 log p(W, b)]``: ``[K, P]``, or ``[K, P, P]`` or ``[K, P, K, P]`` for a joint prior of all weights.

    For a prior that is Normal given its hyper-parameters the mean of ``1 / scale^2``. For any other, with log density l
    and ``w = m + s z``, by Stein's lemma ``-E[l''(w)] = -E[l'(w) z] / s``, which is finite where l has poles or kinks. A
    point estimate has no scale s; its precision is that of the Normal with the same gradient, ``-l'(w) / (w - centre)``.
    """
    layer, frame = posterior.layer, posterior.frame
    weights = posterior.latents.marginal_weights()
    if layer.prior.covers_bias:
        return precision(layer.prior.weights).to(weights.loc)  # type: ignore[attr-defined]
    num_features = frame.num_features
    loc, scale = weights.loc[:, :num_features], weights.marginal_scale()[:, :num_features]
    is_point = isinstance(weights, Delta)
    result = torch.zeros_like(loc)
    draws = global_draws(posterior)
    for hyper in draws:
        result += _curvature_of(layer, loc, scale, {**posterior.learned, **hyper}, is_point) / len(draws)
    if not is_point:
        # the curvature is negative in heavy tails
        result = result.clamp_min(SHARE_OF_PRECISION * scale.square().reciprocal())
    if not layer.bias:
        return result
    return torch.cat([result, result.new_full((len(result), 1), layer.bias_scale**-2)], -1)


def global_draws(posterior: GaussianPosterior) -> list[dict[str, Tensor]]:
    """Quasi-random draws of the prior's hyper-parameters; one empty draw if it has none."""
    sites, latents = posterior.global_sites, posterior.latents
    if not sites.hyper_names:
        return [{}]
    points = normal_points(NUM_GLOBAL_POINTS, latents.num_globals).to(latents.globals_loc)
    values = [sites.constrain(latents.given(point)[0])[0] for point in points]
    return [sites.hyper(value) for value in values]


def _curvature_of(
    layer: LastLayer, loc: Tensor, scale: Tensor, hyper: dict[str, Tensor], is_point: bool
) -> Tensor:
    """Curvature ``[K, D]`` of the log prior given its hyper-parameters."""
    prior = layer.prior
    if not prior.has_density:
        raise ValueError(
            f"leave-one-out: expected a prior with a density, got {type(prior).__name__}, which overrides sample(); "
            "use az.loo on fit.to_datatree(...)"
        )
    hyper = {name: value.detach() for name, value in hyper.items()}
    if isinstance(prior, GaussianPrior):
        normal = prior.distribution((loc.shape[0], loc.shape[1]), **hyper)
        return normal.scale.to(loc).square().reciprocal().expand_as(loc)

    def gradient(point: Tensor) -> Tensor:
        with torch.enable_grad():
            leaf = point.detach().clone().requires_grad_()
            given = prior.distribution((loc.shape[0], loc.shape[1]), **hyper)
            (result,) = torch.autograd.grad(given.log_prob(leaf).sum(), leaf)
        return result

    if is_point:
        centre = torch.zeros_like(loc) if getattr(prior, "loc", None) is None else prior.loc.to(loc)  # type: ignore[attr-defined]
        distance = loc - centre
        distance = torch.where(distance.abs() < MIN_DISTANCE, MIN_DISTANCE, distance)
        return gradient(centre + distance) / -distance
    nodes = quantile_nodes(NUM_NODES).to(loc)[:, None, None]
    total = torch.zeros_like(loc)
    for some in nodes.split(max(1, MAX_POINTS // loc.numel())):
        total += (gradient(loc + scale * some) * some).sum(0)
    return total / (-scale * nodes.square().sum())


def quantile_nodes(num: int) -> Tensor:
    """Standard normal quantiles ``[num]`` at evenly spaced probabilities."""
    return torch.special.ndtri((torch.arange(num, dtype=torch.float64) + 0.5) / num)


def _ties_outputs(rows: CurvatureBlocks) -> bool:
    """Whether the likelihood's curvature is not diagonal, judged by its first block of rows."""
    _, curvature = next(iter(rows()))
    return has_ties(curvature)


def has_ties(curvature: Tensor) -> bool:
    """Whether curvatures ``[N, K, K]`` of outputs have off-diagonal elements other than 0."""
    return bool((curvature != torch.diag_embed(curvature.diagonal(dim1=-2, dim2=-1))).any())


def _without_negative(curvature: Tensor) -> Tensor:
    values, axes = torch.linalg.eigh(curvature)
    return (axes * values.clamp_min(0)[:, None]) @ axes.mT


def diagonal_of(prior: Tensor) -> Tensor:
    """The diagonal ``[K, P]`` of a precision of any form."""
    if prior.dim() == 2:
        return prior
    if prior.dim() == 3:
        return prior.diagonal(dim1=-2, dim2=-1)
    return torch.einsum("kpkp->kp", prior)
