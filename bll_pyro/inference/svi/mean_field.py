"""The default training step with gradients in closed form: Diagonal guide, Normal prior, any likelihood.

On frozen features it leaves the gradients in the parameters; where a backbone is trained along it gives those in the features too.
Objective and gradients are those of :mod:`bll_pyro.inference.svi.output_space` (tests compare them). Only the likelihood,
on arrays of size B x K, uses automatic differentiation, unless it gives its own gradient (``Likelihood.slope``). All
operations on arrays of the size of the weights, which take most of the time of a wide layer, are in closed form and in
place. With ``V = s^2`` and all gradients of ``-ELBO / N``:

======================================= ==========================================================
on paper                                in code
======================================= ==========================================================
``d/dW  = g_mean' H + W / (N tau^2)``   ``mm`` into the gradient, ``addcmul_``
``2 d/dV = g' H^2 + 1 / (N tau^2)``     ``mm`` into the gradient, ``add_``; ``g = g_spread / spread``
``d/ds  = s 2 d/dV - 1 / (N s)``        ``mul_``, ``add_``; the last term is the entropy's
``d/dr  = d/ds sigmoid(r)``             ``softplus_backward``: ``s = softplus(r)``, Pyro's positive scale
======================================= ==========================================================
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from bll_pyro.gaussian import OutputGaussian
from bll_pyro.gaussian.weights import LOG_TWO_PI
from bll_pyro.guides.diagonal import DiagonalGuide
from bll_pyro.inference.row_targets import Targets, expected_log_prob
from bll_pyro.layer import LastLayer
from bll_pyro.model import GlobalSites
from bll_pyro.priors import Normal
from bll_pyro.ranks import row_normals, rows_counted


class MeanFieldStep:
    """ELBO estimate from a batch, with the gradients of ``-ELBO / N`` left in ``guide.parameters()``."""

    def __init__(self, guide: DiagonalGuide, layer: LastLayer, sites: GlobalSites, num_rows: int) -> None:
        self.guide, self.layer, self.global_sites, self.num_rows = guide, layer, sites, num_rows
        self.loc, self.raw = guide.loc, guide.scale_unconstrained
        for parameter in (self.loc, self.raw):
            parameter.grad = torch.zeros_like(parameter)
        self.learned: dict[str, Tensor] = {}
        self._held = False

    def hold(self, learned: dict[str, Tensor]) -> None:
        """Fix the learned prior scale at this value."""
        self.learned, self._held = learned, True

    @staticmethod
    def applies(guide: object, layer: LastLayer, sites: GlobalSites) -> bool:
        """Whether the closed form holds for this guide and layer."""
        prior = layer.prior
        is_plain = (
            type(prior) is Normal
            and prior.loc is None
            and not prior.per_output
            and not layer.prior.hyper((1, 1))
            and layer.bias_loc is None
        )
        return type(guide) is DiagonalGuide and is_plain and not sites.hyper_names

    def parts(self, vector: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Views of u ``[U]``, weight ``[K, D]`` and bias ``[K]`` (or nothing) in a latent vector."""
        num_outputs, num_features, num_globals = (
            self.guide.num_outputs,
            self.guide.num_features,
            self.guide.num_globals,
        )
        end = num_globals + num_outputs * num_features
        return vector[:num_globals], vector[num_globals:end].view(num_outputs, num_features), vector[end:]

    def __call__(self, design: Tensor, targets: Targets, generator: torch.Generator | None) -> Tensor:
        """Set the gradients of ``-ELBO / N``; return the ELBO estimate in nats."""
        assert self.loc.grad is not None and self.raw.grad is not None
        gradients = self.loc.grad, self.raw.grad
        return self.evaluate(design, targets, generator, -1.0 / self.num_rows, *gradients)[0]

    def nats(self, design: Tensor, targets: Targets, generator: torch.Generator | None) -> Tensor:
        """ELBO estimate in nats, differentiable in the guide's parameters and in a design ``[B, P]`` that moves."""
        value: Tensor = DifferentiableELBO.apply(design, self.loc, self.raw, self, targets, generator)
        return value

    @torch.no_grad()
    def evaluate(
        self,
        design: Tensor,
        targets: Targets,
        generator: torch.Generator | None,
        per_row: float,
        loc_grad: Tensor,
        raw_grad: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """ELBO estimate in nats, ``g_mean`` and ``g`` of ``per_row`` times it, whose gradients the last two arguments get."""
        features = design[:, : self.guide.num_features]
        squares = features.square()
        scale = functional.softplus(self.raw)
        u, weight, bias = self.parts(self.loc)
        u_scale, weight_scale, bias_scale = self.parts(scale)
        weight_variance = weight_scale.square()
        if len(bias):
            mean = torch.addmm(bias, features, weight.mT)
            variance = torch.addmm(bias_scale.square(), squares, weight_variance.mT)
        else:
            mean, variance = features @ weight.mT, squares @ weight_variance.mT
        spread = variance.clamp_min_(torch.finfo(variance.dtype).tiny).sqrt_()
        value, gradients = self._likelihood(mean, spread, u, u_scale, targets, generator)

        second_moment = torch.dot(weight.reshape(-1), weight.reshape(-1)) + weight_variance.sum()
        tau = self._tau(second_moment, weight.numel())
        bias_precision = self.layer.bias_scale**-2
        value -= 0.5 * second_moment / tau**2 + weight.numel() * (tau.log() + 0.5 * LOG_TWO_PI)
        value += scale[len(u) :].log().sum() + 0.5 * (weight.numel() + len(bias)) * (1 + LOG_TWO_PI)
        if len(bias):
            moment = (bias.square() + bias_scale.square()).sum()
            value -= 0.5 * moment * bias_precision + len(bias) * (
                math.log(self.layer.bias_scale) + 0.5 * LOG_TWO_PI
            )

        # scaled here, at size B x K, to save a pass over arrays of the size of the weights
        g_mean, g_spread, g_u, g_u_raw = gradients
        g_mean, g_variance = g_mean.mul_(per_row), g_spread.div_(spread).mul_(per_row)
        u_grad, weight_grad, bias_grad = self.parts(loc_grad)
        u_raw_grad, weight_raw_grad, bias_raw_grad = self.parts(raw_grad)
        precision = tau.pow(-2)
        torch.mm(g_mean.mT, features, out=weight_grad)
        weight_grad.addcmul_(weight, precision, value=-per_row)
        torch.mm(g_variance.mT, squares, out=weight_raw_grad)
        weight_raw_grad.sub_(precision, alpha=per_row)
        if len(bias):
            torch.sum(g_mean, 0, out=bias_grad)
            bias_grad.sub_(bias, alpha=per_row * bias_precision)
            torch.sum(g_variance, 0, out=bias_raw_grad)
            bias_raw_grad.sub_(per_row * bias_precision)
        weights_grad, weights_scale = raw_grad[len(u) :], scale[len(u) :]
        weights_grad.mul_(weights_scale).add_(weights_scale.reciprocal(), alpha=per_row)
        # Pyro's constraint is torch's softplus with its default threshold of 20
        torch.ops.aten.softplus_backward(weights_grad, self.raw[len(u) :], 1.0, 20.0, grad_input=weights_grad)
        if len(u):
            u_grad.copy_(g_u * per_row)
            u_raw_grad.copy_(g_u_raw * per_row)
        return value, g_mean, g_variance

    def _likelihood(
        self,
        mean: Tensor,
        spread: Tensor,
        u: Tensor,
        u_scale: Tensor,
        targets: Targets,
        generator: torch.Generator | None,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Likelihood scaled to all rows plus the noise terms, in nats, and gradients in mean, spread, u and raw u scale."""
        likelihood, counted = self.layer.likelihood, rows_counted(len(mean), generator)
        if likelihood.has_slope and not len(u) and isinstance(targets, Tensor):
            noise = row_normals(len(mean), mean.shape[1], mean, generator)
            deviation = spread * noise
            # the antithetic pair of Likelihood.expected_log_prob
            pair = torch.stack([mean + deviation, mean - deviation])
            log_probs, gradients_of_pair = likelihood.slope(pair, targets)
            factor = 0.5 * self.num_rows / counted
            plus, minus = gradients_of_pair.mul_(factor)
            return log_probs.sum() * factor, (plus + minus, (plus - minus).mul_(noise), u, u)
        with torch.enable_grad():
            leaves = [mean.requires_grad_(), spread.requires_grad_()]
            values: dict[str, Tensor] = {}
            total = mean.new_zeros(())
            if len(u):
                location, raw = u.detach().requires_grad_(), self.raw[: len(u)].detach().requires_grad_()
                leaves += [location, raw]
                noise_scale = functional.softplus(raw)
                noise = torch.randn(len(u), dtype=u.dtype, device=u.device, generator=generator)
                values, log_prior, log_jacobian = self.global_sites.constrain(location + noise_scale * noise)
                total = log_prior + log_jacobian + noise_scale.log().sum() + 0.5 * len(u) * (1 + LOG_TWO_PI)
            outputs = OutputGaussian(mean, spread)
            rows = expected_log_prob(
                self.layer.likelihood, outputs, targets, generator, self.global_sites.noise(values)
            )
            total = total + rows.sum() * (self.num_rows / counted)
            gradients = torch.autograd.grad(total, leaves)
        mean.requires_grad_(False)
        spread.requires_grad_(False)
        return total.detach(), (*gradients, *([u, u] if not len(u) else []))

    def _tau(self, second_moment: Tensor, num_weights: int) -> Tensor:
        prior = self.layer.prior
        assert isinstance(prior, Normal)
        if prior.scale is not None:
            return torch.full_like(second_moment, prior.scale)
        if self._held:
            return self.learned["tau"]
        self.learned = {
            "tau": (second_moment / num_weights).clamp_min(torch.finfo(second_moment.dtype).tiny).sqrt()
        }
        return self.learned["tau"]


class DifferentiableELBO(torch.autograd.Function):
    """The ELBO of :class:`MeanFieldStep` as a number to differentiate, once: all gradients are found along with it.

    With the outputs' means and variances ``H W'`` and ``H^2 V'``, that in the design is ``g_mean W + H (g V)``, ``g`` as above.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        design: Tensor,
        loc: Tensor,
        raw: Tensor,
        step: MeanFieldStep,
        targets: Targets,
        generator: torch.Generator | None,
    ) -> Tensor:
        loc_grad, raw_grad = torch.empty_like(loc), torch.empty_like(raw)
        value, g_mean, g = step.evaluate(design, targets, generator, 1.0, loc_grad, raw_grad)
        weights, scale = (step.guide.matrix(one)[1] for one in (loc, functional.softplus(raw)))
        design_grad = torch.addcmul(g_mean @ weights, design, g @ scale.square())
        ctx.save_for_backward(design_grad, loc_grad, raw_grad)
        return value

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, slope: Tensor) -> Any:  # type: ignore[override]
        return *(slope * gradient for gradient in ctx.saved_tensors), None, None, None
