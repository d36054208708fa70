"""Joint training: backbone and guide together, each with its own rate, on features that move."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import torch
from torch import nn

from bll_pyro.features.forward import feature_width, trainable_parameters
from bll_pyro.inference.base import Trace
from bll_pyro.inference.standardization import target_moments
from bll_pyro.inference.svi.backbone_training import NUM_EPOCHS, BackboneTraining
from bll_pyro.inference.svi.batch_elbo import BatchELBO, check_moving
from bll_pyro.inference.svi.compiled_backbone import compiled_backbone
from bll_pyro.inference.svi.joint_steps import Course, JointStepper
from bll_pyro.inference.svi.joint_training import JointModule, JointTraining
from bll_pyro.inference.svi.loop import train
from bll_pyro.inference.training_data import TrainingData
from bll_pyro.layer import LastLayer
from bll_pyro.posterior import Posterior
from bll_pyro.scope import isolated

if TYPE_CHECKING:
    from bll_pyro.inference.svi.svi import SVI

NO_BOUND = "the ELBO of the first {} steps is no lower bound of the evidence: kl_warmup gave the KL divergence a weight below 1"


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
    options, num_epochs = svi.training or BackboneTraining(), svi.num_epochs or NUM_EPOCHS
    with isolated(seed, torch.float32):
        began = time.perf_counter()
        training = _prepared(svi, options, layer, backbone, data, seed, validation, device)
        # a last batch of one row joins the one before
        batched = data.source.num_rows - (training.batch_size > 1)
        num_batches = data.source.own_batches or -(-batched // training.batch_size)
        course = Course(options, -(-num_batches // options.accumulate), num_epochs)
        stepper = JointStepper(training, course, svi.clip_norm)
        trace = train(training, stepper, num_epochs, svi.patience, plateau=None, adapts=False)
        training.finish()
        trace.messages += training.messages()
        note_kl_weights(trace, course)
        trace.wall_time += time.perf_counter() - began
        return training.posterior(), trace


def note_kl_weights(trace: Trace, course: Course) -> None:
    """Say in the trace where the ELBO is no bound."""
    if not course.options.kl_warmup or trace.elbo is None:
        return
    weights = torch.tensor([course.kl_weight(done) for done in range(len(trace.elbo))])
    trace.statistics["kl_weight"] = weights
    trace.notes.append(NO_BOUND.format(int((weights < 1).sum())))


def _prepared(
    svi: SVI,
    options: BackboneTraining,
    layer: LastLayer,
    backbone: nn.Module,
    data: TrainingData,
    seed: int,
    validation: TrainingData | None,
    device: str | torch.device | None,
) -> JointTraining:
    """Everything that training needs, on its device."""
    from lightning_fabric import Fabric

    place = next(backbone.parameters(), torch.empty(0)).device if device is None else torch.device(device)
    devices = 1 if place.index is None or place.type == "cpu" else [place.index]
    fabric = Fabric(accelerator=place.type, devices=devices, precision=svi.precision)  # type: ignore[arg-type]
    example = data.source.example()[0]
    num_features = feature_width(backbone, example)
    check_trainable(backbone)
    _, center, scale = target_moments(layer, data)
    elbo = BatchELBO(layer, num_features, data.source.num_rows, data.target_shape, center, scale, svi, seed)
    fabric.to_device(backbone)
    run = compiled_backbone(backbone, example, options.compile)
    module = JointModule(backbone, elbo, run)
    return JointTraining(svi, options, module, data, validation, fabric, seed)


def check_trainable(backbone: nn.Module) -> None:
    """Raise a ValueError for a backbone that cannot be trained."""
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
