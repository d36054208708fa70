"""Joint training: backbone and guide together, each with its own rate, on features that move."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bll_pyro.features.columns import NO_COLUMNS, Columns
from bll_pyro.features.forward import (
    compute_features,
    feature_width,
    frozen,
    set_training,
    trainable_parameters,
)
from bll_pyro.frame import Frame
from bll_pyro.guides import Start
from bll_pyro.inference.base import Trace
from bll_pyro.inference.prior_scale.held_out import held_out_loss
from bll_pyro.inference.rows import with_columns
from bll_pyro.inference.standardization import target_moments
from bll_pyro.inference.start import median_sites
from bll_pyro.inference.svi.objective import Objective, StateCopy, restore, snapshot
from bll_pyro.inference.svi.train import BETAS, Stepper, Training, train
from bll_pyro.inference.training_data import TrainingData
from bll_pyro.layer import LastLayer
from bll_pyro.model import Model
from bll_pyro.posterior import Posterior
from bll_pyro.progress import progress
from bll_pyro.scope import generator, isolated

if TYPE_CHECKING:
    from bll_pyro.inference.svi.svi import SVI


class RunningScale(nn.Module):
    """Centre and scale of moving features: running averages, as in a BatchNorm without affine part.

    A batch is standardised with the averages and not with its own moments, so that a row's output does not depend on
    the rows beside it and a batch of one row works.
    """

    center: Tensor
    variance: Tensor

    def __init__(self, num_features: int, momentum: float = 0.1, active: bool = True) -> None:
        super().__init__()
        self.momentum, self.active = momentum, active
        self.num_batches = 0
        self.register_buffer("center", torch.zeros(num_features))
        self.register_buffer("variance", torch.ones(()))

    def forward(self, features: Tensor) -> Tensor:
        """Update the averages in training, then standardise ``[B, D]``; the guide's type comes out of any other."""
        if not self.active:
            return features.to(self.center)
        if self.training and len(features) > 1:
            with torch.no_grad():
                values = features if features.dtype == torch.float64 else features.float()
                # a plain average at first, so that the start is not remembered
                step = max(self.momentum, 1 / (self.num_batches + 1))
                self.center.lerp_(values.mean(0).to(self.center), step)
                self.variance.lerp_(values.var(0).mean().to(self.center), step)
                self.num_batches += 1
        return ((features - self.center) / self.variance.clamp_min(1e-12).sqrt()).to(self.center)


class JointModule(nn.Module):
    """Inputs and targets in, the ELBO of their batch out: what Fabric moves, casts and, later, distributes."""

    def __init__(self, backbone: nn.Module, scale: RunningScale, objective: Objective, bias: bool) -> None:
        super().__init__()
        self.backbone, self.scale = backbone, scale
        self.guide, self.model = objective.guide, objective.model
        self.objective, self.bias = [objective], bias  # in a list: not another submodule

    def design(self, inputs: Any) -> Tensor:
        """Design matrix ``[B, P]`` of a batch of inputs."""
        features = compute_features(self.backbone, inputs)
        if self.training and torch.is_grad_enabled() and not features.requires_grad:
            raise ValueError(
                "backbone: expected features that depend on the parameters to train, got features without gradient; take "
                "torch.no_grad() and detach() out of its forward, or leave backbone_learning_rate at None"
            )
        values = self.scale(features)
        return torch.cat([values, values.new_ones(len(values), 1)], -1) if self.bias else values

    def forward(
        self,
        inputs: Any,
        targets: Tensor,
        generator: torch.Generator,
        weight: Tensor | None = None,
        exposure: Tensor | None = None,
    ) -> Tensor:
        """ELBO estimate in nats."""
        plain = weight is None and exposure is None
        rows = targets if plain else with_columns(targets, Columns(weight, exposure))
        return self.objective[0](self.design(inputs), rows, generator)


