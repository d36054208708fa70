"""``Model``: the last layer as a Pyro program, for frozen features and for training together with a backbone."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float
from pyro.nn import PyroModule, PyroParam
from torch import Tensor, nn
from torch.distributions import constraints

from bll_pyro.global_sites import GlobalSites
from bll_pyro.layer import LastLayer
from bll_pyro.likelihoods.base import TargetShape


class Model(PyroModule):
    """The joint density ``p(y | W h + b, theta) p(W, b, theta)`` of N rows, as a Pyro program.

    ======================== ======================================== ===========================
    on paper                 in code                                  shape
    ======================== ======================================== ===========================
    ``theta``                ``likelihood.sites``                     as the likelihood says
    hyper-parameters         ``prior.hyper``; learned ones are params as the prior says
    ``W ~ p(W | hyper)``     site ``weight``                          ``[K, D]``
    ``b ~ N(0, s_b^2)``      site ``bias``                            ``[K]``
    rows                     plate ``data`` of size N                 minibatches scaled by N/B
    ``y_n ~ p(y | W h_n+b)`` site ``y``                               ``[N]``
    ======================== ======================================== ===========================

    Parameters
    ----------
    layer
        The declaration.
    num_features
        Width D of the features.
    target_shape
        Shape of one row's target: ``()`` for a label or number, ``(T,)`` for T numbers.
    backbone
        Module from inputs to features ``[N, D]``; None where inputs are features.
    """

    def __init__(
        self,
        layer: LastLayer,
        num_features: int,
        target_shape: TargetShape = (),
        backbone: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.layer = layer
        self.num_features = num_features
        self.target_shape = tuple(target_shape)
        self.num_outputs = layer.likelihood.num_outputs(self.target_shape)
        self.backbone = backbone
        layer.prior.check(self.weight_shape)
        self.global_sites = GlobalSites(layer, self.weight_shape, self.target_shape)
        for name, value in layer.prior.learned_start(self.weight_shape).items():
            setattr(self, name, PyroParam(value, constraints.positive, event_dim=value.dim()))

    @property
    def weight_shape(self) -> tuple[int, int]:
        """Shape ``[K, D]`` of the weight."""
        return self.num_outputs, self.num_features

    @property
    def learned(self) -> dict[str, Tensor]:
        """Current values of the learned hyper-parameters."""
        return {name: getattr(self, name) for name in self.layer.prior.learned_start(self.weight_shape)}

    def forward(
        self,
        inputs: Any,
        targets: Tensor | None = None,
        num_rows: int | None = None,
        row_weight: Float[Tensor, " B"] | None = None,
        exposure: Float[Tensor, "B T"] | None = None,
    ) -> Float[Tensor, "*draws B K"]:
        """Run the program on a batch; return outputs ``[B, K]``.

        Parameters
        ----------
        inputs
            Features ``[B, D]``, or what the backbone takes.
        targets
            Observed targets; None samples them.
        num_rows
            Number of rows N of the whole data; None takes the batch for the data.
        row_weight
            Weights ``[B]`` of the rows' log likelihood.
        exposure
            Exposures ``[B, 1]`` or ``[B, T]`` of counts.
        """
        likelihood = self.layer.likelihood
        noise = likelihood.sample_noise(self.target_shape)
        known = {} if exposure is None else {"exposure": exposure}
        weight = self.layer.prior.sample(self.weight_shape, **self.learned)
        bias = self._sample_bias(weight)
        features = inputs if self.backbone is None else self.backbone(inputs)
        batch_size = len(features)
        # the plate scales the batch's log likelihood by N/B; with given indices it does not draw its own
        rows = torch.arange(batch_size, device=features.device)
        with pyro.plate("data", num_rows or batch_size, subsample=rows, dim=-1):
            outputs = linear(features, weight, bias)
            # Pyro takes no scale of 0; with the smallest positive number the log density is the same
            scale = 1.0 if row_weight is None else row_weight.clamp_min(torch.finfo(row_weight.dtype).tiny)
            with pyro.poutine.scale(scale=scale):
                pyro.sample("y", likelihood.distribution(outputs, **noise, **known), obs=targets)
        return outputs

    def _sample_bias(self, weight: Tensor) -> Tensor | None:
        if not self.layer.bias:
            return None
        if self.layer.prior.covers_bias:
            return self.layer.prior.sample_bias(weight)
        loc = self.layer.bias_center(weight.new_zeros(self.num_outputs))
        prior = dist.Normal(loc, torch.full_like(loc, self.layer.bias_scale), validate_args=False)
        return pyro.sample("bias", prior.to_event(1))


def linear(
    features: Float[Tensor, "*rows D"],
    weight: Float[Tensor, "*draws K D"],
    bias: Float[Tensor, "*draws K"] | None,
) -> Tensor:
    """Outputs ``[..., N, K]`` of features ``[N, D]`` and weights ``[K, D]`` or, vectorised, ``[..., 1, K, D]``."""
    if weight.dim() > 2:  # the axis of the data plate, of size 1 outside it
        weight = weight.squeeze(-3)
    outputs = features @ weight.to(features).mT  # a prior of the user's may draw in another precision
    return outputs if bias is None else outputs + bias
