"""The hierarchical Normal prior: a scale for the layer, each output or each feature, with a prior of its own."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor

from bll_pyro.checks import switch
from bll_pyro.priors.base import GaussianPrior, Shape, centre, check_hyper_prior, check_loc, expand


@dataclass(frozen=True, eq=False)
class HierarchicalNormal(GaussianPrior):
    """``weight[k, d] ~ Normal(loc[k, d], tau)`` with ``tau ~ hyper_prior``: for the layer, or one for each group.

    =================================== ============= ===================================================
    groups                              ``tau``       use
    =================================== ============= ===================================================
    (default)                           ``[]``        one scale, with its uncertainty
    ``per_output``                      ``[K]``       outputs of different difficulty
    ``per_feature``                     ``[D]``       automatic relevance determination (MacKay 1994)
    both                                ``[K, D]``    relevance of each feature for each output
    =================================== ============= ===================================================

    Parameters
    ----------
    hyper_prior
        Prior of the standard deviation ``tau``: a Pyro distribution of one positive number. None (default) is
        ``HalfCauchy(1 / sqrt(D))`` (Gelman 2006): with weights of that size, outputs have a scale of about 1.
    per_output, per_feature
        What shares a scale; see the table.
    loc
        Centre ``[K, D]`` of the weights, on the scale of the standardised features; None is 0.
    """

    hyper_prior: dist.Distribution | None = None
    per_output: bool = False
    per_feature: bool = False
    loc: Tensor | None = None

    def __post_init__(self) -> None:
        for name in ("per_output", "per_feature"):
            switch(getattr(self, name), name, "HierarchicalNormal")
        if self.hyper_prior is not None:
            check_hyper_prior(self.hyper_prior, "HierarchicalNormal(hyper_prior=...)")
        check_loc(self.loc, "HierarchicalNormal")

    @property
    def isotropic(self) -> bool:
        """Whether features share their scale, and there is no centre that would have to be rotated along."""
        return not self.per_feature and self.loc is None

    @property
    def can_rotate(self) -> bool:
        """Whether features share their scale; a centre is rotated along."""
        return not self.per_feature

    def rotated(self, rotation: Float[Tensor, "D R"]) -> Self:
        """The same prior in other axes."""
        if self.loc is None or self.per_feature:
            return super().rotated(rotation)
        loc = self.loc.to(rotation)  # one number for all features is a different one in each axis
        return replace(self, loc=loc.expand(*loc.shape[:-1], len(rotation)) @ rotation)

    def hyper(self, shape: Shape) -> dict[str, dist.Distribution]:
        """``tau``: a number, or ``[K]``, ``[D]``, ``[K, D]``."""
        groups = tuple(n for n, own in zip(shape, (self.per_output, self.per_feature), strict=True) if own)
        prior = self.hyper_prior
        if prior is None:
            prior = dist.HalfCauchy(torch.tensor(shape[1] ** -0.5), validate_args=False)
        return {"tau": prior.expand(groups).to_event(len(groups))}

    def distribution(self, shape: Shape, **hyper: Tensor) -> dist.Normal:
        """Normal with batch shape ``[..., K, D]``."""
        tau = hyper["tau"]
        if not self.per_feature:
            tau = tau[..., None]
        if not self.per_output:
            tau = tau[..., None] if not self.per_feature else tau[..., None, :]
        return dist.Normal(expand(centre(self.loc, tau), shape), expand(tau, shape), validate_args=False)
