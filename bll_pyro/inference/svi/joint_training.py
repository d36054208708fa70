"""What joint training trains: backbone and guide on one device, a group of batches to a step."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bll_pyro.features.columns import NO_COLUMNS, Columns
from bll_pyro.features.forward import compute_features, frozen, set_training
from bll_pyro.inference.prior_scale.held_out import held_out_loss
from bll_pyro.inference.row_targets import Targets, values_of, with_columns
from bll_pyro.inference.svi.backbone_optimizer import Together, made_optimizer
from bll_pyro.inference.svi.backbone_training import BackboneTraining
from bll_pyro.inference.svi.batch_elbo import BatchELBO
from bll_pyro.inference.svi.moving_average import MovingAverage
from bll_pyro.inference.svi.objective import StateCopy, all_finite, restore, snapshot
from bll_pyro.inference.svi.train import Training, adam, extra_states
from bll_pyro.inference.training_data import TrainingData
from bll_pyro.posterior import Posterior
from bll_pyro.scope import generator

if TYPE_CHECKING:
    from bll_pyro.inference.svi.svi import SVI

TrainingBatch = tuple[
    Any, Tensor, Columns
]  # inputs, targets as the likelihood uses them, weights and exposures


class JointModule(nn.Module):
    """Backbone and ELBO: what Fabric moves and casts.

    Parameters
    ----------
    backbone, elbo
        Its parts.
    run
        The backbone as it is run, behind ``torch.compile`` or not.
    """

    def __init__(self, backbone: nn.Module, elbo: BatchELBO, run: nn.Module) -> None:
        super().__init__()
        self.backbone, self.elbo = backbone, elbo
        self.run = [run]  # in a list: its parameters are those of the backbone
        self.is_frozen = False

    def features(self, inputs: Any) -> Tensor:
        """Features ``[B, D]`` of a batch of inputs; unless the backbone is frozen they depend on its parameters."""
        if self.is_frozen:
            with frozen(self.backbone):
                return compute_features(self.run[0], inputs)
        features = compute_features(self.run[0], inputs)
        if self.training and torch.is_grad_enabled() and not features.requires_grad:
            raise ValueError(
                "backbone: expected features that depend on the parameters to train, got features without gradient; take "
                "torch.no_grad() and detach() out of its forward, or leave backbone_learning_rate at None"
            )
        return features


class JointTraining(Training):
    """Training of backbone and guide on one device.

    Parameters
    ----------
    svi, options
        The inference, and how it trains the backbone.
    module
        What is trained.
    data, validation
        Rows of the fit, and rows whose predictive density is watched.
    fabric, seed
        Moves, casts, and takes gradients; seed of batches and draws.
    """

    name, title = "joint", "joint training"

    def __init__(
        self,
        svi: SVI,
        options: BackboneTraining,
        module: JointModule,
        data: TrainingData,
        validation: TrainingData | None,
        fabric: Any,
        seed: int,
    ) -> None:
        self.svi, self.options, self.module, self.fabric = svi, options, module, fabric
        self.data, self.validation, self.objective = data, validation, module.elbo.objective
        self.batch_size = min(svi.batch_size or 128, data.source.num_rows)
        self.order, self.random = generator(seed), generator(seed, fabric.device)
        optimizer = self.optimizer()
        self.backbone_optimizer = optimizer.parts[-1]
        self.wrapped, self.first_optimizer = fabric.setup(module, optimizer)
        self.average = None if options.ema_decay is None else MovingAverage(module, options.ema_decay)
        self.frame = module.elbo.frame  # for its constants of the targets
        self.kl_weight = 1.0
        self.rows_of_pass: list[int] = []  # of each pass that was of another length than the one before
        if validation is not None:
            self.validation_loss = self._validation_loss

    @property
    def log_scale(self) -> float:
        """Of all rows."""
        source = self.data.source
        return source.columns.total_weight(source.num_rows) * self.frame.log_target_scale

    def optimizer(self) -> Together:
        """Adam for the guide, and the optimizer of the backbone."""
        rate, backbone_rate = (
            self.svi.rate(self.objective.model.num_features),
            self.svi.backbone_learning_rate,
        )
        assert backbone_rate is not None
        return Together(
            adam(self.objective.parameters, rate),
            made_optimizer(self.module.backbone, backbone_rate, self.options),
        )

    def batches(self) -> Iterator[tuple[TrainingBatch, ...]]:
        """Groups of batches, one for each step; unfrozen parts of the backbone are in train mode."""
        set_training(self.module.backbone)
        self.module.elbo.train()
        num_rows = 0
        passed = self.data.batches(self.batch_size, self.order)
        for group in itertools.batched(passed, self.options.accumulate):
            num_rows += sum(len(targets) for _, targets, _ in group)
            yield group
        self._count(num_rows)

    def begin_step(self, is_frozen: bool, kl_weight: float) -> None:
        """Set what holds in the next step."""
        self.module.is_frozen = self.warms_up = is_frozen
        self.kl_weight = kl_weight

    def gradient(self, *group: TrainingBatch) -> Tensor:
        """By Fabric's backward pass, in the precision that was asked for: that of all rows of the group together."""
        self.first_optimizer.zero_grad()
        num_rows, total = (
            sum(len(targets) for _, targets, _ in group),
            torch.zeros((), device=self.fabric.device),
        )
        for batch in group:
            inputs, rows = self._placed(batch)
            with self.fabric.autocast():  # in which the guide has no part
                features = self.module.features(inputs)
            value = self.module.elbo.nats(features, rows, self.random, self.kl_weight, once=True)
            parts = num_rows / len(values_of(rows))
            # each batch estimates the whole ELBO, and so counts by its share of the rows
            self.fabric.backward(-value / (self.data.source.num_rows * parts))
            total = total + value.detach().float() / parts
        return total

    def end_step(self, num_done: int, clip_norm: float | None) -> None:
        """Move the parameters along their gradients, and their average after them; so many steps were done before."""
        if clip_norm is not None:  # by Fabric, which undoes the scale of half precision first
            self.fabric.clip_gradients(
                self.wrapped, self.first_optimizer, max_norm=clip_norm, error_if_nonfinite=False
            )
        self.first_optimizer.step()
        if self.average is not None:
            self.average.update(num_done)

    def attempt(self, *group: TrainingBatch) -> tuple[Tensor, Tensor, tuple[Any, ...]]:
        """In full precision, with the features in between: of the group's last batch, or the first that is not finite."""
        self.module.zero_grad()
        num_rows = sum(len(targets) for _, targets, _ in group)
        for batch in group:
            inputs, rows = self._placed(batch)
            design = self.module.elbo.design(self.module.features(inputs))
            value = self.objective(design, rows, self.random, self.kl_weight)
            (-value * len(values_of(rows)) / (self.data.source.num_rows * num_rows)).backward()
            found = value.detach(), design.detach()
            if not all_finite(found):
                break
        return *found, self.objective.pyro_arguments(found[1], rows)

    def state(self) -> StateCopy:
        """All parameters and buffers, those that are not saved too, and the average."""
        return snapshot(self.tensors)

    def restore(self, state: StateCopy) -> None:
        """Put parameters, buffers and average back."""
        restore(self.tensors, state)

    @property
    def tensors(self) -> list[Tensor]:
        """What a step changes."""
        average = [] if self.average is None else self.average.values
        return [*self.module.parameters(), *self.module.buffers(), *average]

    def generators(self) -> list[torch.Generator]:
        """Those of the batches, of a user's loader too, and of the draws."""
        return [self.order, self.random, *self.data.source.generators]

    def extra(self) -> dict[str, Any]:
        """What modules keep beside parameters and buffers, and the scale of the losses in half precision."""
        more = extra_states(self.module), self.fabric.strategy.precision.state_dict()
        return {**super().extra(), "modules": more[0], "precision": more[1], "warms_up": self.warms_up}

    def put_extra(self, extra: dict[str, Any]) -> None:
        """Put it back."""
        super().put_extra(extra)
        self.warms_up = extra["warms_up"]
        for name, value in extra["modules"].items():
            self.module.get_submodule(name).set_extra_state(value)
        self.fabric.strategy.precision.load_state_dict(extra["precision"])

    def averaged(self) -> AbstractContextManager[None]:
        """A block in which the average, where there is one, is in place."""
        return nullcontext() if self.average is None else self.average.in_place()

    def finish(self) -> None:
        """Leave what the fit holds in the backbone: the average, where there is one; and eval mode."""
        if self.average is not None:
            self.average.put()
        self.module.backbone.eval()

    def _validation_loss(self) -> float:
        assert self.validation is not None
        backbone = self.module.backbone
        with self.averaged(), frozen(backbone):
            posterior = self.posterior()
            placed = map(self._placed, self.validation.batches(self.batch_size))
            return held_out_loss(posterior, ((compute_features(backbone, x), rows) for x, rows in placed))

    def posterior(self) -> Posterior:
        """The posterior at the present parameters, in the frame of the present constants of the features."""
        return self.module.elbo.posterior()

    def messages(self) -> list[str]:
        """What is to be said of the data."""
        if len(self.rows_of_pass) < 2:
            return []
        first, second = self.rows_of_pass[:2]
        return [
            f"the data gave {first} rows in the first pass, and {second} in a later one: the schedule of the rates, and what "
            "counts epochs, hold for passes of one length; give a loader that begins anew in each pass"
        ]

    def _count(self, num_rows: int) -> None:
        """Note the rows of a pass; ValueError if there were none."""
        if not num_rows:
            after = f" after {self.rows_of_pass[-1]} in an earlier one" if self.rows_of_pass else ""
            raise ValueError(
                f"data: expected rows in every pass, got none{after}; give a loader (its sampler, its batch_sampler) that is not "
                "empty and begins anew in each pass"
            )
        if self.rows_of_pass[-1:] != [num_rows]:
            self.rows_of_pass.append(num_rows)

    def _placed(self, batch: TrainingBatch) -> tuple[Any, Targets]:
        """Inputs, and standardised targets with their columns, on the device."""
        inputs, targets, columns = batch
        inputs, targets = self.fabric.to_device((inputs, targets))
        columns = columns if columns is NO_COLUMNS else columns.to(self.module.elbo.units.center)
        return inputs, with_columns(self.frame.targets(targets), columns)
