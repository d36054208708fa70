"""Laplace's approximation of the log evidence, and its exact gradient in noise and hyper-parameters.

With psi = (log of the learned hyper-parameters, unconstrained noise and sampled hyper-parameters u) and the mode
``A(psi)`` of the weights, where the precision is ``P(A, psi)``:

``F(psi) = log p(y | A, psi) + log p(A | psi) + log p(u) + K P / 2 log 2 pi - log |P| / 2``

The mode depends on psi. Because the mode is a stationary point, this adds nothing to the gradient of the first terms,
but it does to that of log |P| (Rasmussen and Williams 2006, 5.5.1): ``dA = P^-1 d(gradient)``, by one more solution by
conjugate gradients.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from bll_pyro.curvatures import Curvature, Precision
from bll_pyro.curvatures.base import Sums
from bll_pyro.gaussian.weights import LOG_TWO_PI
from bll_pyro.inference.laplace.mode import Mode, conjugate_gradients, find_mode
from bll_pyro.inference.laplace.preconditioner import preconditioners
from bll_pyro.inference.laplace.prior_terms import PriorTerms
from bll_pyro.inference.row_likelihood import RowLikelihood
from bll_pyro.inference.row_targets import NoiseValues, information, log_prob
from bll_pyro.inference.rows import DesignRows
from bll_pyro.inference.start import first_weights, median_sites
from bll_pyro.layer import LastLayer
from bll_pyro.likelihoods.base import TargetShape
from bll_pyro.model import GlobalSites

NUM_FIRST_ROWS = 16_384  # rows on which the first mode of a larger data set is searched
FIRST_TOLERANCE = 0.5  # distance from that mode, in posterior standard deviations
IMPLICIT_ACCURACY = 1e-3  # relative residual of conjugate gradients in the derivative of the mode
SAME = 1e-4  # relative difference of products up to which information and Hessian are taken as equal


class HyperVector:
    """The vector psi ``[M]`` of all unknowns but weights: logs of learned hyper-parameters, then the global unknowns u."""

    def __init__(self, layer: LastLayer, weight_shape: tuple[int, int], target_shape: TargetShape) -> None:
        self.global_sites = GlobalSites(layer, weight_shape, target_shape)
        self.initial = layer.prior.learned_start(weight_shape)

    @property
    def num_learned(self) -> int:
        """Number of learned hyper-parameters, the first elements of psi."""
        return sum(value.numel() for value in self.initial.values())

    @property
    def of_prior(self) -> list[int]:
        """Indices of the prior's elements: learned and sampled hyper-parameters."""
        first_sampled = self.num_learned + self.global_sites.num_noise
        return [*range(self.num_learned), *range(first_sampled, self.num_learned + self.global_sites.num)]

    def start(self, like: Tensor) -> Tensor:
        """Initial psi: learned hyper-parameters at the prior's initial values, u at the median of its prior."""
        learned = [value.to(like).log().flatten() for value in self.initial.values()]
        return torch.cat([*learned, median_sites(self.global_sites, like)])

    def learned(self, psi: Tensor) -> dict[str, Tensor]:
        """Values of the learned hyper-parameters."""
        parts = psi[: self.num_learned].split([value.numel() for value in self.initial.values()])
        return {
            name: part.exp().view(value.shape) for (name, value), part in zip(self.initial.items(), parts)
        }

    def values(self, psi: Tensor) -> tuple[dict[str, Tensor], NoiseValues, Tensor]:
        """Hyper-parameters, noise, and ``log p(u)`` with the log Jacobian of the transforms, in nats."""
        values, log_prior, log_jacobian = self.global_sites.constrain(psi[self.num_learned :])
        hyper = self.learned(psi) | self.global_sites.hyper(values)
        return hyper, self.global_sites.noise(values), log_prior + log_jacobian


@dataclass(frozen=True, eq=False)
class LaplaceAt:
    """Laplace's approximation at one psi.

    Parameters
    ----------
    psi
        The point, ``[M]``.
    mode
        Mode of the weights.
    curvature, sums
        Structure of the precision, and the rows' sums in this structure.
    log_globals
        ``log p(u)``, nats.
    """

    psi: Tensor
    mode: Mode
    curvature: Curvature
    sums: Sums
    log_globals: float

    @cached_property
    def precision(self) -> Precision:
        """Precision of the weights."""
        return self.curvature.precision(self.sums, self.mode.prior.precision)

    @property
    def log_evidence(self) -> float:
        """``F(psi)``, nats."""
        constant = 0.5 * self.mode.weights.numel() * LOG_TWO_PI
        return self.mode.log_joint + self.log_globals + constant - 0.5 * float(self.precision.log_det)


