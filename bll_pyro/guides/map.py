"""A point: Pyro's ``AutoDelta``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from pyro.infer.autoguide import AutoDelta
from pyro.infer.autoguide.guides import AutoGuide
from pyro.nn import PyroParam
from torch import Tensor

from bll_pyro import gaussian
from bll_pyro.guides.base import GaussianGuide, Guide, Start, skip_initial_values


class PointGuide(GaussianGuide, AutoDelta):
    """Pyro's guide: one parameter for each site, in the site's own space."""

    is_point: ClassVar[bool] = True

    def __init__(self, model: Any, start: Start) -> None:
        super().__init__(model, init_loc_fn=skip_initial_values)
        self.attach(start)
        self.global_sites = model.global_sites
        self.weight = torch.nn.Parameter(start.loc[:, : start.num_features].clone())
        if start.loc.shape[1] > start.num_features:
            self.bias = torch.nn.Parameter(start.loc[:, -1].clone())
        values = self.global_sites.constrain(start.globals_loc)[0]
        medians = self.global_sites.medians()
        for name, value in values.items():
            if name in self.global_sites.hyper_names:
                self.register_buffer(name, medians[name].to(value))
                continue
            support = self.global_sites.priors[name].support
            setattr(self, name, PyroParam(value.detach(), support, event_dim=value.dim()))

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        AutoGuide._setup_prototype(self, *args, **kwargs)

    def latents(self) -> gaussian.LatentGaussian:
        """The point as a Gaussian without spread."""
        loc: Tensor = self.weight
        if self.num_columns > self.num_features:
            loc = torch.cat([loc, self.bias[:, None]], 1)
        u = loc.new_zeros(0)
        if self.num_globals:
            u = self.global_sites.unconstrain(
                {name: getattr(self, name) for name in self.global_sites.priors}
            )
        return gaussian.LatentGaussian(gaussian.Delta(loc), u, torch.zeros_like(u))


@dataclass(frozen=True, eq=False)
class MAP(Guide):
    """The posterior mode (maximum a posteriori): no uncertainty about the weights.

    A point has no evidence, so the scale of the prior cannot be learned with it: the joint density of weights and scale
    grows without bound as both shrink together. So a learned scale is that of the highest evidence of Laplace's approximation
    at the mode (diagonal, MacKay 1992), or what the criterion of the inference picks; in joint training, where the features move,
    it stays at its start, 1, until the final stage. Hyper-parameters with priors of their own stay at the medians of these. The
    noise is not affected: its mode is estimated.
    """

    def build(self, model: Any, start: Start) -> PointGuide:
        """The guide of ``model``."""
        return PointGuide(model, start)
