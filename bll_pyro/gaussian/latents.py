"""A Gaussian over all unknowns of a last layer: the global vector u (noise, hyper-parameters) and the weights A."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from bll_pyro.gaussian.factorization import cholesky
from bll_pyro.gaussian.weights import LOG_TWO_PI, Dense, WeightGaussian, standard_normals
from bll_pyro.summary import Summary


@dataclass(frozen=True, eq=False)
class LatentGaussian(Summary):
    """``u = loc + factor e``, and ``A | u`` Gaussian with the mean shifted by ``coupling e``.

    Parameters
    ----------
    weights
        Gaussian of A at ``e = 0``.
    globals_loc, globals_factor
        Mean ``[U]`` and lower Cholesky factor ``[U, U]``, or standard deviations ``[U]`` where u is independent.
    coupling
        ``[K, P, U]``: shift of the weights' mean with e; None where weights and u are independent.
    """

    weights: WeightGaussian
    globals_loc: Float[Tensor, " U"]
    globals_factor: Float[Tensor, " U"] | Float[Tensor, "U U"]
    coupling: Float[Tensor, "K P U"] | None = None

    @property
    def num_globals(self) -> int:
        """Length U of the global vector."""
        return len(self.globals_loc)

    def given(self, noise: Float[Tensor, " U"]) -> tuple[Tensor, WeightGaussian]:
        """Return u ``[U]`` at standard normals ``noise [U]``, and the Gaussian of the weights given it."""
        u = self.globals_loc + self._scale(noise)
        if self.coupling is None:
            return u, self.weights
        return u, replace(self.weights, loc=self.weights.loc + self.coupling @ noise)

    def marginal_weights(self) -> WeightGaussian:
        """Gaussian of the weights with u integrated out."""
        return self.given_first(0)

    def given_first(self, num: int) -> WeightGaussian:
        """Gaussian of the weights where the first ``num`` of the normals e are 0, with the others integrated out."""
        if self.coupling is None or num == self.num_globals:
            return self.weights
        assert isinstance(self.weights, Dense)
        # variances of weights span many orders of magnitude: their product needs double precision
        wide = torch.cat([self.weights.factor, self.coupling[..., num:]], -1).flatten(0, 1).double()
        tril = cholesky(wide @ wide.mT, "covariance of the weights").to(self.weights.loc)
        return Dense(self.weights.loc, tril.view(*self.weights.loc.shape, -1), tril.diagonal().log().sum())

    def first(self, num: int) -> LatentGaussian:
        """The Gaussian over the first ``num`` numbers of u and the weights, with the others integrated out."""
        factor, coupling = self.globals_factor, self.coupling
        return LatentGaussian(
            self.given_first(num),
            self.globals_loc[:num],
            factor[:num]
            if factor.dim() == 1
            else factor[:num, :num],  # a lower triangle: rows need no later columns
            None if coupling is None or num == 0 else coupling[..., :num],
        )

    def marginal_scale(self) -> Float[Tensor, "K P"]:
        """Standard deviation of each weight with u integrated out, ``[K, P]``."""
        scale = self.weights.marginal_scale()
        if self.coupling is None:
            return scale
        return (scale.square() + self.coupling.square().sum(-1)).sqrt()

    def globals_scale(self) -> Float[Tensor, " U"]:
        """Standard deviation of each global number, ``[U]``."""
        factor = self.globals_factor
        return factor if factor.dim() == 1 else factor.square().sum(-1).sqrt()

    def rsample(
        self, num_draws: int, generator: torch.Generator | None = None
    ) -> tuple[Float[Tensor, "S U"], Float[Tensor, "S K P"]]:
        """Draw ``u [S, U]`` and weights ``[S, K, P]``."""
        noise = standard_normals((num_draws, self.num_globals), self.globals_loc, generator)
        weights = self.weights.rsample(num_draws, generator)
        if self.coupling is not None:
            weights = weights + torch.einsum("kpu,su->skp", self.coupling, noise)
        return self.globals_loc + self._scale(noise), weights

    def log_prob(self, u: Float[Tensor, "S U"], weights: Float[Tensor, "S K P"]) -> Float[Tensor, " S"]:
        """Log density ``[S]`` of ``u [S, U]`` and weights ``[S, K, P]``."""
        shifted = u - self.globals_loc
        if self.globals_factor.dim() == 1:
            noise = shifted / self.globals_factor
        else:
            noise = torch.linalg.solve_triangular(self.globals_factor, shifted.mT, upper=False).mT
        if self.coupling is not None:
            weights = weights - torch.einsum("kpu,su->skp", self.coupling, noise)
        log_globals = -0.5 * noise.square().sum(-1) - self._log_det() - 0.5 * self.num_globals * LOG_TWO_PI
        return log_globals + self.weights.log_prob(weights)

    def entropy(self) -> Float[Tensor, ""]:
        """Differential entropy in nats."""
        entropy, num_globals = self.weights.entropy(), len(self.globals_loc)
        if not num_globals:
            return entropy
        return entropy + self._log_det() + 0.5 * num_globals * (1 + LOG_TWO_PI)

    def detach(self) -> LatentGaussian:
        """Cut all parts from the graph of gradients and copy them."""
        coupling = None if self.coupling is None else self.coupling.detach().clone()
        loc, factor = self.globals_loc.detach().clone(), self.globals_factor.detach().clone()
        return LatentGaussian(self.weights.detach(), loc, factor, coupling)

    def _scale(self, noise: Float[Tensor, "*S U"]) -> Float[Tensor, "*S U"]:
        return (
            self.globals_factor * noise if self.globals_factor.dim() == 1 else noise @ self.globals_factor.mT
        )

    def _log_det(self) -> Float[Tensor, ""]:
        factor = self.globals_factor
        return (factor if factor.dim() == 1 else factor.diagonal()).log().sum()


def flatten(
    u: Shaped[Tensor, "*S U"], weights: Shaped[Tensor, "*S K P"], num_features: int
) -> Shaped[Tensor, "*S U+K*P"]:
    """Put ``u [..., U]`` and weights ``[..., K, P]``, or their places, into the order of Pyro's latent vector: u, weight, bias."""
    weight, bias = weights[..., :num_features].flatten(-2), weights[..., num_features:].flatten(-2)
    return torch.cat([u, weight, bias], -1)


def unflatten(
    vector: Float[Tensor, "*S L"], num_globals: int, num_outputs: int, num_features: int
) -> tuple[Float[Tensor, "*S U"], Float[Tensor, "*S K P"]]:
    """Inverse of :func:`flatten`."""
    num_weights = num_outputs * num_features
    u, weight, bias = vector.split(
        [num_globals, num_weights, vector.shape[-1] - num_globals - num_weights], -1
    )
    weight = weight.unflatten(-1, (num_outputs, num_features))
    if not bias.shape[-1]:
        return u, weight
    return u, torch.cat([weight, bias.unflatten(-1, (num_outputs, 1))], -1)
