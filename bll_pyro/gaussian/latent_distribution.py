"""A Gaussian over all unknowns as a Pyro distribution over the flat latent vector of Pyro's autoguides."""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from bll_pyro.gaussian.latents import LatentGaussian, flatten, unflatten


class LatentDistribution(TorchDistribution):
    """Distribution of the vector ``(u, weight row by row, bias)``: event ``[U + K P]``, any batch shape.

    It samples and scores through the parts of the Gaussian, so that a structured covariance is never written out,
    and it expands, so that Pyro can draw many particles at once.

    Parameters
    ----------
    latents
        The Gaussian.
    num_features
        Number D of the weights' columns that belong to features; a column after them is the bias.
    batch_shape
        Shape of independent copies.
    """

    support = constraints.real_vector
    has_rsample = True

    def __init__(self, latents: LatentGaussian, num_features: int, batch_shape: tuple[int, ...] = ()) -> None:
        self.latents, self.num_features = latents, num_features
        size = latents.num_globals + latents.weights.loc.numel()
        super().__init__(torch.Size(batch_shape), torch.Size((size,)), validate_args=False)

    @property
    def mean(self) -> Float[Tensor, "*S L"]:
        """Mean, expanded to the batch."""
        vector = flatten(self.latents.globals_loc, self.latents.weights.loc, self.num_features)
        return vector.expand(self.batch_shape + self.event_shape)

    @property
    def variance(self) -> Float[Tensor, "*S L"]:
        """Marginal variances, expanded to the batch."""
        scale = flatten(self.latents.globals_scale(), self.latents.marginal_scale(), self.num_features)
        return scale.square().expand(self.batch_shape + self.event_shape)

    def rsample(self, sample_shape: Any = ()) -> Float[Tensor, "*S L"]:
        """Draw vectors, differentiable in the Gaussian's parts."""
        shape = torch.Size(sample_shape) + self.batch_shape
        u, weights = self.latents.rsample(math.prod(shape))
        return flatten(u, weights, self.num_features).view(shape + self.event_shape)

    def log_prob(self, value: Float[Tensor, "*#S L"]) -> Float[Tensor, " *#S"]:
        """Log density of vectors, nats."""
        num_outputs = self.latents.weights.loc.shape[0]
        flat = value.reshape(-1, value.shape[-1])
        u, weights = unflatten(flat, self.latents.num_globals, num_outputs, self.num_features)
        log_prob = self.latents.log_prob(u, weights).view(value.shape[:-1])
        return log_prob.expand(torch.broadcast_shapes(log_prob.shape, self.batch_shape))

    def expand(self, batch_shape: Any, _instance: Any = None) -> LatentDistribution:
        """Independent copies."""
        return LatentDistribution(self.latents, self.num_features, tuple(batch_shape))