class JointTraining(Training):
    """Training of backbone and guide on one device.

    Parameters
    ----------
    svi, layer
        The inference, and the declaration in the units of the standardised targets.
    module, frame, target_shape
        What is trained, the coordinates of its features before training, and the shape of one target.
    data, validation
        Rows of the fit, and rows whose predictive density is watched.
    fabric, seed
        Moves, casts, and takes gradients; seed of batches and draws.
    """

    def __init__(
        self,
        svi: SVI,
        layer: LastLayer,
        module: JointModule,
        frame: Frame,
        data: TrainingData,
        validation: TrainingData | None,
        fabric: Any,
        seed: int,
    ) -> None:
        self.svi, self.layer, self.module, self.fabric = svi, layer, module, fabric
        self.data, self.validation, self.objective = data, validation, module.objective[0]
        self.batch_size = min(svi.batch_size or 128, data.source.num_rows)
        self.order, self.random = generator(seed), generator(seed, fabric.device)
        self.wrapped, self.first_optimizer = fabric.setup(module, self.optimizer())
        self.frame = frame.to(fabric.device)
        self.advance: Callable[[int, str], None] | None = None
        self.elbo = torch.zeros(())  # the last estimate
        if validation is not None:
            self.validation_loss = self._validation_loss

    def optimizer(self) -> torch.optim.Optimizer:
        """Adam, with a rate for the guide and one for the backbone."""
        groups: list[dict[str, Any]] = [
            {"params": self.objective.parameters, "lr": self.svi.rate(self.objective.model.num_features)},
            {"params": trainable_parameters(self.module.backbone), "lr": self.svi.backbone_learning_rate},
        ]
        return torch.optim.Adam(groups, betas=BETAS)

    def batches(self) -> Iterator[tuple[Any, ...]]:
        """Inputs, standardised targets, and columns, on the device; unfrozen parts of the backbone are in train mode."""
        set_training(self.module.backbone)
        self.module.scale.train()
        for inputs, targets, columns in self._on_device(self.data, self.order):
            yield inputs, self.frame.targets(targets), columns
        if self.advance is not None:
            self.advance(1, f"ELBO a row {float(self.elbo) / self.data.source.num_rows:.3f}")

    def gradient(self, *batch: Any) -> Tensor:
        """By Fabric's backward pass, in the precision that was asked for."""
        inputs, targets, columns = batch
        value = self.wrapped(inputs, targets, self.random, columns.weight, columns.exposure)
        self.first_optimizer.zero_grad()
        self.fabric.backward(-value / self.data.source.num_rows)
        self.elbo = value.detach().float()
        return self.elbo

    def attempt(self, *batch: Any) -> tuple[Tensor, Tensor, tuple[Any, ...]]:
        """In full precision, with the features in between."""
        inputs, targets, columns = batch
        self.module.zero_grad()
        design, inside = self.module.design(inputs), with_columns(targets, columns)
        value = self.objective(design, inside, self.random)
        (-value / self.data.source.num_rows).backward()
        return value.detach(), design.detach(), self.objective.pyro_arguments(design.detach(), inside)

    def state(self) -> StateCopy:
        """All parameters and buffers, those that are not saved too."""
        return snapshot([*self.module.parameters(), *self.module.buffers()])

    def restore(self, state: StateCopy) -> None:
        """Put parameters and buffers back."""
        restore([*self.module.parameters(), *self.module.buffers()], state)

    def _validation_loss(self) -> float:
        assert self.validation is not None
        posterior, backbone = self.posterior(), self.module.backbone
        with frozen(backbone):
            rows = (
                (compute_features(backbone, x), with_columns(self.frame.targets(y), columns))
                for x, y, columns in self._on_device(self.validation, None)
            )
            return held_out_loss(posterior, rows)

    def posterior(self) -> Posterior:
        """The posterior at the present parameters, in the frame of the present averages."""
        frame, scale = self.frame.to(self.module.scale.center.device), self.module.scale
        if scale.active:
            common = scale.variance.clamp_min(1e-12).sqrt().expand_as(scale.center).clone()
            frame = replace(frame, center=scale.center.clone(), scale=common)
        return self.objective.posterior_in(frame, self.data.target_shape)

    def _on_device(
        self, data: TrainingData, order: torch.Generator | None
    ) -> Iterator[tuple[Any, Tensor, Columns]]:
        like = torch.zeros((), device=self.fabric.device)
        for inputs, targets, columns in data.batches(self.batch_size, order):
            moved = columns if columns is NO_COLUMNS else columns.to(like)
            yield *self.fabric.to_device((inputs, targets)), moved


