"""The default training step with its gradients written out: Diagonal guide, Normal prior, any likelihood.

The objective is that of :mod:`bll_pyro.inference.objective`, and so are its gradients (tests compare them). Only the
likelihood, on arrays of size B x K, goes through automatic differentiation; everything of the size of the weights is
done in closed form and in place, which is where the time of a wide layer goes. With ``V = s^2``:

======================================= ==========================================================
on paper                                in code
======================================= ==========================================================
``d/dW  = g_mean' H - W / tau^2``       one ``addmm`` into the gradient
``d/dV  = g_var' H^2 - 1 / (2 tau^2)``  one ``addmm`` into the gradient
``d/ds  = 2 s d/dV + 1 / s``            the last term is the entropy's
``d/dr  = d/ds (1 - exp(-s))``          ``s = softplus(r)``, Pyro's positive scale
======================================= ==========================================================
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from bll_pyro.gaussian import OutputGaussian
from bll_pyro.guides.diagonal import DiagonalGuide
from bll_pyro.layer import LastLayer
from bll_pyro.model import Globals
from bll_pyro.priors import Normal

LOG_TWO_PI = math.log(2 * math.pi)


class MeanFieldStep:
    """Value and gradients of the ELBO a row from a batch; gradients are left in ``guide.parameters()``."""

    def __init__(self, guide: DiagonalGuide, layer: LastLayer, globals_: Globals, num_rows: int) -> None:
        self.guide, self.layer, self.globals, self.num_rows = guide, layer, globals_, num_rows
        self.loc, self.raw = guide.loc, guide.scale_unconstrained
        for parameter in (self.loc, self.raw):
            parameter.grad = torch.zeros_like(parameter)
        self.learned: dict[str, Tensor] = {}

    @staticmethod
    def applies(guide: object, layer: LastLayer, globals_: Globals) -> bool:
        """Whether this guide and layer have the form above."""
        prior = layer.prior
        plain = (
            type(prior) is Normal
            and prior.loc is None
            and not prior.per_output
            and not layer.prior.hyper((1, 1))
            and layer.bias_loc is None
        )
        return type(guide) is DiagonalGuide and plain and not globals_.hyper_names

    def parts(self, vector: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Views of u ``[U]``, weight ``[K, D]`` and bias ``[K]`` (or nothing) in a latent vector."""
        num_outputs, num_features, num_globals = (
            self.guide.num_outputs,
            self.guide.num_features,
            self.guide.num_globals,
        )
        end = num_globals + num_outputs * num_features
        return vector[:num_globals], vector[num_globals:end].view(num_outputs, num_features), vector[end:]

    @torch.no_grad()
    def __call__(self, design: Tensor, targets: Tensor, generator: torch.Generator | None) -> Tensor:
        """Set the gradients of ``-ELBO / N``; return the ELBO estimate in nats."""
        assert self.loc.grad is not None and self.raw.grad is not None
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
        value, gradients = self._likelihood(mean, spread, u, u_scale, len(design), targets, generator)

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

        g_mean, g_spread, g_u, g_u_raw = gradients
        g_variance = g_spread.div_(spread).mul_(0.5)
        per_row = -1.0 / self.num_rows
        u_grad, weight_grad, bias_grad = self.parts(self.loc.grad)
        u_raw_grad, weight_raw_grad, bias_raw_grad = self.parts(self.raw.grad)
        precision = tau.pow(-2)
        torch.mm(g_mean.mT, features, out=weight_grad)
        weight_grad.sub_(weight * precision).mul_(per_row)
        torch.mm(g_variance.mT, squares, out=weight_raw_grad)
        weight_raw_grad.sub_(0.5 * precision)
        bias_grad.copy_(g_mean.sum(0) - bias * bias_precision).mul_(per_row) if len(bias) else None
        bias_raw_grad.copy_(g_variance.sum(0) - 0.5 * bias_precision) if len(bias) else None
        # d/ds = 2 s d/dV + 1/s, then the slope of softplus, 1 - exp(-s)
        inner = self.raw.grad[len(u) :]
        outer = scale[len(u) :]
        inner.mul_(outer).mul_(2.0).add_(outer.reciprocal()).mul_(torch.expm1(-outer)).mul_(-per_row)
        if len(u):
            u_grad.copy_(g_u * per_row)
            u_raw_grad.copy_(g_u_raw * per_row)
        return value

    def _likelihood(
        self,
        mean: Tensor,
        spread: Tensor,
        u: Tensor,
        u_scale: Tensor,
        batch_size: int,
        targets: Tensor,
        generator: torch.Generator | None,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Likelihood (scaled to all rows) and the terms of the noise, with gradients in outputs and noise."""
        with torch.enable_grad():
            leaves = [mean.requires_grad_(), spread.requires_grad_()]
            values: dict[str, Tensor] = {}
            total = mean.new_zeros(())
            if len(u):
                location, raw = u.detach().requires_grad_(), self.raw[: len(u)].detach().requires_grad_()
                leaves += [location, raw]
                noise_scale = functional.softplus(raw)
                noise = torch.randn(len(u), dtype=u.dtype, device=u.device, generator=generator)
                values, log_prior, log_jacobian = self.globals.constrain(location + noise_scale * noise)
                total = log_prior + log_jacobian + noise_scale.log().sum() + 0.5 * len(u) * (1 + LOG_TWO_PI)
            outputs = OutputGaussian(mean, spread)
            fit = self.layer.likelihood.expected_log_prob(
                outputs, targets, generator, **self.globals.noise(values)
            )
            total = total + fit.sum() * (self.num_rows / batch_size)
            gradients = torch.autograd.grad(total, leaves)
        mean.requires_grad_(False)
        spread.requires_grad_(False)
        return total.detach(), (*gradients, *([u, u] if not len(u) else []))

    def _tau(self, second_moment: Tensor, num_weights: int) -> Tensor:
        prior = self.layer.prior
        assert isinstance(prior, Normal)
        if prior.scale is not None:
            return torch.full_like(second_moment, prior.scale)
        self.learned = {
            "tau": (second_moment / num_weights).clamp_min(torch.finfo(second_moment.dtype).tiny).sqrt()
        }
        return self.learned["tau"]
