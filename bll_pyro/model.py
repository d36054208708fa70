"""``Model``: the last layer as a Pyro program, for frozen features and for training together with a backbone."""

from __future__ import annotations

import copy
import math
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float
from pyro.nn import PyroModule, PyroParam
from torch import Tensor, nn
from torch.distributions import biject_to, constraints

from bll_pyro.layer import LastLayer
from bll_pyro.likelihoods.base import TargetShape
from bll_pyro.scope import isolated


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
        self.weight_shape = (self.num_outputs, num_features)
        self.backbone = backbone
        layer.prior.check(self.weight_shape)
        self.global_sites = GlobalSites(layer, self.weight_shape, self.target_shape)
        for name, value in layer.prior.learned_start(self.weight_shape).items():
            setattr(self, name, PyroParam(value, constraints.positive, event_dim=value.dim()))

    @property
    def learned(self) -> dict[str, Tensor]:
        """Current values of the learned hyper-parameters."""
        return {name: getattr(self, name) for name in self.layer.prior.learned_start(self.weight_shape)}

    def forward(
        self,
        inputs: Any,
        targets: Tensor | None = None,
        num_rows: float | None = None,
        row_weight: Tensor | None = None,
        exposure: Tensor | None = None,
    ) -> Float[Tensor, "*draws B K"]:
        """Run the program on a batch; return outputs ``[B, K]``.

        Parameters
        ----------
        inputs
            Features ``[B, D]``, or what the backbone takes.
        targets
            Observed targets ``[B]`` or ``[B, T]``, in the units of the outputs; ``[B, 1]`` means the same as ``[B]``. None
            samples them.
        num_rows
            Number of rows N of the whole data; None takes the batch for the data.
        row_weight
            Weights of the rows' log likelihood, ``[B]`` or ``[B, 1]``.
        exposure
            Exposures of counts ``[B]``, ``[B, 1]`` or ``[B, T]``.

        Raises
        ------
        ValueError
            For targets, weights or exposures of another shape: by broadcasting, ``[B]`` against ``[B, 1]`` would be B times
            B rows.
        """
        likelihood = self.layer.likelihood
        noise = likelihood.sample_noise(self.target_shape)
        weight = self.layer.prior.sample(self.weight_shape, **self.learned)
        bias = self._sample_bias(weight)
        features = inputs if self.backbone is None else self.backbone(inputs)
        batch_size = len(features)
        # the plate scales the batch's log likelihood by N/B; with given indices it does not draw its own
        rows = torch.arange(batch_size, device=features.device)
        with pyro.plate("data", num_rows or batch_size, subsample=rows, dim=-1):
            outputs = linear(features, weight, bias)
            if exposure is not None:
                own = (
                    exposure.shape[1:] if exposure.shape[1:] == self.target_shape else ()
                )  # one for each target
                noise["exposure"] = of_rows(exposure, (batch_size, *(own or (1,))), "exposure")
            law = likelihood.law(outputs, **noise)
            if targets is not None:
                targets = of_rows(targets, (batch_size, *law.event_shape), "targets")
                targets = targets.long() if likelihood.is_discrete else targets.to(outputs.dtype)
            scale: float | Tensor = 1.0
            if (
                row_weight is not None
            ):  # Pyro takes no scale of 0; with the smallest number the log density is the same
                weights = of_rows(row_weight, (batch_size,), "row_weight")
                scale = weights.clamp_min(torch.finfo(weights.dtype).tiny)
            with pyro.poutine.scale(scale=scale):
                pyro.sample("y", law, obs=targets)
        return outputs

    def _sample_bias(self, weight: Tensor) -> Tensor | None:
        if not self.layer.bias:
            return None
        if self.layer.prior.covers_bias:
            return self.layer.prior.sample_bias(weight)
        loc = self.layer.bias_center(weight.new_zeros(self.num_outputs))
        prior = dist.Normal(loc, torch.full_like(loc, self.layer.bias_scale), validate_args=False)
        return pyro.sample("bias", prior.to_event(1))


def of_rows(values: Tensor, shape: tuple[int, ...], name: str) -> Tensor:
    """Values of B rows in the ``shape`` that the program takes; ``[B]`` and ``[B, 1]`` mean the same."""
    num_rows = shape[0]
    if values.shape == shape:
        return values
    if math.prod(shape) == num_rows and tuple(values.shape) in ((num_rows,), (num_rows, 1)):
        return values.reshape(shape)
    meant = f"[{num_rows}] or [{num_rows}, 1]" if math.prod(shape) == num_rows else list(shape)
    raise ValueError(
        f"Model: expected {name} of shape {meant} for {num_rows} rows, got {list(values.shape)}; reshape them, or build the "
        "Model with the target_shape of a row"
    )


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
        self.num = sum(self.sizes)  # length U of the vector
        self._single = {k for k in self.noise_names if not target_shape and tuple(shapes[k]) == (1,)}

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
