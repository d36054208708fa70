"""Joint training: backbone and guide together, each with its own rate, on features that move."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
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
from bll_pyro.inference.base import Trace
from bll_pyro.inference.prior_scale.held_out import held_out_loss
from bll_pyro.inference.rows import with_columns
from bll_pyro.inference.standardization import target_moments
from bll_pyro.inference.svi.batch_elbo import BatchELBO, check_moving
from bll_pyro.inference.svi.objective import StateCopy, restore, snapshot
from bll_pyro.inference.svi.train import BETAS, Stepper, Training, train
from bll_pyro.inference.training_data import TrainingData
from bll_pyro.layer import LastLayer
from bll_pyro.posterior import Posterior
from bll_pyro.progress import progress
from bll_pyro.scope import generator, isolated

if TYPE_CHECKING:
    from bll_pyro.inference.svi.svi import SVI


class JointModule(nn.Module):
    """Inputs and targets in, the ELBO of their batch out: what Fabric moves, casts and, later, distributes."""

    def __init__(self, backbone: nn.Module, elbo: BatchELBO) -> None:
        super().__init__()
        self.backbone, self.elbo = backbone, elbo

    def features(self, inputs: Any) -> Tensor:
        """Features ``[B, D]`` of a batch of inputs; in training they depend on the parameters."""
        features = compute_features(self.backbone, inputs)
        if self.training and torch.is_grad_enabled() and not features.requires_grad:
            raise ValueError(
                "backbone: expected features that depend on the parameters to train, got features without gradient; take "
                "torch.no_grad() and detach() out of its forward, or leave backbone_learning_rate at None"
            )
        return features

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
        return self.elbo.nats(self.features(inputs), rows, generator)


class JointTraining(Training):
    """Training of backbone and guide on one device.

    Parameters
    ----------
    svi, layer
        The inference, and the declaration in the units of the standardised targets.
    module
        What is trained.
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
        data: TrainingData,
        validation: TrainingData | None,
        fabric: Any,
        seed: int,
    ) -> None:
        self.svi, self.layer, self.module, self.fabric = svi, layer, module, fabric
        self.data, self.validation, self.objective = data, validation, module.elbo.objective
        self.batch_size = min(svi.batch_size or 128, data.source.num_rows)
        self.order, self.random = generator(seed), generator(seed, fabric.device)
        self.wrapped, self.first_optimizer = fabric.setup(module, self.optimizer())
        self.frame = module.elbo.frame  # for its constants of the targets
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
        self.module.elbo.train()
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
        design = self.module.elbo.design(self.module.features(inputs))
        inside = with_columns(targets, columns)
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
        return self.module.elbo.posterior()

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
    check_moving(layer)
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
    _, center, scale = target_moments(layer, data)
    elbo = BatchELBO(layer, num_features, data.source.num_rows, data.target_shape, center, scale, svi, seed)
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
    module = JointModule(backbone, elbo)
    return JointTraining(svi, elbo.objective.layer, module, data, validation, fabric, seed)
