"""Where chains start and how they are scaled: a Gaussian approximation of the posterior, good enough to sample from there.

For priors that are Gaussian given few hyper-parameters it is Laplace's approximation where the evidence is highest, the
one of :class:`bll_pyro.Laplace`. For all others, whose mode says little about them, the same Newton steps are taken on

``E_q[log p(A)] + log p(y | m)``, with q the independent Normals of the current approximation,

in which the kink of a Laplace prior or the pole of a horseshoe is smoothed over the width of the posterior.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from bll_pyro.curvatures import Curvature, Diagonal, Full, Kronecker
from bll_pyro.gaussian import Diagonal as IndependentNormals
from bll_pyro.global_sites import GlobalSites
from bll_pyro.inference.base import Trace
from bll_pyro.inference.laplace.evidence import LaplaceEvidence
from bll_pyro.inference.laplace.maximize import maximize_evidence
from bll_pyro.inference.nuts.whitening import MAX_JOINT, Whitening, whitening
from bll_pyro.inference.row_likelihood import RowLikelihood
from bll_pyro.inference.rows import DesignRows
from bll_pyro.inference.start import warm_start
from bll_pyro.layer import LastLayer
from bll_pyro.likelihoods.base import TargetShape
from bll_pyro.priors import GaussianPrior
from bll_pyro.priors import Posterior as PosteriorPrior
from bll_pyro.scope import generator

MAX_HYPER = 100
MAX_STEPS = 100
MODE_TOLERANCE = 1e-3  # posterior standard deviations
START_TOLERANCE = 0.1  # chains only start here
LEARNED_TOLERANCE = 1e-3  # of log tau, which the chains keep
MAX_HALVINGS = 20
LEAST_SHARE = 1e-4  # of the precision of the approximation, which the prior has at least


@dataclass(frozen=True, eq=False)
class ChainStart:
    """A Gaussian approximation: weights ``N(loc, R R')``, with everything else at a point.

    Parameters
    ----------
    u
        Global unknowns ``[U]``, unconstrained.
    learned
        Hyper-parameters without a prior, at their best values.
    loc
        ``[K, P]``.
    prior_precision
        Share of the prior in the precision, ``[K, P]`` (or joint).
    whitening
        R.
    """

    u: Tensor
    learned: dict[str, Tensor]
    loc: Tensor
    prior_precision: Tensor
    whitening: Whitening


def approximate(layer: LastLayer, rows: DesignRows, target_shape: TargetShape, trace: Trace) -> ChainStart:
    """The origin for a layer on some rows; what did not go as it should goes into the trace."""
    num_outputs = layer.likelihood.num_outputs(target_shape)
    hyper = layer.prior.hyper((num_outputs, rows.frame.num_features))
    num_hyper = sum(prior.event_shape.numel() for prior in hyper.values())
    if isinstance(layer.prior, GaussianPrior) and num_hyper <= MAX_HYPER:
        return by_evidence(layer, rows, target_shape, trace)
    return by_bound(layer, rows, target_shape, trace)


def by_evidence(layer: LastLayer, rows: DesignRows, target_shape: TargetShape, trace: Trace) -> ChainStart:
    """Laplace's approximation at the highest evidence."""
    num_outputs = layer.likelihood.num_outputs(target_shape)
    curvature: Curvature = Full() if num_outputs * rows.num_columns <= MAX_JOINT else Kronecker()
    if isinstance(layer.prior, PosteriorPrior) and not isinstance(curvature, Full):
        curvature = Diagonal()
    evidence = LaplaceEvidence(layer, rows, target_shape, curvature, MODE_TOLERANCE, MAX_STEPS)
    optimum = maximize_evidence(evidence)
    at, num_learned = optimum.point, evidence.settings.num_learned
    if bool(optimum.at_upper[:num_learned].any()):
        trace.stop(
            "the evidence grows with the prior scale without bound: look at the targets, or give a scale: "
            "priors.Normal(scale=1.0)"
        )
    informed, precision = list(at.mode.rows.informed()), at.mode.prior.precision
    whitened = whitening(informed, precision, layer.likelihood.independent_outputs)
    learned = evidence.settings.learned(at.psi)
    return ChainStart(at.psi[num_learned:], learned, at.mode.weights, precision, whitened)


def by_bound(layer: LastLayer, rows: DesignRows, target_shape: TargetShape, trace: Trace) -> ChainStart:
    """Newton's method on the smoothed log joint density, in turns with learned hyper-parameters."""
    num_outputs, num_features = layer.likelihood.num_outputs(target_shape), rows.frame.num_features
    sites = GlobalSites(layer, (num_outputs, num_features), target_shape)
    learned = {
        k: v.to(rows.frame.center) for k, v in layer.prior.learned_start((num_outputs, num_features)).items()
    }
    start = warm_start(layer, sites, rows, num_outputs, learned)
    values = {k: v.double() for k, v in sites.constrain(start.globals_loc)[0].items()}
    noise, hyper = sites.noise(values), sites.hyper(values)
    learned = {k: v.double() for k, v in learned.items()}
    function, independent = RowLikelihood(layer.likelihood, rows), layer.likelihood.independent_outputs
    loc, scale = start.loc.double(), start.scale.double()
    at, least = function.at(loc, noise), LEAST_SHARE * scale.square().reciprocal()
    for _ in range(MAX_STEPS):
        smoothed = SmoothedPrior(layer, {**learned, **hyper}, scale, least)
        value, slope = smoothed.at(loc)
        precision = smoothed.precision(loc)
        whitened = whitening(list(at.informed()), precision, independent)
        slope = slope + at.gradient
        step = whitened.covariance_times(slope)
        distance = math.sqrt(max(float((slope * step).sum()), 0.0) / slope.numel())
        size = 1.0
        for _ in range(MAX_HALVINGS):
            moved = function.at(loc + size * step, noise)
            if moved.value + smoothed.at(moved.weights)[0] >= at.value + value:
                at, loc = moved, moved.weights
                break
            size /= 2
        scale = whitened.variance().sqrt()
        change = 0.0
        if learned:
            before, learned = (
                learned,
                layer.prior.learned_update(loc[:, :num_features], scale[:, :num_features]),
            )
            change = max(float((learned[k] / before[k]).log().abs().max()) for k in learned)
        if distance <= START_TOLERANCE and change <= LEARNED_TOLERANCE:
            break
    else:
        trace.messages.append(
            f"the approximation in which chains start did not settle within {MAX_STEPS} steps"
        )
    return ChainStart(start.globals_loc.double(), learned, loc, precision, whitened)


class SmoothedPrior:
    """``E_q[log p(A | hyper)]`` for independent Normals q of given scales, as a function of their means.

    ``least`` is the smallest precision, ``[K, P]``.
    """

    def __init__(self, layer: LastLayer, hyper: dict[str, Tensor], scale: Tensor, least: Tensor) -> None:
        self.layer, self.hyper, self.scale, self.least = layer, hyper, scale, least

    def at(self, loc: Tensor) -> tuple[float, Tensor]:
        """Value, and slope ``[K, P]`` in the means."""
        return self._slope(loc.detach().requires_grad_(), self.scale, of_scale=False)

    def precision(self, loc: Tensor) -> Tensor:
        """Mean curvature ``-E[d2 log p / dA^2]`` ``[K, P]``, as ``-(d value / d scale) / scale`` (Price's theorem).

        Heavy tails curve upwards; the smallest precision is then a little of the posterior's own. It stays above a little
        of the one at the start, too: where the data leave a direction free, scales would grow from step to step.
        """
        _, slope = self._slope(loc, self.scale.detach().requires_grad_(), of_scale=True)
        own = LEAST_SHARE * self.scale.square().reciprocal()
        return (-slope / self.scale).maximum(own).maximum(self.least)

    def _slope(self, loc: Tensor, scale: Tensor, of_scale: bool) -> tuple[float, Tensor]:
        with torch.enable_grad():
            # the same draws every time, where there is no closed form
            normals = IndependentNormals(loc, scale)
            value = self.layer.expected_log_prior(normals, self.hyper, generator(0, loc.device))
            (slope,) = torch.autograd.grad(value, scale if of_scale else loc)
        return float(value.detach()), slope
