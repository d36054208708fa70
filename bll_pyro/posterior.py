"""What a posterior can do: draws of the weights for inspection, outputs for prediction."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from numbers import Integral
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor

from bll_pyro.checks import count, message
from bll_pyro.frame import Frame
from bll_pyro.gaussian import (
    Delta,
    LatentGaussian,
    OutputCoupled,
    OutputDraws,
    OutputGaussian,
    Outputs,
    WeightGaussian,
    noise_points,
)
from bll_pyro.layer import LastLayer
from bll_pyro.likelihoods.base import TargetShape
from bll_pyro.model import GlobalSites
from bll_pyro.priors import Posterior as PosteriorPrior
from bll_pyro.scope import generator, own_modes
from bll_pyro.summary import Summary

Draws = dict[str, Tensor]


def may_reuse_memory() -> bool:
    """Whether the design matrix may lie in memory that the next call overwrites: not for gradients, and not in a graph."""
    return not torch.is_grad_enabled() and not torch.compiler.is_compiling()


@dataclass(frozen=True, eq=False)
class Posterior(Summary, ABC):
    """Posterior of a last layer, on the scale of the standardised features and targets.

    Parameters
    ----------
    layer
        The declaration, in the units of the frame (known noise is divided by the targets' scale).
    frame
        Constants of the training set.
    target_shape
        Shape of one row's target.
    num_outputs
        Number of outputs K.
    learned
        Values of the hyper-parameters that were learned and have no distribution (``tau``).
    """

    layer: LastLayer
    frame: Frame
    target_shape: TargetShape
    num_outputs: int
    learned: dict[str, Tensor] = field(default_factory=dict)

    @property
    def global_sites(self) -> GlobalSites:
        """Noise and hyper-parameters; made once for each default dtype of torch, which their constants have."""
        kept: dict[torch.dtype, GlobalSites] = self.__dict__.setdefault("_global_sites", {})
        dtype = torch.get_default_dtype()
        if dtype not in kept:
            with torch.inference_mode(False):  # what is kept must serve later calls that need gradients
                shape = (self.num_outputs, self.frame.num_features)
                kept[dtype] = GlobalSites(self.layer, shape, self.target_shape)
        return kept[dtype]

    @property
    def independent_draws(self) -> bool:
        """Whether draws are independent (then R-hat and ESS say nothing)."""
        return True

    @abstractmethod
    def sample(self, num_draws: int = 1000, seed: int = 0) -> Draws:
        """Draw all sites: ``{site: [chain, draw, *event]}``. The caller's random state is left alone."""

    @abstractmethod
    def log_prob(self, draws: Draws) -> Float[Tensor, "chain draw"]:
        """Log density ``[chain, draw]`` of draws of all sites, in the sites' own (constrained) space, in nats."""

    @abstractmethod
    def outputs(self, features: Float[Tensor, "N D"]) -> Outputs:
        """Distribution of the outputs ``f = W h + b`` for features ``[N, D]`` (targets' standardised scale)."""

    @abstractmethod
    def noise(self, num_draws: int, seed: int = 0) -> Draws:
        """Draws of the likelihood's noise parameters, ``{site: [S, *event]}``; empty where there are none."""

    def constants(self) -> dict[str, Any]:
        """What the outputs are made of: the tensors of a graph. :meth:`at` puts them, or others of their kind, back."""
        return {"frame": self.frame}

    def at(self, constants: dict[str, Any]) -> Self:
        """The same posterior for its outputs alone, with given :meth:`constants`."""
        return replace(self, **constants)

    @own_modes()
    def as_prior(self) -> PosteriorPrior:
        """Turn this posterior of weight and bias into the prior of the next fit, with its coordinates."""
        raise TypeError(
            f"as_prior: expected a Gaussian posterior, got {type(self).__name__}; fit with SVI and a Gaussian guide, "
            "Laplace, or Exact with known noise (or noises.Maximized()); to add rows to Exact use fit.update(...)"
        )

    @own_modes()
    def draw_outputs(self, draws: Draws, features: Float[Tensor, "N D"]) -> Float[Tensor, "S N K"]:
        """Outputs ``[S, N, K]`` of given draws (chains joined) for features ``[N, D]``."""
        standardized = self.frame.standardized(features)
        weight = draws["weight"].flatten(0, 1).to(standardized)
        outputs = standardized @ weight.mT
        return outputs + draws["bias"].flatten(0, 1).to(standardized)[:, None] if self.layer.bias else outputs

    def __getstate__(self) -> dict[str, Any]:
        """The fields alone: copies and pickles leave out what was kept for later calls."""
        return {part.name: getattr(self, part.name) for part in fields(self)}


@dataclass(frozen=True, eq=False)
class GaussianPosterior(Posterior):
    """A posterior whose weights and unconstrained global unknowns are Gaussian, and so its outputs.

    Parameters
    ----------
    latents
        The Gaussian, in the coordinates of the frame.
    """

    latents: LatentGaussian = field(kw_only=True)

    @own_modes()
    def sample(self, num_draws: int = 1000, seed: int = 0) -> Draws:
        """Independent draws, one chain."""
        if not isinstance(num_draws, Integral) or num_draws < 1:
            raise ValueError(message("num_draws", "sample", "a whole number >= 1", num_draws))
        random = generator(seed, self.latents.globals_loc.device)
        u, weights = self.latents.rsample(num_draws, random)
        values = self.frame.split(weights)
        if self.latents.num_globals:
            values |= self.global_sites.to_user(self.global_sites.constrain(u)[0])
        return {name: value[None] for name, value in values.items()}

    @own_modes()
    def log_prob(self, draws: Draws) -> Float[Tensor, "chain draw"]:
        """Log density ``[chain, draw]``. The rotation to principal axes keeps volumes, so it needs no correction."""
        if isinstance(self.latents.weights, Delta):
            raise ValueError(
                "a point estimate (MAP) has no density; fit a guide with a covariance, e.g. Diagonal()"
            )
        flat = {k: v.flatten(0, 1) for k, v in self.global_sites.from_user(draws).items()}
        weights = self.frame.join(flat["weight"], flat.get("bias"))
        u, log_jacobian = weights.new_zeros(len(weights), 0), weights.new_zeros(len(weights))
        if self.latents.num_globals:
            u = self.global_sites.unconstrain(flat)
            log_jacobian = self.global_sites.constrain(u)[2]
        return (self.latents.log_prob(u, weights) - log_jacobian).view(draws["weight"].shape[:2])

    def outputs(self, features: Float[Tensor, "N D"]) -> OutputGaussian | OutputCoupled:
        """Gaussian outputs in closed form; given the noise where posterior and likelihood make them depend on it."""
        design = self.frame.design(features, reuse_memory=may_reuse_memory())
        if self.latents.coupling is None or not self.layer.likelihood.noise_moves_outputs:
            return self._marginal.outputs(design)
        latents = self.latents.first(self.global_sites.num_noise)
        assert latents.coupling is not None
        return OutputCoupled(
            latents.weights.outputs(design), torch.einsum("np,kpu->nku", design, latents.coupling)
        )

    def constants(self) -> dict[str, Any]:
        """The weights, and of the global unknowns the noise where outputs depend on it."""
        is_coupled = self.latents.coupling is not None and self.layer.likelihood.noise_moves_outputs
        num_noise = self.global_sites.num_noise if is_coupled else 0
        return {"frame": self.frame, "latents": self.latents.first(num_noise)}

    @own_modes()
    def noise(self, num_draws: int, seed: int = 0) -> Draws:
        """Quasi-random draws of the noise parameters, in dimensions that the points of the outputs do not use."""
        if not self.global_sites.noise_names:
            return {}
        factor, num_noise = self.latents.globals_factor, self.global_sites.num_noise
        noise = factor.new_zeros(num_draws, self.latents.num_globals)
        noise[:, :num_noise] = noise_points(num_draws, num_noise, self.num_outputs, seed).to(factor)
        spread = factor * noise if factor.dim() == 1 else noise @ factor.mT
        values = self.global_sites.constrain(self.latents.globals_loc + spread)[0]
        return self.global_sites.noise(values)

    @own_modes()
    def as_prior(self) -> PosteriorPrior:
        """The Gaussian of weight and bias, with unknown noise and hyper-parameters integrated out."""
        if isinstance(self.latents.weights, Delta):
            raise TypeError(
                "as_prior: expected a posterior with a covariance, got a point (MAP); use a guide such as Diagonal()"
            )
        return PosteriorPrior.of(self._marginal, self.frame)

    @cached_property
    def _marginal(self) -> WeightGaussian:
        return self.latents.marginal_weights()


@dataclass(frozen=True, eq=False)
class DrawsPosterior(Posterior):
    """A posterior given by draws ``{site: [chain, draw, *event]}`` (NUTS, flows, custom guides).

    Parameters
    ----------
    draws
        The draws.
    markov_chain
        Whether they are draws of Markov chains, which are not independent.
    log_q
        Log density of the draws, nats, where the guide that made them has one (flows).
    """

    draws: Draws = field(default_factory=dict)
    markov_chain: bool = True
    log_q: Float[Tensor, "chain draw"] | None = None

    @property
    def independent_draws(self) -> bool:
        """False for Markov chains."""
        return not self.markov_chain

    def sample(self, num_draws: int | None = None, seed: int = 0) -> Draws:
        """The stored draws; fewer than stored are taken evenly from each chain."""
        if num_draws is not None:
            count(num_draws, "num_draws", "sample")
        stored = next(iter(self.draws.values()))
        num_chains, num_stored = stored.shape[:2]
        if num_draws is None or num_draws >= num_chains * num_stored:
            return dict(self.draws)
        each = max(1, num_draws // num_chains)
        index = torch.linspace(0, num_stored - 1, each).round().long()
        return {name: value[:, index] for name, value in self.draws.items()}

    def log_prob(self, draws: Draws) -> Float[Tensor, "chain draw"]:
        """Draws have no density."""
        raise ValueError(
            "this posterior is a set of draws and has no density; use an inference with a Gaussian posterior"
        )

    def outputs(self, features: Float[Tensor, "N D"]) -> OutputDraws:
        """Outputs of every stored draw; pass the rows in chunks, since the result is ``[S, N, K]``."""
        return OutputDraws(self.draw_outputs(self.draws, features))

    def constants(self) -> dict[str, Any]:
        """The draws of the weights."""
        return {
            "frame": self.frame,
            "draws": {k: v for k, v in self.draws.items() if k in ("weight", "bias")},
        }

    def noise(self, num_draws: int, seed: int = 0) -> Draws:
        """Noise of every stored draw, in the order of the outputs."""
        flat = {k: v.flatten(0, 1) for k, v in self.global_sites.from_user(self.draws).items()}
        return self.global_sites.noise(flat) if self.global_sites.noise_names else {}
