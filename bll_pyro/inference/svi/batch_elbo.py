"""The ELBO of a batch of features that move, as a module: what joint training takes gradients of, and a loop of the user's.

Features of a backbone that is trained along move. So their centre and unit are those of the first batches, and the guide keeps
plain axes. The targets have constants of their own from the start.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

import torch
from jaxtyping import Float
from pyro import poutine
from torch import Tensor, nn

from bll_pyro.frame import Frame
from bll_pyro.guides import GaussianGuide, Start
from bll_pyro.inference.row_targets import Targets
from bll_pyro.inference.rows import DesignRows
from bll_pyro.inference.start import median_sites
from bll_pyro.inference.svi.objective import Objective
from bll_pyro.layer import LastLayer
from bll_pyro.likelihoods.base import TargetShape
from bll_pyro.model import Model
from bll_pyro.posterior import Posterior
from bll_pyro.scope import generator, isolated, own_modes, own_store

if TYPE_CHECKING:
    from bll_pyro.inference.svi.svi import SVI

NUM_BATCHES = 20  # the first ones, by which features are centred and measured
LEAST_SCALE, LARGEST_SCALE = 0.1, 1.0  # of features that are left as they come
SMALLEST_VARIANCE = 1e-12


class FirstUnits(nn.Module):
    """Centre and unit of features that move: found on the first batches, and fixed from then on.

    Features come out centred and divided by one number, the unit. It is 1 while their scale, the root of their mean variance, is
    between 0.1 and 1, as it is in most networks; else it brings their scale to the nearer bound.

    Constants that are fixed let features grow and shift as they do below a plain linear head. Averages that go on would undo each
    step that makes features grow, and the gradient would not know of it. All rows of a batch are standardised by the same
    numbers, so that a row's output does not depend on the rows beside it, and a batch of one row works.
    """

    center: Tensor
    variance: Tensor
    num_batches: Tensor

    def __init__(self, num_features: int, active: bool = True) -> None:
        super().__init__()
        self.active = active
        self.register_buffer("center", torch.zeros(num_features))
        self.register_buffer("variance", torch.ones(()))
        self.register_buffer("num_batches", torch.zeros((), dtype=torch.int64))

    def forward(self, features: Tensor) -> Tensor:
        """Measure the first batches of training, then standardise ``[B, D]``; the guide's type comes out of any other."""
        if not self.active:
            return features.to(self.center)
        # where it can be told without waiting for a device: all of the first batches have been measured
        is_known = self.num_batches.device.type == "cpu" and int(self.num_batches) >= NUM_BATCHES
        if self.training and len(features) > 1 and not is_known:
            self._measure(features.detach())
        return ((features - self.center) / self.unit).to(self.center)

    @property
    def unit(self) -> Float[Tensor, ""]:
        """The divisor of all features; 1 if none of them varies."""
        scale = self.variance.sqrt()
        unit = scale / scale.clamp(LEAST_SCALE, LARGEST_SCALE)
        return torch.where(self.variance > SMALLEST_VARIANCE, unit, torch.ones_like(unit))

    @torch.no_grad()
    def _measure(self, features: Tensor) -> None:
        values = features if features.dtype == torch.float64 else features.float()
        mean, variance = values.mean(0).to(self.center), values.var(0).mean().to(self.center)
        # half precision overflows now and then, and the loop leaves such a step out: the averages must not keep it
        counts = mean.isfinite().all() & variance.isfinite() & (self.num_batches < NUM_BATCHES)
        step = 1 / (self.num_batches + 1).to(self.center)
        self.center.copy_(torch.where(counts, self.center.lerp(mean, step), self.center))
        self.variance.copy_(torch.where(counts, self.variance.lerp(variance, step), self.variance))
        self.num_batches.add_(counts)


