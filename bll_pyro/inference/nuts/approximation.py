"""A Gaussian approximation of the posterior: it initializes the chains and scales their coordinates.

For priors that are Gaussian given few hyper-parameters it is Laplace's approximation at the maximum of the evidence,
the one of :class:`bll_pyro.Laplace`. For all others the mode is a poor summary, so Newton's method maximises

``E_q[log p(A)] + log p(y | m)``, with q the independent Normals of the current approximation,

which smooths the kink of a Laplace prior, or the pole of a horseshoe, over the width of the posterior.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from bll_pyro.curvatures import Curvature, Diagonal, Full, Kronecker
from bll_pyro.gaussian import Diagonal as IndependentNormals
from bll_pyro.inference.base import Trace
from bll_pyro.inference.laplace.evidence import LaplaceEvidence
from bll_pyro.inference.laplace.maximize import maximize_evidence
from bll_pyro.inference.nuts.whitening import MAX_JOINT, Whitening, whitening
from bll_pyro.inference.row_likelihood import RowLikelihood
from bll_pyro.inference.rows import DesignRows
from bll_pyro.inference.start import warm_start
from bll_pyro.layer import LastLayer
from bll_pyro.likelihoods.base import TargetShape
from bll_pyro.model import GlobalSites
from bll_pyro.priors import GaussianPrior
from bll_pyro.priors import Posterior as PosteriorPrior
from bll_pyro.scope import generator

MAX_HYPER = 100  # most hyper-parameters with which Laplace's evidence is maximized
MAX_STEPS = 100  # most Newton steps in one search
MODE_TOLERANCE = 1e-3  # distance from the mode, in posterior standard deviations, for Laplace's approximation
START_TOLERANCE = 0.1  # the same for the smoothed density, whose maximum only initializes chains
LEARNED_TOLERANCE = 1e-3  # change of the log of a learned prior scale, which stays fixed in the chains
MAX_HALVINGS = 20  # most halvings of a step in one line search
LEAST_SHARE = 1e-4  # smallest precision of the smoothed prior, as a share of the approximation's precision


@dataclass(frozen=True, eq=False)
class ChainStart:
    """A Gaussian approximation: weights ``N(loc, R R')``, all other unknowns at a point.

    Parameters
    ----------
    u
        Global unknowns ``[U]``, unconstrained.
    learned
        Hyper-parameters without a prior, at the maximum of the evidence or of its bound.
    loc
        Mean of the weights, ``[K, P]``.
    prior_precision
        The prior's term of the precision, ``[K, P]``, ``[K, P, P]`` or ``[K, P, K, P]``.
    whitening
        R.
    """

    u: Tensor
    learned: dict[str, Tensor]
    loc: Tensor
    prior_precision: Tensor
    whitening: Whitening


def approximate(layer: LastLayer, rows: DesignRows, target_shape: TargetShape, trace: Trace) -> ChainStart:
    """The approximation of a layer's posterior on some rows; failures to converge are recorded in the trace."""
    num_outputs = layer.likelihood.num_outputs(target_shape)
    hyper = layer.prior.hyper((num_outputs, rows.frame.num_features))
    num_hyper = sum(prior.event_shape.numel() for prior in hyper.values())
    if isinstance(layer.prior, GaussianPrior) and num_hyper <= MAX_HYPER:
        return by_evidence(layer, rows, target_shape, trace)
    return by_bound(layer, rows, target_shape, trace)


def by_evidence(layer: LastLayer, rows: DesignRows, target_shape: TargetShape, trace: Trace) -> ChainStart:
    """Laplace's approximation at the maximum of the evidence."""
    num_outputs = layer.likelihood.num_outputs(target_shape)
    curvature: Curvature = Full() if num_outputs * rows.num_columns <= MAX_JOINT else Kronecker()
    if isinstance(layer.prior, PosteriorPrior) and not isinstance(curvature, Full):
        curvature = Diagonal()
    evidence = LaplaceEvidence(layer, rows, target_shape, curvature, MODE_TOLERANCE, MAX_STEPS)
    optimum = maximize_evidence(evidence)
    at, num_learned = optimum.point, evidence.settings.num_learned
    if bool(optimum.at_upper[:num_learned].any()):
        trace.stop(
            "the evidence increases without bound in the prior scale: check the targets, or give a scale: "
            "priors.Normal(scale=1.0)"
        )
    informed, precision = list(at.mode.rows.informed()), at.mode.prior.precision
    whitened = whitening(informed, precision, layer.likelihood.independent_outputs)
    learned = evidence.settings.learned(at.psi)
    return ChainStart(at.psi[num_learned:], learned, at.mode.weights, precision, whitened)


def by_bound(layer: LastLayer, rows: DesignRows, target_shape: TargetShape, trace: Trace) -> ChainStart:
    """Newton's method on the smoothed log joint density, alternating with updates of learned hyper-parameters."""
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
        value, gradient = smoothed.at(loc)
        precision = smoothed.precision(loc)
        whitened = whitening(list(at.informed()), precision, independent)
        gradient = gradient + at.gradient
        step = whitened.covariance_times(gradient)
        distance = math.sqrt(max(float((gradient * step).sum()), 0.0) / gradient.numel())
        size = 1.0
        for _ in range(MAX_HALVINGS):
            proposal = function.at(loc + size * step, noise)
            if proposal.value + smoothed.at(proposal.weights)[0] >= at.value + value:
                at, loc = proposal, proposal.weights
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
        trace.notes.append(
            f"the Gaussian approximation that initializes the chains did not converge within {MAX_STEPS} Newton steps"
        )
    return ChainStart(start.globals_loc.double(), learned, loc, precision, whitened)


class SmoothedPrior:
    """``E_q[log p(A | hyper)]`` for independent Normals q of given scales, as a function of their means.

    ``least`` is a lower bound of the precision, ``[K, P]``.
    """

    def __init__(self, layer: LastLayer, hyper: dict[str, Tensor], scale: Tensor, least: Tensor) -> None:
        self.layer, self.hyper, self.scale, self.least = layer, hyper, scale, least

    def at(self, loc: Tensor) -> tuple[float, Tensor]:
        """Value in nats, and gradient ``[K, P]`` in the means."""
        return self._gradient(loc.detach().requires_grad_(), self.scale, of_scale=False)

    def precision(self, loc: Tensor) -> Tensor:
        """Mean curvature ``-E[d2 log p / dA^2]`` ``[K, P]``, as ``-(d value / d scale) / scale`` (Price's theorem).

        It is negative in heavy tails, so it is bounded below by ``LEAST_SHARE`` of the current approximation's precision,
        and by ``least``, without which scales would grow from step to step in directions that the data leave free.
        """
        _, gradient = self._gradient(loc, self.scale.detach().requires_grad_(), of_scale=True)
        lower = LEAST_SHARE * self.scale.square().reciprocal()
        return (-gradient / self.scale).maximum(lower).maximum(self.least)

    def _gradient(self, loc: Tensor, scale: Tensor, of_scale: bool) -> tuple[float, Tensor]:
        with torch.enable_grad():
            # where there is no closed form, the same draws in every evaluation: the objective is then deterministic
            normals = IndependentNormals(loc, scale)
            value = self.layer.expected_log_prior(normals, self.hyper, generator(0, loc.device))
            (gradient,) = torch.autograd.grad(value, scale if of_scale else loc)
        return float(value.detach()), gradient
