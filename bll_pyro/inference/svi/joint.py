"""Joint training: backbone and guide together, each with its own rate, on features that move."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bll_pyro.features.columns import Columns
from bll_pyro.features.data import Source, check_finite, read
from bll_pyro.features.forward import compute_features, feature_width
from bll_pyro.features.freezing import frozen, set_training, trainable_parameters
from bll_pyro.frame import Frame
from bll_pyro.guides import Start
from bll_pyro.inference.base import Trace
from bll_pyro.inference.prior_scale.held_out import held_out_loss
from bll_pyro.inference.schedule import BETAS, half_cosine
from bll_pyro.inference.standardization import target_moments
from bll_pyro.inference.start import median_sites
from bll_pyro.inference.svi.nonfinite import NUM_PASSES, all_finite, explain_nonfinite
from bll_pyro.inference.targets import with_columns
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
        """Update the averages in training, then standardise ``[B, D]``."""
        if not self.active:
            return features
        if self.training and len(features) > 1:
            with torch.no_grad():
                values = features.float()
                # a plain average at first, so that the start is not remembered
                step = max(self.momentum, 1 / (self.num_batches + 1))
                self.center.lerp_(values.mean(0), step)
                self.variance.lerp_(values.var(0).mean(), step)
                self.num_batches += 1
        return (features - self.center) / self.variance.clamp_min(1e-12).sqrt()


class JointModule(nn.Module):
    """Inputs and targets in, the ELBO of their batch out: what Fabric moves, casts and, later, distributes."""

    def __init__(self, backbone: nn.Module, scale: RunningScale, objective: Any, bias: bool) -> None:
        super().__init__()
        self.backbone, self.scale = backbone, scale
        self.guide, self.model = objective.guide, objective.model
        self.objective, self.bias = [objective], bias  # in a list: not another submodule

    def design(self, inputs: Any) -> Tensor:
        """Design matrix ``[B, P]`` of a batch of inputs."""
        values = self.scale(compute_features(self.backbone, inputs))
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
        return self.objective[0](
            self.design(inputs), with_columns(targets, Columns(weight, exposure)), generator
        )


@dataclass
class JointTraining:
    """One joint training run."""

    svi: SVI
    layer: LastLayer
    backbone: nn.Module
    data: Source
    seed: int
    held_out: Source | None
    device: str | torch.device | None

    def run(self) -> tuple[Posterior, Trace]:
        """Train; the backbone is changed in place and left in eval mode."""
        from lightning_fabric import Fabric

        from bll_pyro.inference.svi.svi import Objective

        began = time.perf_counter()
        device = torch.device(self.device) if self.device is not None else None
        accelerator = "cpu" if device is None else device.type
        fabric = Fabric(accelerator=accelerator, devices=1, precision=self.svi.precision)  # type: ignore[arg-type]
        example, example_targets = self.data.example()
        assert example_targets is not None
        num_features = feature_width(self.backbone, example)
        target_shape = tuple(example_targets.shape[1:]) if not self.layer.likelihood.is_discrete else ()
        frame = self._frame(num_features)
        if self.layer.raw_center and self.layer.standardize:
            raise ValueError(
                "LastLayer(raw_center=True): expected standardize=False where a backbone is trained along, since the constants "
                "of its features move, got standardize=True; with LastLayer.from_linear(..., standardize=False) the prior is "
                "centred at the head on the features as they come"
            )
        layer = self.layer.in_frame(frame)
        model = Model(layer, num_features, target_shape)
        self.svi.check(layer, model.num_outputs, num_features + int(layer.bias))
        guide = self.svi.guide.build(model, self._start(model, num_features, layer.bias))
        objective = Objective(self.svi, layer, model, guide, self.data.num_rows)
        module = JointModule(
            self.backbone, RunningScale(num_features, active=layer.standardize), objective, layer.bias
        )
        optimizer = self._optimizer(objective)
        wrapped, optimizer = fabric.setup(module, optimizer)
        trace = self._train(fabric, wrapped, module, optimizer, frame, target_shape, objective)
        trace.wall_time = time.perf_counter() - began
        self.backbone.eval()
        return objective.posterior_in(self._final(frame, module), target_shape), trace

    def _frame(self, num_features: int) -> Frame:
        num_targets, center, scale = target_moments(self.layer, self.data)
        like = torch.empty(0)
        frame = Frame.identity(num_features, num_targets, like, self.layer.bias)
        return replace(frame, target_center=center.to(like), target_scale=scale.to(like))

    def _final(self, frame: Frame, module: JointModule) -> Frame:
        """The frame with the running averages as they are now."""
        scale = module.scale
        if not scale.active:
            return frame.to(scale.center.device)
        common = scale.variance.clamp_min(1e-12).sqrt().expand_as(scale.center).clone()
        return replace(frame.to(scale.center.device), center=scale.center.clone(), scale=common)

    def _start(self, model: Model, num_features: int, bias: bool) -> Start:
        like = torch.empty(0)
        num_columns = num_features + int(bias)
        # scales of a posterior that has seen N rows with a quarter of unit information each
        scale = torch.full((model.num_outputs, num_columns), (1 + 0.25 * self.data.num_rows) ** -0.5)
        # the centre of the prior, a given head or 0; a fresh network starts in random directions, so that the backbone
        # gets a gradient at once
        loc = model.layer.center(scale)
        if not bool(loc.any()):
            loc = torch.randn(scale.shape, generator=generator(self.seed)) / num_columns**0.5
        return Start(median_sites(model.global_sites, like), loc, scale, num_features)

    def _optimizer(self, objective: Any) -> torch.optim.Optimizer:
        moving = trainable_parameters(self.backbone)
        if not moving:
            raise ValueError(
                "backbone: expected parameters to train, got none with requires_grad; "
                "unfreeze some (timm_backbone(..., unfreeze=True)) or leave backbone_learning_rate at None"
            )
        groups = [
            {"params": objective.parameters, "lr": objective.learning_rate},
            {"params": moving, "lr": self.svi.backbone_learning_rate},
        ]
        return torch.optim.Adam(groups, betas=BETAS)

    def _train(
        self,
        fabric: Any,
        wrapped: Any,
        module: JointModule,
        optimizer: Any,
        frame: Frame,
        target_shape: tuple[int, ...],
        objective: Any,
    ) -> Trace:
        svi, num_rows = self.svi, self.data.num_rows
        batch_size = min(svi.batch_size or 128, num_rows)
        num_epochs = svi.num_epochs or 20
        num_steps = num_epochs * -(-num_rows // batch_size)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: half_cosine(step / num_steps))
        random, order = generator(self.seed, fabric.device), generator(self.seed)
        frame = frame.to(fabric.device)
        history: list[Tensor] = []
        trace = Trace()
        before = latest = state(module)
        best, best_loss, waited = latest, float("inf"), 0
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        with progress(num_epochs, "joint training") as advance:
            for epoch in range(num_epochs):
                set_training(self.backbone)
                module.scale.train()
                first = len(history)
                for inputs, targets, columns in self._batches(self.data, batch_size, order, fabric):
                    value = wrapped(inputs, frame.targets(targets), random, columns.weight, columns.exposure)
                    optimizer.zero_grad()
                    fabric.backward(-value / num_rows)
                    if svi.clip_norm is not None:
                        nn.utils.clip_grad_norm_(parameters, svi.clip_norm)
                    optimizer.step()
                    schedule.step()
                    history.append(value.detach().float())
                recent = history[-1]
                if not all_finite([recent]):
                    # the state after an epoch is good only if the next loss, the first that is taken there, is finite
                    good = latest if all_finite([history[first]]) else before
                    module.load_state_dict(good)
                    cause = self._what_went_wrong(fabric, module, frame, objective, batch_size, order, random)
                    module.load_state_dict(good)
                    trace.stop(
                        f"epoch {epoch + 1}: the loss is not finite, and the state before that epoch was kept; {cause}"
                    )
                    break
                before, latest = latest, state(module)
                advance(1, f"ELBO a row {float(recent) / num_rows:.3f}")
                if self.held_out is None:
                    continue
                loss = self._held_out_loss(module, frame, target_shape, objective, fabric, batch_size)
                trace.validation.append(loss)
                waited = 0 if loss < best_loss else waited + 1
                if loss < best_loss:
                    best, best_loss = latest, loss
                if waited >= svi.patience:
                    break
        if trace.validation:
            module.load_state_dict(best)
        trace.elbo = torch.stack(history).cpu()
        return trace

    def _what_went_wrong(
        self,
        fabric: Any,
        module: JointModule,
        frame: Frame,
        objective: Any,
        batch_size: int,
        order: torch.Generator,
        random: torch.Generator,
    ) -> str:
        """Take some passes from the last good state, and say where they end."""
        optimizer = self._optimizer(objective)

        def attempt(inputs: Any, targets: Tensor, columns: Columns) -> tuple[Tensor, Tensor, tuple[Any, ...]]:
            optimizer.zero_grad()
            design = module.design(inputs)
            inside = with_columns(frame.targets(targets), columns)
            value = objective(design, inside, random)
            (-value / self.data.num_rows).backward()
            return value.detach(), design.detach(), objective.pyro_arguments(design.detach(), inside)

        passes = (self._batches(self.data, batch_size, order, fabric) for _ in range(NUM_PASSES))
        attempts = (partial(attempt, *batch) for batches in passes for batch in batches)
        return explain_nonfinite(objective.guide, objective.model, optimizer, attempts)

    def _batches(
        self, source: Source, batch_size: int, order: torch.Generator | None, fabric: Any
    ) -> Iterator[tuple[Any, Tensor, Columns]]:
        for inputs, targets, columns in source.batches_with_columns(batch_size, generator=order):
            if isinstance(inputs, Tensor):
                check_finite(inputs, "inputs")
            checked = fabric.to_device((inputs, self.layer.likelihood.check_targets(targets)))
            yield *checked, columns.to(torch.zeros((), device=fabric.device)) if columns else columns

    def _held_out_loss(
        self,
        module: JointModule,
        frame: Frame,
        target_shape: tuple[int, ...],
        objective: Any,
        fabric: Any,
        batch_size: int,
    ) -> float:
        assert self.held_out is not None
        posterior = objective.posterior_in(self._final(frame, module), target_shape)
        with frozen(self.backbone):
            rows = (
                (compute_features(self.backbone, x), with_columns(frame.targets(y), columns))
                for x, y, columns in self._batches(self.held_out, batch_size, None, fabric)
            )
            return held_out_loss(posterior, rows)


def state(module: nn.Module) -> dict[str, Tensor]:
    """Copy of all parameters and buffers."""
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def train_jointly(
    svi: SVI,
    layer: LastLayer,
    backbone: nn.Module,
    data: Any,
    seed: int,
    validation_data: Any = None,
    device: str | torch.device | None = None,
) -> tuple[Posterior, Trace]:
    """Train backbone (in place) and guide together; return the posterior over the last features."""
    with isolated(seed, torch.float32):
        source = read(data, need_targets=True, min_rows=2)
        held_out = (
            None
            if validation_data is None
            else read(validation_data, need_targets=True, what="validation_data")
        )
        return JointTraining(svi, layer, backbone, source, seed, held_out, device).run()
