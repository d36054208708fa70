"""``LastLayer``: the declaration of a Bayesian last layer, prior x likelihood."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bll_pyro.checks import message, positive_or_none, switch
from bll_pyro.declaration import Declaration
from bll_pyro.frame import Frame
from bll_pyro.gaussian import WeightGaussian
from bll_pyro.likelihoods import Likelihood
from bll_pyro.priors import Normal, Prior
from bll_pyro.priors.base import IS_DEVIATION, check_loc


@dataclass(frozen=True, eq=False)
class LastLayer(Declaration):
    """Outputs ``f = W h + b`` of features ``h``, with a prior on W and b and a likelihood of the target given f.

    Parameters
    ----------
    likelihood
        Distribution of the target given the outputs.
    prior
        Prior of the weight ``W [K, D]``; by default Normal with a learned scale.
    bias
        Whether there is a bias ``b [K]``, with the prior ``Normal(bias_loc, bias_scale)``.
    bias_scale
        Standard deviation of the bias; wide by default.
    standardize
        Bring features, and the targets of real-valued likelihoods, to mean 0 and scale 1 with the constants of the
        training set. Weights and priors live on that scale; predictions are in the user's units. ``"columns"`` divides
        each feature by a scale of its own, so that its unit does not matter. ``"common"`` divides all by one, the root of
        their mean variance, so that they keep their proportions. True takes ``"columns"`` for a table, that is for
        features which are given as arrays, frames or a dataset, and ``"common"`` for those of a backbone or a ``Features``
        store: they share a unit, and their ELBO is higher so. ``fit.posterior.frame.feature_scale`` says which was taken.
        False leaves features and targets as they are.

        With ``"columns"`` the scale is the standard deviation. Where a column rests at one value, or near it, and moves
        in a share p < 1/2 of the rows, it is the standard deviation divided by 2p: a nearly constant column counts for
        little, and rows in which it moves do not outweigh all others. A column that is constant in the training rows is
        left out. Columns that share a unit, such as pixels, may be given ``"common"``: what hardly moves in the training
        rows then counts for next to nothing, whatever it does in other rows. ``print(fit)`` says what was done.
        Features that move, as a backbone is trained along, always share a scale.
    bias_loc
        Centre ``[K]`` of the bias; None is 0.
    raw_center
        Whether the prior's ``loc`` and ``bias_loc`` are weight and bias of a linear layer on features and targets as they
        come. A fit then brings them to the standardised scale. See :meth:`from_linear`.
    """

    likelihood: Likelihood
    prior: Prior = Normal()
    bias: bool = True
    bias_scale: float = 10.0
    standardize: bool | Literal["columns", "common"] = True
    bias_loc: Tensor | None = None
    raw_center: bool = False
    family: ClassVar[str] = "layer"

    def __post_init__(self) -> None:
        if not isinstance(self.likelihood, Likelihood):
            raise TypeError(
                f"LastLayer(likelihood=...): expected a likelihood such as bll.likelihoods.Categorical(num_classes=10), "
                f"got {self.likelihood!r}"
            )
        if not isinstance(self.prior, Prior):
            raise TypeError(
                f"LastLayer(prior=...): expected a prior such as bll.priors.Normal(scale=1.0), got {self.prior!r}; "
                "a Pyro distribution goes into bll.priors.Distribution"
            )
        positive_or_none(self.bias_scale, "bias_scale", "LastLayer", IS_DEVIATION)
        for name in ("bias", "raw_center"):
            switch(getattr(self, name), name, "LastLayer")
        if not isinstance(self.standardize, bool) and self.standardize not in ("columns", "common"):
            expected = 'True, False, "columns" or "common"'
            raise TypeError(message("standardize", "LastLayer", expected, self.standardize))
        self._check_center()

    @classmethod
    def from_linear(
        cls, linear: nn.Linear, likelihood: Likelihood, prior_scale: float | None = None, **options: Any
    ) -> Self:
        """A last layer that starts at an existing head: its prior is centred at the head's weight and bias.

        Where there are no data, the outputs are those of the head. The weights refer to the features as they come;
        with ``standardize=True`` (default) a fit expresses the same function in standardised features (and targets), so
        that ``prior_scale`` means the same as everywhere: the distance that a weight may move from the head, on the
        scale of the standardised features.

        Parameters
        ----------
        linear
            Linear layer on the features, with K outputs; it is copied and not changed.
        likelihood
            Distribution of the target given the outputs.
        prior_scale
            Standard deviation of the weights around the head; None learns it from the data.
        **options
            ``bias_scale``, ``standardize``: see :class:`LastLayer`.
        """
        if not isinstance(linear, nn.Linear):
            raise TypeError(f"LastLayer.from_linear: expected a torch.nn.Linear, got {type(linear).__name__}")
        weight = linear.weight.detach().clone()
        bias = None if linear.bias is None else linear.bias.detach().clone()
        if bias is None:  # centred features need a bias to give the same outputs
            options = {"standardize": False, **options}
        prior = Normal(prior_scale, loc=weight)
        return cls(likelihood, prior, bias=bias is not None, bias_loc=bias, raw_center=True, **options)

    def in_frame(self, frame: Frame) -> Self:
        """The same layer for standardised features and targets: constants in the user's units follow.

        ``W h + b`` of raw features is ``(W s) z + (b + W c)`` of ``z = (h - c) / s``, and targets are standardised on top.
        """
        likelihood = self.likelihood.in_units(frame.target_scale)
        layer = self if likelihood is self.likelihood else replace(self, likelihood=likelihood)
        if not self.raw_center:
            return layer
        weight: Tensor = self.prior.loc.to(frame.center)  # type: ignore[attr-defined]  # checked when declared
        spread = frame.scale.where(frame.scale.isfinite(), 0.0)  # of a feature that is left out
        if weight.shape[1] != frame.num_features:
            raise ValueError(
                f"LastLayer(raw_center=True): expected the {frame.num_features} features of the data, got a head for "
                f"{weight.shape[1]}; use the features that the head was trained on"
            )
        scale, center = frame.target_scale, frame.target_center
        if len(scale) not in (1, len(weight)) or (
            len(scale) < len(weight) and not bool(((scale == 1) & (center == 0)).all())
        ):
            raise ValueError(
                f"LastLayer(raw_center=True): expected one output for each of the {len(scale)} standardised targets, got "
                f"{len(weight)}; use standardize=False"
            )
        loc = (weight * spread / scale[:, None]).to(weight)
        prior = replace(self.prior, loc=loc)  # type: ignore[call-arg, type-var]
        if self.bias:
            wide = weight.double()  # the terms cancel where features or targets are far from 0
            bias = wide.new_zeros(len(wide)) if self.bias_loc is None else self.bias_loc.to(wide)
            bias = (bias + wide @ frame.center.double() - center) / scale
            return replace(layer, prior=prior, bias_loc=bias.to(weight), raw_center=False)
        return replace(layer, prior=prior, raw_center=False)

    def rotated(self, rotation: Float[Tensor, "D R"] | None) -> Self:
        """The same layer for features rotated into other axes, ``h @ rotation``; a prior with a frame is in its axes."""
        if rotation is None or self.prior.frame is not None:
            return self
        prior = self.prior.rotated(rotation)
        return self if prior is self.prior else replace(self, prior=prior)

    def expected_log_prior(
        self,
        weights: WeightGaussian,
        hyper: dict[str, Tensor],
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, ""]:
        """``E_q[log p(W, b | hyper)]`` in nats for Gaussian weights q ``[K, P]``, given the hyper-parameters.

        In closed form, or at one draw of the weights where the prior knows none.
        """
        if self.prior.covers_bias:
            return self.prior.expected_log_prob_of(weights)
        loc, scale = weights.loc, weights.marginal_scale()
        num_features = loc.shape[1] - int(self.bias)
        weight_loc, weight_scale = loc[:, :num_features], scale[:, :num_features]
        draw = None
        if self.prior.needs_noise:
            draw = torch.randn(weight_loc.shape, dtype=loc.dtype, device=loc.device, generator=generator)
        total = self.prior.expected_log_prob(weight_loc, weight_scale, draw, **hyper)
        if not self.bias:
            return total
        bias = loc[:, -1]
        second_moment = (bias - self.bias_center(bias)).square() + scale[:, -1].square()
        constant = math.log(self.bias_scale) + 0.5 * math.log(2 * math.pi)
        return total - 0.5 * second_moment.sum() / self.bias_scale**2 - constant * len(loc)

    def bias_center(self, like: Float[Tensor, "*S K"]) -> Float[Tensor, "*S K"]:
        """Centre of the bias, in the shape ``[..., K]``, dtype and device of a tensor."""
        return torch.zeros_like(like) if self.bias_loc is None else self.bias_loc.to(like).expand_as(like)

    def center(self, like: Float[Tensor, "K P"]) -> Float[Tensor, "K P"]:
        """Centre of weight and bias ``[K, P]``, in the shape, dtype and device of a tensor; 0 where none is given."""
        num_features = like.shape[1] - int(self.bias)
        loc = getattr(self.prior, "loc", None)
        weight = like[:, :num_features]
        weight = torch.zeros_like(weight) if not isinstance(loc, Tensor) else loc.to(like).expand_as(weight)
        if not self.bias:
            return weight.clone()
        return torch.cat([weight, self.bias_center(like[:, -1])[:, None]], 1)

    def _check_center(self) -> None:
        check_loc(self.bias_loc, "LastLayer", "bias_loc")
        if self.bias_loc is not None and (not self.bias or self.bias_loc.dim() > 1):
            raise ValueError(
                f"LastLayer(bias_loc=...): expected a vector [K] and bias=True, got shape {list(self.bias_loc.shape)} and "
                f"bias={self.bias}"
            )
        if not self.raw_center:
            return
        loc = getattr(self.prior, "loc", None)
        if not isinstance(loc, Tensor) or loc.dim() != 2:
            raise ValueError(
                "LastLayer(raw_center=True): expected a prior with a centre [K, D], such as bll.priors.Normal(loc=weight), "
                f"got {self.prior!r}"
            )
        if self.standardize and not self.bias:
            raise ValueError(
                "LastLayer(raw_center=True, bias=False): expected standardize=False, since centred features need a bias to "
                "express the same outputs, got standardize=True"
            )
        likelihood = self.likelihood
        if likelihood.is_discrete and likelihood.num_outputs(()) != len(loc):
            raise ValueError(
                f"LastLayer(raw_center=True): expected a head with {likelihood.num_outputs(())} outputs for {likelihood!r}, "
                f"got {len(loc)}"
            )
