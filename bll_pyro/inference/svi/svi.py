"""``SVI``: stochastic variational inference on features, declared."""

from __future__ import annotations

import copy
import math
import time
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from pyro.nn import PyroModule
from torch import nn

from bll_pyro.checks import count, message, positive_or_none
from bll_pyro.declaration import LATER
from bll_pyro.guides import MAP, Diagonal, Flow, Guide
from bll_pyro.guides.flow import Bijection
from bll_pyro.inference.base import Inference, Trace
from bll_pyro.inference.prior_scale.choose import choose_scale
from bll_pyro.inference.prior_scale.criteria import Criterion, CrossValidation, Evidence, check_criterion
from bll_pyro.inference.prior_scale.held_out import held_out_loss
from bll_pyro.inference.rows import DesignRows
from bll_pyro.inference.start import warm_start
from bll_pyro.inference.svi.ascent import ascend, can_ascend, independent_start
from bll_pyro.inference.svi.backbone_training import NUM_EPOCHS, BackboneTraining
from bll_pyro.inference.svi.frozen import FeatureTraining
from bll_pyro.inference.svi.gaussian_start import dense_start
from bll_pyro.inference.svi.loop import train
from bll_pyro.inference.svi.objective import Learned, Objective, all_finite
from bll_pyro.inference.svi.plateau import Plateau
from bll_pyro.inference.svi.point_scale import scale_of_point
from bll_pyro.inference.svi.refit import SVIRefit
from bll_pyro.inference.svi.settle import can_settle, settle
from bll_pyro.inference.svi.train import Stepper
from bll_pyro.inference.training_data import TrainingData
from bll_pyro.layer import LastLayer
from bll_pyro.likelihoods.base import TargetShape
from bll_pyro.model import Model
from bll_pyro.posterior import Posterior
from bll_pyro.scope import generator

LEARNING_RATE = 0.02  # default rate, in units of standardised weights;
JOINT_LEARNING_RATE = (
    0.005  # the least where a backbone is trained along, whose features are about as they come;
)
MAX_FEATURES = 128  # these rates are for up to so many features
OUTPUT_SCALE = (
    4.0  # largest prior standard deviation of the outputs at the start, where the prior scale is learned
)
PRECISIONS = ("32-true", "64-true", "bf16-mixed", "bf16-true", "16-mixed", "16-true")
MIN_STEPS = 300  # fits of fewer steps are not at an optimum whose scale could be compared