def train_jointly(
    svi: SVI,
    layer: LastLayer,
    backbone: nn.Module,
    data: TrainingData,
    seed: int,
    validation: TrainingData | None = None,
    device: str | torch.device | None = None,
) -> tuple[Posterior, Trace]:
    """Train backbone (in place) and guide together; return the posterior over the last features."""
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
    with isolated(seed, torch.float32):
        began = time.perf_counter()
        training = _prepared(svi, layer, backbone, data, seed, validation, device)
        num_epochs = svi.num_epochs or 20
        # a last batch of one row joins the one before
        batched = data.source.num_rows - (training.batch_size > 1)
        num_steps = num_epochs * (data.source.own_batches or -(-batched // training.batch_size))
        stepper = Stepper(training.first_optimizer, num_steps, svi.clip_norm)
        with progress(num_epochs, "joint training") as training.advance:
            trace = train(training, stepper, num_epochs, svi.patience, plateau=None, adapts=False)
        backbone.eval()
        trace.wall_time = time.perf_counter() - began
        return training.posterior(), trace


def _prepared(
    svi: SVI,
    layer: LastLayer,
    backbone: nn.Module,
    data: TrainingData,
    seed: int,
    validation: TrainingData | None,
    device: str | torch.device | None,
) -> JointTraining:
    """Everything that training needs, on its device."""
    from lightning_fabric import Fabric

    accelerator = "cpu" if device is None else torch.device(device).type
    fabric = Fabric(accelerator=accelerator, devices=1, precision=svi.precision)  # type: ignore[arg-type]
    num_features = feature_width(backbone, data.source.example()[0])
    num_targets, center, scale = target_moments(layer, data)
    frame = Frame.identity(num_features, num_targets, torch.empty(0), layer.bias)
    frame = replace(frame, target_center=center, target_scale=scale)
    inside = layer.in_frame(frame)
    model = Model(inside, num_features, data.target_shape)
    svi.check(inside, model.num_outputs, num_features + int(layer.bias))
    parameters = trainable_parameters(backbone)
    if not all(parameter.is_leaf for parameter in parameters):
        raise ValueError(
            f"backbone: expected a module whose copy can be trained, got scripted or traced parts in {type(backbone).__name__}; "
            "pass the module that was scripted, or leave backbone_learning_rate at None"
        )
    if any(getattr(part, "sparse", None) is True for part in backbone.modules()):
        raise ValueError(
            "backbone: expected dense gradients, got an embedding with sparse=True; set it to False"
        )
    if not parameters:
        raise ValueError(
            "backbone: expected parameters to train, got none with requires_grad; "
            "unfreeze some (timm_backbone(..., unfreeze=True)) or leave backbone_learning_rate at None"
        )
    # scales of a posterior that has seen N rows with a quarter of unit information each, around the prior's centre
    size = (model.num_outputs, num_features + int(layer.bias))
    scale = torch.full(size, (1 + 0.25 * data.source.num_rows) ** -0.5)
    loc = inside.center(scale)
    if not loc.any():  # no head is given: random directions, so that the backbone gets a gradient at once
        loc = torch.randn(size, generator=generator(seed)) / size[1] ** 0.5
    u = median_sites(model.global_sites, torch.empty(0))
    guide = svi.guide.build(model, Start(u, loc, scale, num_features))
    objective = Objective(inside, model, guide, data.source.num_rows, svi.output_space)
    running = RunningScale(num_features, active=bool(layer.standardize))
    module = JointModule(backbone, running, objective, layer.bias)
    return JointTraining(svi, inside, module, frame, data, validation, fabric, seed)
