"""The exact posterior with unknown noise: Gaussian given the noise, and a mixture over the noise of each target."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor

from bll_pyro.checks import count
from bll_pyro.gaussian import CentredDiagonal, OutputMixture, normal_points
from bll_pyro.inference.exact.linear_gaussian import LinearGaussian
from bll_pyro.inference.exact.noises import (
    Components,
    NoisePosterior,
    NoisePrior,
    NoiseTreatment,
    elementwise,
)
from bll_pyro.posterior import Draws, Posterior, may_reuse_memory
from bll_pyro.scope import generator, own_modes


@dataclass(frozen=True, eq=False)
class NoiseMixturePosterior(Posterior):
    """``p(W, b, s | y) = prod_t p(s_t | y) Normal(w_t, b_t | s_t, y)``, exact up to quadrature over s.

    Parameters
    ----------
    model
        Likelihood and prior in the frame of the fit, whose rotation are the eigenvectors of the features' covariance.
    noise_model
        How the noise is treated, which decides its prior.
    prior_scale
        Prior scale of the weights of each target.
    """

    model: LinearGaussian = field(kw_only=True)
    noise_model: NoiseTreatment = field(kw_only=True)
    prior_scale: Float[Tensor, " T"] = field(kw_only=True)

    @own_modes()
    def sample(self, num_draws: int = 1000, seed: int = 0) -> Draws:
        """Independent draws, one chain: the noise first, then the weights given it."""
        count(num_draws, "num_draws", "sample")
        random = generator(seed)
        uniform = torch.rand(num_draws, self.num_outputs, generator=random, dtype=torch.float64)
        noise = self.noise_posterior.quantile(uniform)
        weights = self.model.given(noise, self.prior_scale).rsample(1, random)
        weights = weights.view(num_draws, self.num_outputs, -1)
        values = self.frame.split(self._own(weights)) | self.global_sites.to_user(
            {"noise_scale": self._own(noise)}
        )
        return {name: value[None] for name, value in values.items()}

    @own_modes()
    def log_prob(self, draws: Draws) -> Float[Tensor, "chain draw"]:
        """Log density ``[chain, draw]`` of weight, bias and noise scale."""
        flat = {k: v.flatten(0, 1) for k, v in self.global_sites.from_user(draws).items()}
        weights = self.frame.join(flat["weight"], flat.get("bias")).double().cpu()
        noise = flat["noise_scale"].double().cpu()
        given = self.model.given(noise, self.prior_scale)
        values = weights.flatten(0, 1)
        if isinstance(given, CentredDiagonal):
            log_weights = given.log_prob_by_output(values)
        else:
            log_weights = torch.distributions.Normal(given.loc, given.scale).log_prob(values).sum(-1)
        log_noise = (
            self.noise_prior.distribution.log_prob(noise)
            + self.model.log_evidence(noise, self.prior_scale)
            - self.components.log_evidence(self.model, self.prior_scale)
        )
        return (log_weights.view_as(noise) + log_noise).sum(-1).view(draws["weight"].shape[:2])

    @own_modes()
    def log_prior(self, draws: Draws) -> Draws:
        """Log prior density ``[chain, draw]`` of each site at draws, under the model that was used.

        With ``noises.Conjugate`` it differs from the declared prior: prior scales are multiples of the noise scale, and
        the noise has the conjugate prior.
        """
        internal = {name: value.double().cpu() for name, value in self.global_sites.from_user(draws).items()}
        noise = internal["noise_scale"]
        factor = noise if self.model.relative else torch.ones_like(noise)
        scale = (self.prior_scale * factor)[..., None]
        loc = (
            self.model.loc
            if self.frame.rotation is None
            else self.model.loc @ self.frame.rotation.double().cpu().mT
        )
        parts = {
            "weight": torch.distributions.Normal(loc, scale).log_prob(internal["weight"]).sum((-2, -1)),
            "noise_scale": self.noise_prior.distribution.log_prob(noise).sum(-1),
        }
        if self.frame.bias:
            bias = torch.distributions.Normal(0.0, self.model.bias_scale * factor)
            parts["bias"] = bias.log_prob(internal["bias"]).sum(-1)
        return parts

    def outputs(self, features: Float[Tensor, "N D"]) -> OutputMixture:
        """Outputs given the noise in closed form, one component for each of its values."""
        design = self.frame.design(features, reuse_memory=may_reuse_memory())
        given = self._component_weights.outputs(design)
        assert given.scale is not None
        shares, noise = self._shares_and_noise
        shape = (len(noise), self.num_outputs, design.shape[0])
        loc, scale = (value.mT.reshape(shape).mT for value in (given.loc, given.scale))
        return OutputMixture(shares, loc, scale, noise)

    def constants(self) -> dict[str, Any]:
        """The components, which are found once."""
        return {
            "frame": self.frame,
            "_component_weights": self._component_weights,
            "_shares_and_noise": self._shares_and_noise,
        }

    def at(self, constants: dict[str, Any]) -> Self:
        """The components take the place of those that would be computed."""
        found = replace(self, frame=constants["frame"])
        found.__dict__.update({name: value for name, value in constants.items() if name != "frame"})
        return found

    def noise(self, num_draws: int, seed: int = 0) -> Draws:
        """Quasi-random draws of the noise scale, equally weighted."""
        uniform = torch.special.ndtr(normal_points(num_draws, self.num_outputs, seed).double())
        return {"noise_scale": self._own(self.noise_posterior.quantile(uniform))}

    @cached_property
    def noise_prior(self) -> NoisePrior:
        """Prior of one target's noise scale."""
        declared = elementwise(self.layer.likelihood.sites(self.target_shape)["noise_scale"])
        assert declared is not None  # checked before the fit
        return self.noise_model.prior(declared)

    @cached_property
    def components(self) -> Components:
        """Values of the noise that represent its posterior: the nodes of the quadrature."""
        return self.noise_model.components(self.model, self.prior_scale, self.noise_prior)

    @cached_property
    def noise_posterior(self) -> NoisePosterior:
        """Density of the noise scale."""
        return NoisePosterior.of(self.model, self.prior_scale, self.noise_prior, self.components)

    @cached_property
    def _shares_and_noise(self) -> tuple[Float[Tensor, "M T"], Float[Tensor, "M T"]]:
        """Weights of the components, and their noise."""
        shares = self.components.weights(self.model, self.prior_scale)
        return self._own(shares), self._own(self.components.noise)

    @cached_property
    def _component_weights(self) -> Any:
        """Gaussian of the weights for each component, in the frame's precision; components are further outputs."""
        given = self.model.given(self.components.noise, self.prior_scale)
        return type(given)(**{name: self._own(value) for name, value in given.tensors.items()})

    def _own(self, value: Tensor) -> Tensor:
        return value.to(self.frame.center)