class LaplaceEvidence:
    """The log evidence of a layer on some rows, as a function of psi."""

    def __init__(
        self,
        layer: LastLayer,
        rows: DesignRows,
        target_shape: TargetShape,
        curvature: Curvature,
        tolerance: float,
        max_steps: int,
    ) -> None:
        self.layer, self.rows, self.target_shape, self.curvature = layer, rows, target_shape, curvature
        self.tolerance, self.max_steps = tolerance, max_steps
        num_outputs = layer.likelihood.num_outputs(target_shape)
        self.weight_shape = (num_outputs, rows.frame.num_features)
        self.settings = HyperVector(layer, self.weight_shape, target_shape)
        self.like = torch.zeros(num_outputs, rows.num_columns, dtype=torch.float64, device=rows.device)
        self.function = RowLikelihood(layer.likelihood, rows)
        self._kind = preconditioners(self.function, num_outputs)
        self._is_hessian: bool | None = None

    def fit_at(self, psi: Tensor, start: Tensor | None = None, tolerance: float | None = None) -> LaplaceAt:
        """Mode and precision at ``psi``, by a search from weights ``start [K, P]``.

        Without ``start`` the search begins at :func:`first_weights`, on a part of the rows if they are many.
        """
        hyper, noise, log_globals = self.settings.values(psi)
        prior = PriorTerms.of(self.layer, self.weight_shape, hyper, self.like)
        if start is None:
            start = self._first(prior, noise)
        mode = find_mode(
            self.function, prior, noise, start, self._kind, tolerance or self.tolerance, self.max_steps
        )
        num_outputs, num_columns = self.like.shape
        sums = self.curvature.zeros(
            num_outputs, num_columns, self.layer.likelihood.independent_outputs, self.like
        )
        for design, row_information in mode.rows.informed():
            self.curvature.add(sums, design, row_information)
        sums = self.rows.ranks.sums(*sums)
        return LaplaceAt(psi, mode, self.curvature, self.curvature.finished(sums), float(log_globals))

    def _first(self, prior: PriorTerms, noise: NoiseValues) -> Tensor:
        start = self._first_weights(prior)
        if self.rows.num_rows < 2 * NUM_FIRST_ROWS:
            return start
        part = self.rows.subset(NUM_FIRST_ROWS)
        function = RowLikelihood(self.layer.likelihood, part, self.rows.num_rows / part.num_rows)
        kind = preconditioners(function, len(start))
        return find_mode(function, prior, noise, start, kind, FIRST_TOLERANCE, self.max_steps).weights

    def _first_weights(self, prior: PriorTerms) -> Tensor:
        """The prior's centre, or for priors that leave the bias to the layer :func:`first_weights`."""
        if self.layer.prior.covers_bias:
            return prior.loc.clone()
        return first_weights(self.layer, self.rows, len(self.like)).to(self.like)

    def likelier(self, psi: Tensor, weights: Tensor) -> Tensor:
        """``weights``, or those where a search begins if their joint density at ``psi`` is higher.

        The mode under a much wider prior is a bad start: where it predicts rows with near certainty the curvature is
        nearly 0, and Newton steps are far too long.
        """
        hyper, noise, _ = self.settings.values(psi)
        prior = PriorTerms.of(self.layer, self.weight_shape, hyper, self.like)

        def log_joint(candidate: Tensor) -> float:
            return self.function.at(candidate, noise).value + float(prior.log_prob(candidate))

        return max((weights, self._first_weights(prior)), key=log_joint)

    def rounding(self, at: LaplaceAt) -> float:
        """Rounding error of the log evidence, in nats, from the dtype of the rows."""
        return 4 * torch.finfo(self.rows.frame.center.dtype).eps * (1 + abs(at.mode.rows.value))

    def gradient(self, at: LaplaceAt) -> Tensor:
        """Gradient of the log evidence in psi, ``[M]``."""
        psi = at.psi.detach().requires_grad_()
        with torch.enable_grad():
            hyper, noise, log_globals = self.settings.values(psi)
            prior = PriorTerms.of(self.layer, self.weight_shape, hyper, self.like)
            sums = tuple(total.detach().requires_grad_() for total in at.sums)
            log_det = self.curvature.precision(sums, prior.precision).log_det
            weights = at.mode.weights
            without_rows = log_globals + prior.log_prob(weights) - 0.5 * log_det
            total, *of_sums = torch.autograd.grad(
                without_rows, (psi, *sums), retain_graph=True, materialize_grads=True
            )
            of_weights, of_noise = self._through_rows(at, tuple(of_sums))
            if bool((of_weights != 0).any()):
                step = self._solve(at, of_weights)
                through_prior = (step * prior.gradient(weights)).sum()
                if through_prior.requires_grad:  # it does not where the prior has no unknowns
                    total = total + grad(through_prior, psi)
                for name, value in self._mode_in_noise(at, step).items():
                    of_noise[name] = of_noise[name] + value
            if noise:
                through_noise = torch.stack(
                    [(value * of_noise[name].to(value)).sum() for name, value in noise.items()]
                )
                total = total + torch.autograd.grad(through_noise.sum(), psi)[0]
        return total

    def _through_rows(self, at: LaplaceAt, of_sums: Sums) -> tuple[Tensor, dict[str, Tensor]]:
        """Gradients of the rows' terms of F, given those in the sums: in the weights ``[K, P]``, and in the noise."""
        of_weights, rows = torch.zeros_like(self.like), at.mode.rows
        of_noise = {name: torch.zeros_like(value, dtype=torch.float64) for name, value in rows.noise.items()}
        flat = tuple(gradient.to(self.rows.frame.center) for gradient in of_sums)
        for design, targets, outputs in rows.blocks():
            point = outputs.detach().requires_grad_()
            noise = {name: value.detach().requires_grad_() for name, value in rows.noise.items()}
            row_information = information(self.layer.likelihood, point, targets, noise)
            value = self.curvature.contract(flat, design, row_information)
            if noise:
                value = value + log_prob(self.layer.likelihood, outputs, targets, noise).sum()
            if not value.requires_grad:  # the information does not depend on the outputs
                continue
            first, *others = torch.autograd.grad(
                value, (point, *noise.values()), allow_unused=True, materialize_grads=True
            )
            of_weights.add_(first.mT @ design)
            for name, other in zip(noise, others, strict=True):
                of_noise[name].add_(other)
        of_weights, *others = self.rows.ranks.sums(of_weights, *of_noise.values())
        return of_weights, dict(zip(of_noise, others, strict=True))

    def _solve(self, at: LaplaceAt, right: Tensor) -> Tensor:
        """``(-Hessian)^-1 right``: the change of the mode for a change ``right`` of the gradient."""
        mode = at.mode
        if self._is_hessian is None:
            # for most likelihoods the information equals the negative Hessian, and its products are several times faster
            exact, fast = mode.rows.hessian_times(right), mode.rows.times(right)
            self._is_hessian = bool((exact - fast).norm() <= SAME * fast.norm())
        times = mode.rows.times if self._is_hessian else mode.rows.hessian_times

        def product(vectors: Tensor) -> Tensor:
            return times(vectors) + mode.prior.times(vectors)

        return conjugate_gradients(
            product, right, mode.precondition, min(IMPLICIT_ACCURACY, self.tolerance**0.5)
        )

    def _mode_in_noise(self, at: LaplaceAt, step: Tensor) -> dict[str, Tensor]:
        """Gradient in the noise of ``step . d log p(y | A) / dA``."""
        rows = at.mode.rows
        total = {name: torch.zeros_like(value, dtype=torch.float64) for name, value in rows.noise.items()}
        if not total:
            return total
        for design, targets, outputs in rows.blocks():
            point = outputs.detach().requires_grad_()
            noise = {name: value.detach().requires_grad_() for name, value in rows.noise.items()}
            total_log_prob = log_prob(self.layer.likelihood, point, targets, noise).sum()
            (gradient,) = torch.autograd.grad(total_log_prob, point, create_graph=True)
            along = (gradient * (design @ step.to(design).mT)).sum()
            for name, part in zip(noise, torch.autograd.grad(along, tuple(noise.values())), strict=True):
                total[name].add_(part)
        return dict(zip(total, self.rows.ranks.sums(*total.values()), strict=True))


def grad(value: Tensor, argument: Tensor) -> Tensor:
    """Gradient of a scalar, 0 if it does not depend on the argument; the graph is kept."""
    return torch.autograd.grad(value, argument, retain_graph=True, allow_unused=True, materialize_grads=True)[
        0
    ]