@dataclass(frozen=True, eq=False)
class SVI(Inference):
    """Raise the ELBO by stochastic gradients.

    Parameters
    ----------
    guide
        Variational family; ``guides.Spline()`` or ``guides.InverseAutoregressive()`` stand for a ``guides.Flow`` of such layers.
    learning_rate
        Step of Adam at the start; it falls to zero along a half cosine. None (default) takes 0.02, and while a backbone is trained
        along the backbone's rate, as a plain head has it, but 0.005 at least; beyond 128 features ``sqrt(128 / D)`` of that.
    backbone_learning_rate
        Step for the backbone in joint training, of which :func:`bll_pyro.fit` keeps some rows out (``calibration``); None
        (default) leaves the backbone frozen. Features that move are centred, and divided by one number if their scale is below
        0.1 or above 1, by constants of the first 20 batches.
    num_epochs
        Passes over the data. None (default) allows about 1,500 steps and at least 6 passes, and stops sooner where the
        ELBO has stopped rising beyond its noise. Rounds on all rows then go on to the optimum of the ELBO, for up to 1,024
        unknowns, and say whether they reached it. With few rows (up to 4,096, and 16,384 outputs of theirs), independent
        weights and no setting of the steps (rate, batches, clipping) there are none: the ELBO is a fixed function then, and
        L-BFGS takes it to its maximum.
    batch_size
        Rows a step; None takes 512, or all rows of a smaller data set. In joint training None takes 128, a last batch of one
        row joins the one before, and a DataLoader keeps its own batches.
    clip_norm
        Largest norm of the gradient (of the ELBO a row) in a step; None (default) does not clip.
    patience
        With validation data: epochs without improvement before the fit stops. The best state is kept.
    output_space
        Draw outputs and not weights (local reparameterisation) where the guide's weights are Gaussian. False runs
        Pyro's ``Trace_ELBO`` on the same model and guide: the same expectation with more noise.
    final_stage
        After joint training, fit once more on the final features, with their own constants and principal axes.
    precision
        Precision of the backbone in joint training as Lightning Fabric names it, e.g. ``"bf16-mixed"``; the guide is in full
        precision.
    scale_criterion
        What decides on a prior scale that is not given, for guides whose weights are Gaussian or a point:
        ``criteria.Evidence()``, the scale of the highest ELBO; ``criteria.CrossValidation()``, which leaves it to the ELBO
        unless rows are few; or ``criteria.LeaveOneOut()``, which is faster and less reliable. None (default) takes the
        evidence, and for a point, which has none, cross-validation. A fit that ``num_epochs`` cuts to fewer than 300 steps
        takes the ELBO's in any case: others would be compared before they are there.
    training
        How the backbone is trained along, a :class:`bll_pyro.BackboneTraining`: optimizer, schedule, parameter groups,
        accumulation, moving average, and more. None (default) takes Adam and the half cosine.
    """

    guide: Guide = Diagonal()
    learning_rate: float | None = None
    backbone_learning_rate: float | None = None
    num_epochs: int | None = None
    batch_size: int | None = None
    clip_norm: float | None = None
    patience: int = 5
    output_space: bool = True
    final_stage: bool = True
    precision: str = "32-true"
    scale_criterion: Criterion | None = None
    training: BackboneTraining | None = field(default=None, metadata=LATER)

    def __post_init__(self) -> None:
        if self.scale_criterion is not None:
            check_criterion(self.scale_criterion, "SVI")
        if isinstance(self.guide, Bijection):  # a layer of a flow stands for the flow of such layers
            object.__setattr__(self, "guide", Flow(layer=self.guide))
        if not isinstance(self.guide, Guide):
            raise TypeError(
                f"SVI(guide=...): expected a guide such as bll.guides.Diagonal(), got {self.guide!r}"
            )
        for name in ("learning_rate", "backbone_learning_rate", "clip_norm"):
            positive_or_none(getattr(self, name), name, "SVI")
        for name in ("num_epochs", "batch_size", "patience"):
            value = getattr(self, name)
            if value is not None:
                count(value, name, "SVI")
        if self.precision not in PRECISIONS:
            raise ValueError(message("precision", "SVI", f"one of {', '.join(PRECISIONS)}", self.precision))
        self._check_training()

    def _check_training(self) -> None:
        """Raise unless the declaration of the backbone's training goes with the rest."""
        if self.training is None:
            return
        if not isinstance(self.training, BackboneTraining):
            raise TypeError(message("training", "SVI", "a bll.BackboneTraining(...)", self.training))
        if self.backbone_learning_rate is None:
            raise ValueError(
                "SVI(training=...): expected backbone_learning_rate beside it, without which the backbone is frozen, got None"
            )
        self.training.check_epochs(self.num_epochs or NUM_EPOCHS)

    def check(self, layer: LastLayer, num_outputs: int, num_columns: int) -> None:
        """Every prior and likelihood will do; the guide must fit in memory."""
        self.guide.check_memory(num_outputs, num_columns)

    @property
    def trains_backbone(self) -> bool:
        """Whether the backbone is trained along: it has a learning rate."""
        return self.backbone_learning_rate is not None

    def train_backbone(
        self,
        layer: LastLayer,
        backbone: nn.Module,
        data: TrainingData,
        seed: int,
        validation: TrainingData | None,
        device: str | torch.device | None,
    ) -> tuple[Posterior, Trace]:
        """Train backbone and guide together."""
        from bll_pyro.inference.svi.joint import train_jointly

        return train_jointly(self, layer, backbone, data, seed, validation, device)

    def on_features(self) -> SVI | None:
        """The final stage: the same guide on the final, frozen features, with enough steps to converge."""
        if not self.final_stage:
            return None
        stage = copy.copy(self)  # the other fields have been checked
        vars(stage).update(backbone_learning_rate=None, num_epochs=None, batch_size=None, training=None)
        return stage

    def rotates(self, layer: LastLayer) -> bool:
        """Turn to principal axes where both guide and prior allow it."""
        return self.guide.can_rotate and layer.prior.can_rotate

    def rate(self, num_features: int) -> float:
        """Learning rate for D features; the default beyond 128 of them is ``sqrt(128 / D)`` of that for fewer.

        Adam changes every weight by about the rate, whatever the size of its gradient, and so an output by up to the rate
        times the sum of the features. With more weights per output the weights are smaller, and so must be the steps.
        A guide that is slower than its backbone has not found noise and widths by the end of some hundred steps.
        """
        backbone = self.backbone_learning_rate
        default = LEARNING_RATE if backbone is None else max(JOINT_LEARNING_RATE, backbone)
        return self.learning_rate or default * min(1.0, math.sqrt(MAX_FEATURES / num_features))

    def run(
        self,
        layer: LastLayer,
        rows: DesignRows,
        target_shape: TargetShape,
        *,
        seed: int,
        validation: DesignRows | None = None,
    ) -> tuple[Posterior, Trace]:
        """Fit on features."""
        began = time.perf_counter()
        declared, layer = layer, layer.rotated(rows.frame.rotation)
        model = Model(layer, rows.frame.num_features, target_shape).to(rows.device)
        chosen = scale_of_point(layer, model, rows) if isinstance(self.guide, MAP) else None
        objective = self._objective(layer, model, rows, chosen)
        if not objective.closed:  # such a guide draws weights, and sees all rows
            rows = rows.gathered()
        fit = partial(self._fit, layer, model, rows, target_shape, seed, validation)
        criterion = self.scale_criterion or (CrossValidation() if objective.is_point else Evidence())
        chooses = objective.chooses and criterion.applies(
            layer, rows.num_rows, model.num_outputs, rows.num_columns
        )
        adapts = self.num_epochs is None and validation is None
        steps = (self.learning_rate, self.clip_norm, self.batch_size)  # what asks for steps of Adam
        ascends = adapts and steps == (None,) * 3 and not chooses and can_ascend(objective, rows)
        if ascends:
            trace = ascend(objective, rows.gathered())
        else:
            training, trace = fit(objective)
        assert trace.elbo is not None
        if chooses and len(trace.elbo) >= MIN_STEPS and all_finite([trace.elbo]):
            random = generator(seed + 2, rows.device)
            refit = SVIRefit(training, self.guide, target_shape, len(trace.elbo), self.clip_norm, random)
            x, path = choose_scale(criterion, refit, rows.gathered(), seed)
            objective = self._objective(layer, model, rows, refit.scaled(x))
            training, trace = fit(objective)
            trace.statistics |= path
        if not ascends and adapts and trace.finite and can_settle(objective, rows):
            settled = settle(objective, rows.gathered())
            if settled is not None:  # it knows better than the look at the ELBO of the steps
                trace.converged, trace.messages = True, []
                trace.statistics["distance"] = settled.distance
                for message in settled.messages():
                    trace.stop(message)
        posterior = replace(objective.posterior_in(rows.frame, target_shape), layer=declared)
        trace.statistics["elbo"] = objective.evaluate(rows, seed)
        trace.wall_time += time.perf_counter() - began
        return posterior, trace

    def _fit(
        self,
        layer: LastLayer,
        model: Model,
        rows: DesignRows,
        target_shape: TargetShape,
        seed: int,
        validation: DesignRows | None,
        objective: Objective,
    ) -> tuple[FeatureTraining, Trace]:
        """Take steps of Adam from the start."""
        batch_size = min(self.batch_size or 512, rows.num_rows)
        num_batches = -(-rows.num_rows // batch_size)
        num_epochs = self.num_epochs or max(6, -(-1500 // num_batches))
        rate, random = self.rate(model.num_features), rows.places.generator(seed, rows.device)
        training = FeatureTraining(objective, rows, batch_size, rate, random)
        if validation is not None:
            held_out = validation

            def loss() -> float:
                posterior = objective.posterior_in(rows.frame, target_shape)
                return held_out_loss(posterior, held_out.raw_blocks())

            training.validation_loss = loss
        num_steps = num_epochs * num_batches
        stepper = Stepper(training.optimizer(), num_steps, self.clip_norm)
        adapts = self.num_epochs is None
        return training, train(training, stepper, num_epochs, self.patience, Plateau(num_steps), adapts)

    def _objective(
        self, layer: LastLayer, model: Model, rows: DesignRows, chosen: Learned | None
    ) -> Objective:
        """The ELBO at the start, with learned scales or, where some were chosen, with those."""
        guide = self._guide(layer, model, rows, chosen)
        objective = Objective(layer, model, guide, rows.num_rows, self.output_space)
        if chosen is not None:
            objective.hold(chosen)
        return objective

    def _guide(self, layer: LastLayer, model: Model, rows: DesignRows, chosen: Learned | None) -> PyroModule:
        """The guide at its start; with scales that were chosen, or where those that are learned begin."""
        learned = {k: v.detach() for k, v in model.learned.items()} if chosen is None else chosen
        if chosen is None and not isinstance(self.guide, MAP):
            # with a scale of 1 for each of many weights the first mode fits every row, and the scale comes down slowly
            share = min(1.0, OUTPUT_SCALE / model.num_features**0.5)
            learned = {name: value * share for name, value in learned.items()}
        start = warm_start(layer, model.global_sites, rows, model.num_outputs, learned)
        if self.guide.begins == "dense":
            start = dense_start(layer, model.global_sites, rows, start, learned)
        if self.guide.begins == "independent":
            start = independent_start(layer, model, rows, start)
        return self.guide.build(model, start)
