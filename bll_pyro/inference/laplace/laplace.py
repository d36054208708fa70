"""Laplace's approximation: a Gaussian at the posterior mode, with the curvature there."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bll_pyro import gaussian
from bll_pyro.checks import count, positive_or_none
from bll_pyro.curvatures import Curvature, Kronecker
from bll_pyro.gaussian.precision import precision_dim
from bll_pyro.gaussian.weights import LOG_TWO_PI
from bll_pyro.inference.base import Inference, Trace
from bll_pyro.inference.laplace.evidence import LaplaceAt, LaplaceEvidence
from bll_pyro.inference.laplace.maximize import globals_spread, maximize_evidence
from bll_pyro.inference.laplace.quasi_newton import Optimum
from bll_pyro.inference.laplace.refit import LaplaceRefit
from bll_pyro.inference.prior_scale import criteria
from bll_pyro.inference.prior_scale.choose import choose_scale
from bll_pyro.inference.rows import DesignRows
from bll_pyro.layer import LastLayer
from bll_pyro.likelihoods.base import TargetShape
from bll_pyro.posterior import GaussianPosterior
from bll_pyro.priors import GaussianPrior
from bll_pyro.priors import Posterior as PosteriorPrior

MAX_GLOBALS = 100  # each global unknown costs two more modes
TOLERANCES = {torch.float32: 1e-3, torch.float64: 1e-8}
MIN_CURVATURE = 1e-4


@dataclass(frozen=True, eq=False)
class Laplace(Inference):
    """A Gaussian around the mode of the weights, whose precision is the curvature of the log joint density there.

    The mode is found by Newton's method with conjugate gradients on all rows. What is not a weight is treated by the
    log evidence that the Gaussian implies (MacKay 1992): noise and hyper-parameters that have a prior get a Gaussian of
    their own where it is highest, in unconstrained coordinates. A prior scale that is not given maximises it, or the
    density of held-out rows (``scale_criterion``).
    With the full curvature and a Gaussian likelihood with known noise the posterior is exact, and so is the evidence.

    Parameters
    ----------
    curvature
        How much of the precision is kept: ``curvatures.Kronecker()`` (default), ``Diagonal()`` or ``Full()``.
    tolerance
        Distance from the mode that will do, in posterior standard deviations, the root mean square over the weights.
        None (default) takes 1e-3, or 1e-8 for features in double precision.
    max_steps
        Most Newton steps in one search for the mode.
    scale_criterion
        What decides on a prior scale that is not given: ``criteria.CrossValidation()`` (default), which leaves it to the evidence
        unless rows are few; ``criteria.LeaveOneOut()``; or ``criteria.Evidence()``.
    """

    curvature: Curvature = Kronecker()
    tolerance: float | None = None
    max_steps: int = 100
    scale_criterion: criteria.Criterion = criteria.CrossValidation()

    def __post_init__(self) -> None:
        criteria.check_criterion(self.scale_criterion, "Laplace")
        if not isinstance(self.curvature, Curvature):
            raise TypeError(
                f"Laplace(curvature=...): expected a curvature such as bll.curvatures.Kronecker(), got {self.curvature!r}"
            )
        positive_or_none(self.tolerance, "tolerance", "Laplace")
        count(self.max_steps, "max_steps", "Laplace")

    def rotates(self, layer: LastLayer) -> bool:
        """Turn to principal axes where both curvature and prior allow it."""
        return self.curvature.can_rotate and layer.prior.can_rotate

    def check(self, layer: LastLayer, num_outputs: int, num_columns: int) -> None:
        """Priors that are Gaussian given few hyper-parameters; a precision that fits in memory."""
        prior = layer.prior
        takes = "priors.Normal, priors.HierarchicalNormal (with up to 100 scales) and priors.Posterior"
        if not isinstance(prior, GaussianPrior):
            raise ValueError(
                f"Laplace: expected a prior that is Gaussian given its hyper-parameters, got {type(prior).__name__}, whose "
                f"mode says little about it; use {takes}, or bll.SVI() or bll.NUTS()"
            )
        hyper = prior.hyper((num_outputs, num_columns - int(layer.bias)))
        noise = layer.likelihood.sites((num_outputs,))
        for what, sites, remedy in [
            (f"{type(prior).__name__} with", hyper, f"{takes}, or bll.SVI() or bll.NUTS()"),
            (
                f"{type(layer.likelihood).__name__} with a noise for each of",
                noise,
                "known noise, or bll.Exact() or bll.SVI()",
            ),
        ]:
            num_globals = sum(math.prod(site.event_shape) for site in sites.values())
            if num_globals > MAX_GLOBALS:
                raise ValueError(
                    f"Laplace: expected up to {MAX_GLOBALS} sampled unknowns beside the weights, got {what} {num_globals}; "
                    f"use {remedy}"
                )
        independent = layer.likelihood.independent_outputs
        if isinstance(prior, PosteriorPrior):
            num_axes = precision_dim(prior.weights)
            if not self.curvature.takes(num_axes):
                raise ValueError(
                    f"Laplace({type(self.curvature).__name__}()): expected a prior of independent weights, got the posterior of "
                    "an earlier fit with a covariance; use bll.curvatures.Full() or bll.curvatures.Diagonal()"
                )
            independent = independent and num_axes < 4
        self.curvature.check_memory(num_outputs, num_columns, independent)

    def run(
        self,
        layer: LastLayer,
        rows: DesignRows,
        target_shape: TargetShape,
        *,
        seed: int,
        validation: DesignRows | None = None,
    ) -> tuple[GaussianPosterior, Trace]:
        """Find the optimum of the evidence, and the mode there."""
        began = time.perf_counter()
        evidence = self.evidence(layer.rotated(rows.frame.rotation), rows, target_shape)
        optimum = maximize_evidence(evidence)
        trace = Trace()
        num_learned, (num_outputs, num_columns) = evidence.settings.num_learned, evidence.like.shape
        at = optimum.point
        held_out = bool(num_learned) and self.scale_criterion.applies(
            layer, rows.num_rows, num_outputs, num_columns
        )
        self._report(evidence, optimum, trace, decides=not held_out)
        if held_out:
            refit = LaplaceRefit(self, evidence, at)
            x, path = choose_scale(self.scale_criterion, refit, rows, seed)
            trace.statistics |= path
            at = refit.at_scale(evidence, x, at)
        posterior = replace(self.posterior_at(evidence, at, trace), layer=layer)
        trace.wall_time = time.perf_counter() - began
        return posterior, trace

    def evidence(self, layer: LastLayer, rows: DesignRows, target_shape: TargetShape) -> LaplaceEvidence:
        """The log evidence as a function of noise and hyper-parameters; ``fit_at`` goes to one point of it."""
        tolerance = self.tolerance or TOLERANCES[rows.frame.center.dtype]
        return LaplaceEvidence(layer, rows, target_shape, self.curvature, tolerance, self.max_steps)

    def posterior_at(self, evidence: LaplaceEvidence, at: LaplaceAt, trace: Trace) -> GaussianPosterior:
        """The Gaussian at one point of the evidence; the log evidence goes into the trace."""
        frame, layer, settings = evidence.rows.frame, evidence.layer, evidence.settings
        like = frame.center
        weights = cast(at.precision.gaussian(at.mode.weights), like)
        u = at.psi[settings.num_learned :]
        factor, coupling, log_evidence = u, None, at.log_evidence
        if len(u):
            hessian, moves = globals_spread(evidence, at)
            values, vectors = torch.linalg.eigh(hessian)
            if float(values.min()) < MIN_CURVATURE:
                trace.stop(
                    "the evidence is flat in noise or hyper-parameters, whose spread is therefore a guess: give them tighter "
                    "priors or values, or use bll.SVI() or bll.NUTS()"
                )
                values = values.clamp_min(MIN_CURVATURE)
            covariance = vectors / values @ vectors.mT
            # rows in order, as a file has them: what is loaded is then the same to the last bit
            factor = torch.linalg.cholesky((covariance + covariance.mT) / 2).contiguous()
            log_evidence += 0.5 * len(u) * LOG_TWO_PI + float(factor.diagonal().log().sum())
            if isinstance(weights, (gaussian.Dense, gaussian.BlockDiagonal)):
                coupling = (moves @ factor).to(like)
                weights = as_dense(weights)
        trace.statistics["log_evidence"] = log_evidence
        latents = gaussian.LatentGaussian(weights, u.to(like), factor.to(like), coupling)
        learned = {name: value.to(like) for name, value in settings.learned(at.psi).items()}
        shape = (layer, frame, evidence.target_shape, len(at.mode.weights), learned)
        return GaussianPosterior(*shape, latents=latents)

    def _report(
        self, evidence: LaplaceEvidence, optimum: Optimum[LaplaceAt], trace: Trace, decides: bool
    ) -> None:
        mode = optimum.point.mode
        trace.statistics |= {
            "log_joint": mode.log_joint,
            "distance": mode.distance,
            "num_steps": mode.num_steps,
        }
        if len(optimum.argument):
            trace.statistics["evidence_path"] = torch.tensor(optimum.values, dtype=torch.float64)
            trace.statistics["psi_path"] = torch.stack(optimum.arguments).cpu()
        if not mode.converged:
            trace.stop(
                f"the mode was not found within {self.max_steps} steps: it is still {mode.distance:.1e} posterior standard "
                "deviations away; use a smaller prior scale, standardize=True, features in double precision, or a larger "
                "Laplace(tolerance=...)"
            )
        if not decides:  # where the evidence is highest is only where the search for the scale starts
            return
        if not optimum.converged:
            trace.stop(
                "the highest evidence was not found; the best point so far was kept: give a prior scale, e.g. "
                "priors.Normal(scale=1.0), or features in double precision"
            )
        for index in range(evidence.settings.num_learned):
            if bool(optimum.at_lower[index]):
                trace.messages.append(
                    "the evidence is highest with weights of 0: these rows show nothing that the features know of the targets"
                )
            elif bool(optimum.at_upper[index]):
                trace.stop(
                    "the evidence grows with the prior scale without bound: look at the targets, or give a scale: "
                    "priors.Normal(scale=1.0)"
                )


def cast(weights: gaussian.WeightGaussian, like: Tensor) -> gaussian.WeightGaussian:
    """The same Gaussian in the dtype and on the device of a tensor."""
    # LAPACK returns columns in order; rows in order is what is saved and read, and so gives the same bits
    parts = {name: value.to(like).contiguous() for name, value in weights.tensors.items()}
    return replace(weights, **parts)


def as_dense(weights: gaussian.WeightGaussian) -> gaussian.WeightGaussian:
    """One covariance over all weights, which can be tied to the global unknowns."""
    if not isinstance(weights, gaussian.BlockDiagonal):
        return weights
    num_outputs, num_columns = weights.loc.shape
    factor = torch.block_diag(*weights.tril)
    return gaussian.Dense(
        weights.loc, factor.view(num_outputs, num_columns, -1), factor.diagonal().log().sum()
    )
