"""Noise and hyper-parameters at the maximum of Laplace's evidence, and the curvature of the evidence at the maximum."""

from __future__ import annotations

import torch
from torch import Tensor

from bll_pyro.inference.laplace.evidence import LaplaceAt, LaplaceEvidence
from bll_pyro.inference.laplace.prior_terms import PriorTerms
from bll_pyro.inference.laplace.quasi_newton import Optimum, quasi_newton_ascent
from bll_pyro.inference.laplace.surrogate import Surrogate
from bll_pyro.observation import stage

ROUGH_TOLERANCE = 0.3  # distance from the mode, in posterior standard deviations, for the surrogate
LEARNED_TOLERANCE = 0.2  # distance from the maximum, in standard deviations of the evidence as a density
GLOBALS_TOLERANCE = 1e-3  # the same where there are global unknowns
FAR = 1.0  # change of a log hyper-parameter after which the last mode may be a bad start
REACH = 12.0  # half-width of the search interval of each element of psi
DIFFERENCE = 0.02  # step of the central difference in u, in unconstrained units


def maximize_evidence(
    evidence: LaplaceEvidence, start: Tensor | None = None, weights: Tensor | None = None
) -> Optimum[LaplaceAt]:
    """Maximise the evidence from the priors' initial values.

    With ``start [M]``, and the mode ``weights [K, P]`` found there, learned scales stay fixed and the rest is maximised.
    """
    settings = evidence.settings
    psi = settings.start(evidence.like[0, 0]) if start is None else start
    reach = torch.full_like(psi, REACH)
    if start is not None:
        reach[: settings.num_learned] = 0.0
    bounds = psi - reach, psi + reach
    curvature = torch.eye(len(psi), dtype=psi.dtype, device=psi.device) * evidence.rows.total_weight
    free, found_at = settings.of_prior, psi
    if free and start is None:
        psi, block, weights = first_guess(evidence, psi, free, bounds)
        curvature[torch.tensor(free)[:, None], torch.tensor(free)] = block

    def evaluate(argument: Tensor) -> tuple[float, Tensor, LaplaceAt]:
        nonlocal weights, found_at
        if weights is not None and bool(((argument - found_at).abs() > FAR).any()):
            weights = evidence.likelier(argument, weights)
        at = evidence.fit_at(argument, weights)
        weights, found_at, value = at.mode.weights, argument, at.log_evidence
        if steps.observed:
            steps.advance(log_evidence=value - evidence.rows.log_scale)
        return value, evidence.gradient(at), at

    if not bool((bounds[0] < bounds[1]).any()):
        at = evidence.fit_at(psi, weights)
        return Optimum(psi, at, [at.log_evidence], [psi], 0.0, True, bounds)
    tolerance = GLOBALS_TOLERANCE if settings.global_sites.num else LEARNED_TOLERANCE
    with stage("evidence", num_rows=evidence.rows.num_rows) as steps:
        return quasi_newton_ascent(evaluate, psi, curvature, tolerance, bounds, evidence.rounding)


def first_guess(
    evidence: LaplaceEvidence, psi: Tensor, free: list[int], bounds: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Maximise the evidence of the quadratic approximation of the log likelihood at a rough mode.

    Returns psi ``[M]``, the curvature at psi in the ``free`` elements, and the rough mode ``[K, P]``.
    """
    at = evidence.fit_at(psi, tolerance=ROUGH_TOLERANCE)
    mode = at.mode
    linear = evidence.curvature.times(at.sums, mode.weights) + mode.rows.gradient

    def prior(psi: Tensor) -> tuple[PriorTerms, Tensor]:
        hyper, _, log_globals = evidence.settings.values(psi)
        return PriorTerms.of(evidence.layer, evidence.weight_shape, hyper, evidence.like), log_globals

    surrogate = Surrogate(evidence.curvature, at.sums, linear, prior)
    chosen = torch.zeros_like(at.psi)
    chosen[free] = 1.0

    def evaluate(psi: Tensor) -> tuple[float, Tensor, None]:
        value, gradient = surrogate.value_and_gradient(psi)
        return value, gradient * chosen, None

    block = surrogate.curvature_at(at.psi, free)
    first = torch.eye(len(at.psi), dtype=at.psi.dtype, device=at.psi.device)
    first[torch.tensor(free)[:, None], torch.tensor(free)] = block
    psi = quasi_newton_ascent(evaluate, at.psi, first, LEARNED_TOLERANCE, bounds).argument
    return psi, surrogate.curvature_at(psi, free), mode.weights


def globals_spread(evidence: LaplaceEvidence, at: LaplaceAt) -> tuple[Tensor, Tensor]:
    """Negative Hessian ``[U, U]`` of the evidence in u, and the mode's derivative ``dA / du [K, P, U]``, by differences."""
    num_learned = evidence.settings.num_learned
    num_globals = evidence.settings.global_sites.num
    rows, moves = [], []
    for index in range(num_learned, num_learned + num_globals):
        step = torch.zeros_like(at.psi)
        step[index] = DIFFERENCE
        ahead, behind = (evidence.fit_at(at.psi + sign * step, at.mode.weights) for sign in (1, -1))
        change = evidence.gradient(behind) - evidence.gradient(ahead)
        rows.append(change[num_learned:] / (2 * DIFFERENCE))
        moves.append((ahead.mode.weights - behind.mode.weights) / (2 * DIFFERENCE))
    hessian = torch.stack(rows)
    return (hessian + hessian.mT) / 2, torch.stack(moves, -1)