class BatchELBO(nn.Module):
    """The ELBO of batches of features; its parameters are those of the guide, and of what the prior learns on Pyro's path.

    Parameters
    ----------
    layer
        The declaration, in the user's units; :func:`check_moving` has seen it.
    num_features, num_rows, target_shape
        Width D of the features, number N of rows that a batch stands for, and shape of one target.
    target_center, target_scale
        Constants of the targets, ``[T]``.
    svi
        Its guide, and whether outputs are drawn or weights.
    seed
        Of the random directions in which the means of the weights start, so that a backbone gets a gradient at once.
    """

    target_center: Tensor
    target_scale: Tensor

    def __init__(
        self,
        layer: LastLayer,
        num_features: int,
        num_rows: int,
        target_shape: TargetShape,
        target_center: Float[Tensor, " T"],
        target_scale: Float[Tensor, " T"],
        svi: SVI,
        seed: int,
    ) -> None:
        super().__init__()
        self.units = FirstUnits(num_features, active=bool(layer.standardize))
        self.register_buffer("target_center", target_center.clone())
        self.register_buffer("target_scale", target_scale.clone())
        self.bias = layer.bias
        inside = layer.in_frame(self.frame)
        model = Model(inside, num_features, target_shape)
        svi.check(inside, model.num_outputs, num_features + int(layer.bias))
        self.guide = svi.guide.build(model, random_start(inside, model, num_rows, seed))
        self.objective = Objective(inside, model, self.guide, num_rows, svi.output_space)
        if not self.objective.closed:
            self.model = model.requires_grad_(self.objective.learns)
            self._prepare()

    @property
    def frame(self) -> Frame:
        """The frame of the present constants."""
        center, scale = torch.zeros_like(self.units.center), torch.ones_like(self.units.center)
        if self.units.active:
            center, scale = self.units.center.clone(), self.units.unit.expand_as(center).clone()
        return Frame(center, scale, self.target_center, self.target_scale, None, self.bias)

    def design(self, features: Float[Tensor, "B D"]) -> Float[Tensor, "B P"]:
        """Design matrix of a batch; the first ones of a training are measured."""
        values = self.units(features)
        return torch.cat([values, values.new_ones(len(values), 1)], -1) if self.bias else values

    def nats(
        self,
        features: Float[Tensor, "B D"],
        targets: Targets,
        generator: torch.Generator | None = None,
        kl_weight: float = 1.0,
        once: bool = False,
    ) -> Float[Tensor, ""]:
        """Estimate of the ELBO of standardised targets, nats, in full precision also where autocast is on.

        ``once`` is as in :class:`Objective`; for loops that may take other derivatives, average or compile it is False.
        """
        with torch.autocast(features.device.type, enabled=False):
            design = self.design(features)
            if self.objective.closed:
                return self.objective(design, targets, generator, kl_weight, once)
            with own_store():
                return self.objective(design, targets, generator, kl_weight)

    @own_modes(gradients=False)
    def posterior(self) -> Posterior:
        """A copy of the posterior at the present parameters, in the frame of the present constants."""
        objective, frame = self.objective, self.frame
        frame = replace(
            frame, target_center=frame.target_center.clone(), target_scale=frame.target_scale.clone()
        )
        shape = objective.model.target_shape
        if isinstance(self.guide, GaussianGuide):
            if objective.closed:
                objective.learn(self.guide.latents())
            return objective.posterior_in(frame, shape)
        with isolated(0, frame.center.dtype):
            self._prepare()  # on the device where the parameters lie now
            return objective.posterior_in(frame, shape)

    def _prepare(self) -> None:
        """Show the guide two rows that the program draws itself: Pyro's guides make their parameters when they first run."""
        like, bias = self.units.center, self.bias
        rows = like.new_zeros(2, len(like))
        with torch.no_grad():
            targets = poutine.trace(self.model).get_trace(rows).nodes["y"]["value"]
        self.objective.prepare(
            DesignRows(
                rows, targets, Frame.identity(len(like), len(self.target_center), like, bias), like.device
            )
        )

    def __getstate__(self) -> dict[str, Any]:
        """For copies. A flow keeps the tensors of its last call, which cannot be copied if they have a gradient."""
        if not self.objective.closed:
            with isolated(0, self.units.center.dtype):
                self._prepare()
        return self.__dict__.copy()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Moves and casts, as of any module, but never to half precision, which is not enough for a posterior."""

        def moved(value: Tensor) -> Tensor:
            result = fn(value)
            return value.to(result.device) if result.dtype in (torch.float16, torch.bfloat16) else result

        super()._apply(moved, recurse)
        # scales that are not learned, those of a point, are no parameters
        self.objective.learned = {name: moved(value) for name, value in self.objective.learned.items()}
        return self


def check_moving(layer: LastLayer) -> None:
    """Raise a ValueError for what needs constants of features that are known before training."""
    if layer.prior.frame is not None:
        raise ValueError(
            f"{type(layer.prior).__name__}: expected frozen features, in whose coordinates the prior is, got "
            "a backbone to train along; leave backbone_learning_rate at None"
        )
    if layer.raw_center and layer.standardize:
        raise ValueError(
            "LastLayer(raw_center=True): expected standardize=False where a backbone is trained along, since the constants "
            "of its features move, got standardize=True; with LastLayer.from_linear(..., standardize=False) the prior is "
            "centred at the head on the features as they come"
        )


def random_start(layer: LastLayer, model: Model, num_rows: int, seed: int) -> Start:
    """Where the guide begins before any features are known: at the prior's centre, or in random directions without one."""
    num_columns = model.num_features + int(layer.bias)
    # scales of a posterior that has seen N rows with a quarter of unit information each
    scale = torch.full((model.num_outputs, num_columns), (1 + 0.25 * num_rows) ** -0.5)
    loc = layer.center(scale)
    if not loc.any():  # no head is given: random directions, so that the backbone gets a gradient at once
        loc = torch.randn(scale.shape, generator=generator(seed)) / num_columns**0.5
    return Start(median_sites(model.global_sites, torch.empty(0)), loc, scale, model.num_features)
