"""Laplace's approximation: a Gaussian at the posterior mode, with the curvature of the log joint density as precision."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from typing import ClassVar

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

MAX_GLOBALS = 100  # most global unknowns; each costs two more searches for the mode
# default largest distance from the mode, in posterior standard deviations, by dtype of the features
TOLERANCES = {torch.float32: 1e-3, torch.float64: 1e-8}
MIN_CURVATURE = 1e-4  # smallest curvature of the log evidence in an unconstrained global unknown


@dataclass(frozen=True, eq=False)
class Laplace(Inference):
    """A Gaussian at the mode of the weights, whose precision is the negative Hessian of the log joint density.

    The mode is found by Newton's method with conjugate gradients on all rows. All other unknowns are treated by the log
    evidence that the Gaussian implies (MacKay 1992): noise and hyper-parameters with a prior get a Gaussian at its
    maximum, in unconstrained coordinates. A prior scale that is not given maximises the evidence, or the density of
    held-out rows (``scale_criterion``).
    With the full curvature, a Gaussian likelihood and known noise, posterior and evidence are exact.

    Parameters
    ----------
    curvature
        Structure of the precision: ``curvatures.Kronecker()`` (default), ``Diagonal()`` or ``Full()``.
    tolerance
        Largest distance from the mode, in posterior standard deviations, as the root mean square over the weights. None
        (default) takes 1e-3, or 1e-8 for features in double precision.
    max_steps
        Largest number of Newton steps in one search for the mode.
    scale_criterion
        Criterion of a prior scale that is not given: ``criteria.CrossValidation()`` (default), which uses the evidence
        unless rows are few; ``criteria.LeaveOneOut()``; or ``criteria.Evidence()``.

    Raises
    ------
    TypeError, ValueError
        If a setting has the wrong type, or a number is not positive.
    """

    at_mode: ClassVar[bool] = True

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
        """Whether both curvature and prior allow a rotation to principal axes."""
        return self.curvature.can_rotate and layer.prior.can_rotate

    def check(self, layer: LastLayer, num_outputs: int, num_columns: int) -> None:
        """Raise a ValueError unless the prior is Gaussian given few hyper-parameters and the precision fits in memory."""
        prior = layer.prior
        takes = "priors.Normal, priors.HierarchicalNormal (with up to 100 scales) and priors.Posterior"
        if not isinstance(prior, GaussianPrior):
            raise ValueError(
                f"Laplace: expected a prior that is Gaussian given its hyper-parameters, got {type(prior).__name__}, whose "
                f"posterior has an uninformative mode; use {takes}, or bll.SVI() or bll.NUTS()"
            )
        hyper = prior.hyper((num_outputs, num_columns - int(layer.bias)))
        noise = layer.likelihood.sites((num_outputs,))
        for what, sites, remedy in [
            (f"{type(prior).__name__} with", hyper, f"{takes}, or bll.SVI() or bll.NUTS()"),
            (
                f"{type(layer.likelihood).__name__} with a noise scale for each of",
                noise,
                "known noise, or bll.Exact() or bll.SVI()",
            ),
        ]:
            num_globals = sum(math.prod(site.event_shape) for site in sites.values())
            if num_globals > MAX_GLOBALS:
                raise ValueError(
                    f"Laplace: expected up to {MAX_GLOBALS} unknowns with a prior besides the weights, got {what} {num_globals}; "
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
        """Maximise the evidence, and take the Gaussian at its mode."""
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
            x, path = choose_scale(self.scale_criterion, refit, rows.gathered(), seed)
            trace.statistics |= path
            at = refit.at_scale(evidence, x, at)
        posterior = replace(self.posterior_at(evidence, at, trace), layer=layer)
        trace.wall_time = time.perf_counter() - began
        return posterior, trace

    def evidence(self, layer: LastLayer, rows: DesignRows, target_shape: TargetShape) -> LaplaceEvidence:
        """The log evidence as a function of noise and hyper-parameters; its ``fit_at`` evaluates one point."""
        tolerance = self.tolerance or TOLERANCES[rows.frame.center.dtype]
        return LaplaceEvidence(layer, rows, target_shape, self.curvature, tolerance, self.max_steps)

    def posterior_at(self, evidence: LaplaceEvidence, at: LaplaceAt, trace: Trace) -> GaussianPosterior:
        """The Gaussian at one point of the evidence; the log evidence is recorded in the trace."""
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
                    "the evidence is flat in noise or hyper-parameters, so their posterior standard deviations are not reliable: "
                    "give them tighter priors or values, or use bll.SVI() or bll.NUTS()"
                )
                values = values.clamp_min(MIN_CURVATURE)
            covariance = vectors / values @ vectors.mT
            # contiguous, as a file stores it, so that a loaded posterior predicts the same bits
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
        if not decides:  # then the maximum of the evidence only starts the search for the prior scale
            return
        if not optimum.converged:
            trace.stop(
                "the search for the maximum of the evidence did not converge; its best point was kept: give a prior scale, e.g. "
                "priors.Normal(scale=1.0), or features in double precision"
            )
        for index in range(evidence.settings.num_learned):
            if bool(optimum.at_lower[index]):
                trace.notes.append(
                    "the evidence is highest at the smallest prior scale: in these rows the features explain nothing of the "
                    "targets"
                )
            elif bool(optimum.at_upper[index]):
                trace.stop(
                    "the evidence increases without bound in the prior scale: check the targets, or give a scale: "
                    "priors.Normal(scale=1.0)"
                )


def cast(weights: gaussian.WeightGaussian, like: Tensor) -> gaussian.WeightGaussian:
    """The same Gaussian in the dtype and on the device of a tensor."""
    # LAPACK returns column-major matrices, files hold row-major ones: the same layout gives the same bits
    parts = {name: value.to(like).contiguous() for name, value in weights.tensors.items()}
    return replace(weights, **parts)


def as_dense(weights: gaussian.WeightGaussian) -> gaussian.WeightGaussian:
    """The same Gaussian as one covariance over all weights, the form that can be correlated with the global unknowns."""
    if not isinstance(weights, gaussian.BlockDiagonal):
        return weights
    num_outputs, num_columns = weights.loc.shape
    factor = torch.block_diag(*weights.tril)
    return gaussian.Dense(
        weights.loc, factor.view(num_outputs, num_columns, -1), factor.diagonal().log().sum()
    )
