"""``GlobalSites``: the unknowns beside weight and bias, as one unconstrained vector and as the user's draws."""

from __future__ import annotations

import copy
import math

import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import biject_to

from bll_pyro.layer import LastLayer
from bll_pyro.likelihoods.base import TargetShape
from bll_pyro.scope import isolated


class GlobalSites:
    """Noise and hyper-parameters of a layer: the unknowns beside the weight W and the bias b.

    ======================= ================================================================
    form                    what it is
    ======================= ================================================================
    ``u [..., U]``          one unconstrained vector, for optimisers and guides
    values                  ``{site: [..., *event]}`` in the sites' own spaces
    the user's draws        the same, but noise of a single target has no axis for targets
    ======================= ================================================================

    In ``u`` the noise comes first, then the hyper-parameters. In the latent vector of Pyro's autoguides u comes first,
    then W, then b, as in the program. Constants of the priors have the default dtype at the time of construction.

    Parameters
    ----------
    layer
        The declaration.
    weight_shape
        Shape ``[K, D]`` of the weight.
    target_shape
        Shape of one row's target.
    """

    def __init__(self, layer: LastLayer, weight_shape: tuple[int, int], target_shape: TargetShape) -> None:
        self.weight_shape = weight_shape
        noise, hyper = layer.likelihood.sites(target_shape), layer.prior.hyper(weight_shape)
        self.priors: dict[str, dist.Distribution] = {k: unchecked(v) for k, v in {**noise, **hyper}.items()}
        self.noise_names, self.hyper_names = tuple(noise), tuple(hyper)
        self.transforms = {name: biject_to(prior.support) for name, prior in self.priors.items()}
        # not transform.inverse_shape: torch's first call of it imports SymPy, which takes longer than many fits
        shapes = {k: prior.event_shape for k, prior in self.priors.items()}
        self.shapes = {k: t.inv(torch.full(shapes[k], 0.5)).shape for k, t in self.transforms.items()}
        self.sizes = [math.prod(shape) for shape in self.shapes.values()]
        self._single = {k for k in self.noise_names if not target_shape and tuple(shapes[k]) == (1,)}

    @property
    def num(self) -> int:
        """Length U of the vector."""
        return sum(self.sizes)

    @property
    def num_noise(self) -> int:
        """Length of the noise's part of the vector, which comes first."""
        return sum(self.sizes[: len(self.noise_names)])

    def constrain(
        self, u: Float[Tensor, "*batch U"]
    ) -> tuple[dict[str, Tensor], Float[Tensor, "*batch"], Float[Tensor, "*batch"]]:
        """Values of all sites at ``u [..., U]``, their log prior density, and ``log |d value / d u|``, both ``[...]``."""
        values: dict[str, Tensor] = {}
        log_prior, log_jacobian = u.new_zeros(u.shape[:-1]), u.new_zeros(u.shape[:-1])
        for (name, transform), part in zip(self.transforms.items(), u.split(self.sizes, -1), strict=True):
            free = part.reshape((*u.shape[:-1], *self.shapes[name]))
            values[name] = value = transform(free)
            log_prior = log_prior + self.priors[name].log_prob(value)
            log_jacobian = log_jacobian + sum_event(transform.log_abs_det_jacobian(free, value), u.dim() - 1)
        return values, log_prior, log_jacobian

    def unconstrain(self, values: dict[str, Tensor]) -> Float[Tensor, "*batch U"]:
        """Inverse of :meth:`constrain`: the vector ``[..., U]``."""
        parts = []
        for name, transform in self.transforms.items():
            free, event_dim = transform.inv(values[name]), len(self.shapes[name])
            parts.append(free.flatten(-event_dim) if event_dim else free[..., None])
        if not parts:
            raise ValueError("expected global unknowns, got a layer that has none")
        return torch.cat(parts, -1)

    def to_user(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """Draws as users see them: a vector of one noise value is a number where a row's target is a number."""
        return {k: v.squeeze(-1) if k in self._single else v for k, v in values.items()}

    def from_user(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """Inverse of :meth:`to_user`."""
        return {k: v[..., None] if k in self._single else v for k, v in values.items()}

    def medians(self) -> dict[str, Tensor]:
        """The median of each site's prior."""
        return {name: median(prior) for name, prior in self.priors.items()}

    def noise(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """The values of the noise."""
        return {name: values[name] for name in self.noise_names}

    def hyper(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """The values of the hyper-parameters."""
        return {name: values[name] for name in self.hyper_names}


def unchecked[D: torch.distributions.Distribution](prior: D) -> D:
    """The same distribution without checks of its values: a transform has put them into the support already.

    Each check would make a step wait for the device.
    """
    prior = copy.copy(prior)
    prior._validate_args = False
    if hasattr(prior, "base_dist"):
        prior.base_dist = unchecked(prior.base_dist)
    return prior


def sum_event(values: Tensor, num_batch_dims: int) -> Tensor:
    """Sum over all but the first ``num_batch_dims`` axes."""
    return values.flatten(num_batch_dims).sum(-1) if values.dim() > num_batch_dims else values


def median(prior: dist.Distribution) -> Tensor:
    """Median of each number of a distribution; of up to 100,001 draws where its quantile function is not known."""
    base = prior
    while isinstance(base, dist.Independent):
        base = base.base_dist
    try:
        return base.icdf(torch.full(base.batch_shape + base.event_shape, 0.5))
    except NotImplementedError:
        num_draws = min(max(10_000_000 // max(base.batch_shape.numel(), 1), 1001), 100_001)
        with isolated(seed=0):
            return prior.sample((num_draws,)).median(0).values
