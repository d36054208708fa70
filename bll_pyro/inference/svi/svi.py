"""Stochastic variational inference on features: the ELBO in output space, or Pyro's own for any other program."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from pyro.infer import Trace_ELBO
from pyro.nn import PyroModule
from torch import Tensor, nn

from bll_pyro.frame import Frame
from bll_pyro.gaussian import LatentGaussian
from bll_pyro.guides import MAP, Diagonal, GaussianGuide, Guide, Start
from bll_pyro.inference.base import Inference, Trace
from bll_pyro.inference.prior_scale.criteria import Criterion, CrossValidation, check_criterion
from bll_pyro.inference.prior_scale.held_out import held_out_loss
from bll_pyro.inference.prior_scale.search import (
    Fold,
    HeldOutLosses,
    ScaleGrid,
    ScalePath,
    fold_of,
    smallest_scale,
)
from bll_pyro.inference.prior_scale.side_by_side import FoldFits, principal
from bll_pyro.inference.rows import DesignRows
from bll_pyro.inference.schedule import adam, default_rate, half_cosine
from bll_pyro.inference.start import first_scales, warm_start
from bll_pyro.inference.svi.gaussian_start import dense_start
from bll_pyro.inference.svi.guide_draws import draw_guide
from bll_pyro.inference.svi.mean_field import MeanFieldStep
from bll_pyro.inference.svi.nonfinite import (
    NUM_PASSES,
    Attempt,
    all_finite,
    explain_nonfinite,
    restore,
    snapshot,
)
from bll_pyro.inference.svi.output_space import elbo, learn
from bll_pyro.inference.svi.plateau import PACE, Plateau
from bll_pyro.inference.targets import Targets, row_data, values_of, weight_of
from bll_pyro.layer import LastLayer
from bll_pyro.likelihoods.base import TargetShape
from bll_pyro.model import Model
from bll_pyro.posterior import DrawsPosterior, GaussianPosterior, Posterior
from bll_pyro.scope import generator

NUM_GUIDE_DRAWS = 1000  # of guides without a closed form
NUM_DRAWS = 8  # draws of each row for the ELBO that is reported
NUM_EVALUATED = 2**16  # or so many rows and draws in all
MAX_EVALUATED = 2**27  # and so many outputs of rows and draws
MAX_BLOCK = 4096  # rows evaluated at once; a joint covariance has K P numbers for each output of each
BLOCK_NUMBERS = 2**24  # or so many outputs
NUM_PATH_STEPS = 100  # at each scale of the path, from the fit at the scale before
MIN_STEPS = 300  # fewer have not reached an optimum whose scale could be compared

Learned = dict[str, Tensor]  # hyper-parameters without a distribution, by name


@dataclass(frozen=True, eq=False)
class SVI(Inference):
    """Raise the ELBO by stochastic gradients.

    Parameters
    ----------
    guide
        Variational family.
    learning_rate
        Step of Adam at the start; it falls to zero along a half cosine. None (default) takes 0.02, and beyond 128 features
        less: ``0.02 sqrt(128 / D)``.
    backbone_learning_rate
        Step for the backbone in joint training; None (default) leaves the backbone frozen.
    num_epochs
        Passes over the data. None (default) allows about 1,500 steps and at least 6 passes, and stops sooner where the
        ELBO has stopped rising beyond its noise: the rest of the schedule is then run through four times as fast.
    batch_size
        Rows a step; None takes 512, or all rows of a smaller data set.
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
        Precision of joint training as Lightning Fabric names it, e.g. ``"bf16-mixed"``.
    scale_criterion
        What decides on a prior scale that is not given, for guides whose weights are Gaussian or a point:
        ``criteria.CrossValidation()`` (default), which leaves it to the ELBO unless rows are few; ``criteria.LeaveOneOut()``,
        which is faster and less reliable; or ``criteria.Evidence()``, the scale of the highest ELBO. A fit that ``num_epochs``
        cuts to fewer than 300 steps takes the ELBO's in any case: others would be compared before they are there.
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
    scale_criterion: Criterion = CrossValidation()

    def __post_init__(self) -> None:
        check_criterion(self.scale_criterion, "SVI")
        if not isinstance(self.guide, Guide):
            raise TypeError(
                f"SVI(guide=...): expected a guide such as bll.guides.Diagonal(), got {self.guide!r}"
            )
        for name in ("learning_rate", "backbone_learning_rate", "clip_norm"):
            value = getattr(self, name)
            if value is None:
                continue
            if not isinstance(value, (int, float)) or not 0 < value < float("inf"):
                raise ValueError(f"SVI({name}=...): expected a positive number, got {value!r}")
        for name in ("num_epochs", "batch_size", "patience"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ValueError(f"SVI({name}=...): expected a whole number >= 1, got {value!r}")

    def check(self, layer: LastLayer, num_outputs: int, num_columns: int) -> None:
        """Every prior and likelihood will do; the guide must fit in memory."""
        self.guide.check_memory(num_outputs, num_columns)

    @property
    def trains_backbone(self) -> bool:
        """Whether the backbone is trained along: it has a learning rate."""
        return self.backbone_learning_rate is not None

    def train_backbone(
        self, layer: LastLayer, backbone: nn.Module, data: Any, seed: int, validation_data: Any, device: Any
    ) -> tuple[Posterior | None, Trace]:
        """Train backbone and guide together; no posterior where the final stage on frozen features follows."""
        from bll_pyro.inference.svi.joint import train_jointly

        posterior, trace = train_jointly(self, layer, backbone, data, seed, validation_data, device)
        return (None if self.final_stage else posterior), trace

    def on_features(self) -> SVI:
        """The final stage: the same guide on the final, frozen features, with enough steps to converge."""
        return replace(self, backbone_learning_rate=None, num_epochs=None, batch_size=None)

    def rotates(self, layer: LastLayer) -> bool:
        """Turn to principal axes where both guide and prior allow it."""
        return self.guide.can_rotate and layer.prior.can_rotate

    def rate(self, num_features: int) -> float:
        """Learning rate for rows of D features."""
        return self.learning_rate or default_rate(num_features)

    def epochs(self, num_rows: int, batch_size: int) -> int:
        """Number of passes over the data."""
        steps = -(-num_rows // batch_size)
        return self.num_epochs or max(6, -(-1500 // steps))

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

        def fitted(chosen: Learned | None) -> tuple[Objective, Trace]:
            objective = Objective(self, layer, model, self._guide(layer, model, rows, chosen), rows.num_rows)
            if chosen is not None:
                objective.hold(chosen)
            return objective, train(self, objective, rows, target_shape, seed, validation)

        objective, trace = fitted(None)
        size = rows.num_rows, model.num_outputs, rows.num_columns
        done = objective.chooses and trace.elbo is not None and len(trace.elbo) >= MIN_STEPS
        if done and trace.finite and self.scale_criterion.applies(layer, *size):
            chosen, statistics = choose_scale(self, objective, rows, target_shape, seed, trace)
            objective, trace = fitted(chosen)
            trace.statistics |= statistics
        posterior = replace(objective.posterior_in(rows.frame, target_shape), layer=declared)
        trace.statistics["elbo"] = objective.evaluate(rows, seed)
        trace.wall_time = time.perf_counter() - began
        return posterior, trace

    def _guide(self, layer: LastLayer, model: Model, rows: DesignRows, chosen: Learned | None) -> PyroModule:
        """The guide at its start; with scales that were chosen, or where those that are learned begin."""
        learned = {k: v.detach() for k, v in model.learned.items()} if chosen is None else chosen
        if chosen is None and not isinstance(self.guide, MAP):  # a point learns no scale
            learned = first_scales(learned, model.num_features)
        start = warm_start(layer, model.global_sites, rows, model.num_outputs, learned)
        if self.guide.wants_dense_start:
            start = dense_start(layer, model.global_sites, rows, start, learned)
        return self.guide.build(model, start)


class Objective:
    """The ELBO of one model and guide: a batch in, nats out, in output space where the guide allows it."""

    def __init__(self, svi: SVI, layer: LastLayer, model: Model, guide: PyroModule, num_rows: int) -> None:
        self.layer, self.model, self.guide, self.num_rows = layer, model, guide, num_rows
        self.closed = isinstance(guide, GaussianGuide) and layer.prior.has_density and svi.output_space
        self.learns = not isinstance(svi.guide, MAP)
        self.learning_rate = svi.rate(model.num_features)
        self.learned = {k: v.detach() for k, v in model.learned.items()}
        self.chooses = self.closed and bool(self.learned)
        self._trace_elbo = None if self.closed else Trace_ELBO()(model, guide)
        self._step: MeanFieldStep | None = None
        if self.closed and MeanFieldStep.applies(guide, layer, model.global_sites):
            self._step = MeanFieldStep(guide, layer, model.global_sites, num_rows)

    @property
    def parameters(self) -> list[nn.Parameter]:
        """What the optimiser moves. Learned scales are parameters only on Pyro's path; else they are solved for."""
        if self._trace_elbo is None or not self.learns:
            return list(self.guide.parameters())
        return [p for module in (self.guide, self.model) for p in module.parameters()]

    def hold(self, learned: dict[str, Tensor]) -> None:
        """Keep the learned scales at these values from now on."""
        self.learned, self.learns = learned, False
        if self._step is not None:
            self._step.hold(learned)

    def gradient(self, design: Tensor, targets: Targets, generator: torch.Generator) -> Tensor:
        """Put the gradient of ``-ELBO / N`` into the parameters; return the ELBO estimate in nats."""
        if self._step is not None:
            value = self._step(design, targets, generator)
            self.learned = self._step.learned
            return value
        for parameter in self.parameters:
            parameter.grad = None
        value = self(design, targets, generator)
        (-value / self.num_rows).backward()
        return value.detach()

    def prepare(self, rows: DesignRows) -> None:
        """Run Pyro's guide once, so that its parameters exist before the optimiser asks for them."""
        if self._trace_elbo is not None:
            self._example = self.pyro_arguments(*rows[:2])
            with torch.no_grad():
                self.guide(*self._example)

    def __call__(self, design: Tensor, targets: Targets, generator: torch.Generator | None) -> Tensor:
        """Estimate of the ELBO in nats from a batch."""
        if self._trace_elbo is not None:
            return -self._trace_elbo(*self.pyro_arguments(design, targets))
        latents = self.latents()
        if self.learns:
            self.learned = learn(self.layer, latents)
        return elbo(
            self.layer, self.model.global_sites, latents, design, targets, self.num_rows, self.learned, generator,
            is_point=self.guide.is_point,
        )  # fmt: skip

    def pyro_arguments(self, design: Tensor, targets: Targets) -> tuple[Any, ...]:
        features, exposure = design[:, : self.model.num_features], row_data(targets).get("exposure")
        plain = features, values_of(targets), self.num_rows
        weight = weight_of(targets)
        # guide functions of the user's take what the model takes: three arguments, and more only where there is more
        return plain if weight is None and exposure is None else (*plain, weight, exposure)

    def latents(self) -> LatentGaussian:
        """Gaussian over the unknowns at the current parameters."""
        return self.guide.latents()

    @torch.no_grad()
    def evaluate(self, rows: DesignRows, seed: int) -> float:
        """ELBO of all rows, averaged over eight draws of each; fewer where there are so many rows that they average out."""
        random = generator(seed + 1, rows.device)
        num_outputs = self.model.num_outputs
        most = min(NUM_EVALUATED // rows.num_rows, MAX_EVALUATED // (rows.num_rows * num_outputs))
        num_draws, size = max(1, min(NUM_DRAWS, most)), max(64, min(MAX_BLOCK, BLOCK_NUMBERS // num_outputs))
        total = 0.0
        for _ in range(num_draws):
            batches = [(float(self(d, t, random)), len(d)) for d, t in rows.blocks(size)]
            # each block estimates the whole ELBO from its rows, so blocks are averaged by their size
            total += sum(value * num_rows for value, num_rows in batches) / rows.num_rows
        return total / num_draws

    @torch.no_grad()
    def posterior_in(self, frame: Frame, target_shape: TargetShape) -> Posterior:
        """Freeze the guide into a posterior in a frame."""
        learned = (
            self.learned
            if self._trace_elbo is None
            else {k: v.detach() for k, v in self.model.learned.items()}
        )
        common = (self.layer, frame, target_shape, self.model.num_outputs, learned)
        if isinstance(self.guide, GaussianGuide):
            return GaussianPosterior(*common, latents=self.guide.latents().detach())
        draws, log_q = draw_guide(self.guide, self._example, self._free_sizes, NUM_GUIDE_DRAWS)
        if frame.rotation is not None:  # a turn keeps volumes, and so densities
            draws["weight"] = draws["weight"] @ frame.rotation.mT
        posterior = DrawsPosterior(*common, markov_chain=False, log_q=log_q)
        return replace(posterior, draws=posterior._present(draws))

    @property
    def _free_sizes(self) -> dict[str, int]:
        """Unconstrained numbers of each latent site."""
        model = self.model
        sizes = dict(zip(model.global_sites.priors, model.global_sites.sizes, strict=True))
        sizes["weight"] = math.prod(model.weight_shape)
        return sizes | ({"bias": model.num_outputs} if self.layer.bias else {})


def train(
    svi: SVI,
    objective: Objective,
    rows: DesignRows,
    target_shape: TargetShape,
    seed: int,
    validation: DesignRows | None,
) -> Trace:
    """Adam with a rate that falls along a half cosine; keeps the best state where there is validation data."""
    random = generator(seed, rows.device)
    batch_size = min(svi.batch_size or 512, rows.num_rows)
    num_epochs = svi.epochs(rows.num_rows, batch_size)
    objective.prepare(rows)
    parameters = objective.parameters
    optimizer = adam(parameters, objective.learning_rate)
    num_steps = num_epochs * -(-rows.num_rows // batch_size)
    history: list[Tensor] = []
    plateau = Plateau(num_steps)
    trace = Trace()
    before = latest = snapshot(parameters)
    best, best_loss, waited = latest, float("inf"), 0
    done, pace = 0, 1  # steps of the schedule that are behind, and how many of them one step takes
    for epoch in range(num_epochs):
        first = len(history)
        for design, targets in rows.batches(batch_size, random):
            optimizer.param_groups[0]["lr"] = objective.learning_rate * half_cosine(done / num_steps)
            history.append(objective.gradient(design, targets, random))
            if svi.clip_norm is not None:
                nn.utils.clip_grad_norm_(parameters, svi.clip_norm, foreach=True)
            optimizer.step()
            done += pace
            if plateau.look(history) and svi.num_epochs is None:
                pace = PACE
            if done >= num_steps:
                break
        if not all_finite([history[-1], *parameters]):
            # the state after an epoch is good only if the next loss, the first that is taken there, is finite
            good = latest if all_finite([history[first]]) else before
            restore(parameters, good)
            cause = what_went_wrong(svi, objective, rows, batch_size, random)
            restore(parameters, good)
            trace.stop(
                f"epoch {epoch + 1}: the loss is not finite, and the state before that epoch was kept; {cause}"
            )
            break
        before, latest = latest, snapshot(parameters)
        if validation is not None:
            loss = held_out_loss(objective.posterior_in(rows.frame, target_shape), validation.raw_blocks())
            trace.validation.append(loss)
            waited = 0 if loss < best_loss else waited + 1
            if loss < best_loss:
                best, best_loss = latest, loss
            if waited >= svi.patience:
                break
        if done >= num_steps:
            break
    conclude(trace, plateau)
    if validation is not None and trace.validation:
        restore(parameters, best)
    trace.elbo = torch.stack(history).cpu()
    return trace


def what_went_wrong(
    svi: SVI, objective: Objective, rows: DesignRows, batch_size: int, random: torch.Generator
) -> str:
    """Take some passes from the last good state, and say where they end."""

    def attempt(design: Tensor, targets: Targets) -> tuple[Tensor, Tensor, tuple[Any, ...]]:
        return objective.gradient(design, targets, random), design, objective.pyro_arguments(design, targets)

    def attempts() -> Iterator[Attempt]:
        for _ in range(NUM_PASSES):
            yield from (partial(attempt, *batch) for batch in rows.batches(batch_size, random))

    optimizer = adam(objective.parameters, objective.learning_rate)
    return explain_nonfinite(objective.guide, objective.model, optimizer, attempts())


def choose_scale(
    svi: SVI, objective: Objective, rows: DesignRows, target_shape: TargetShape, seed: int, trace: Trace
) -> tuple[Learned, dict[str, Tensor]]:
    """Hyper-parameters of the lowest held-out loss among the ELBO's times a common factor, and the losses on the way."""
    random, learned = generator(seed + 2, rows.device), objective.learned
    first = torch.cat([value.flatten() for value in learned.values()])
    lower = math.log(smallest_scale(rows)) - float(first.log().mean())
    num_folds = svi.scale_criterion.num_fits
    found: HeldOutLosses
    if num_folds > 1:
        assert trace.elbo is not None
        fits = fold_fits(svi, objective, rows, fold_of(rows.num_rows, num_folds, seed), len(trace.elbo))
        found = ScaleGrid(losses_at=lambda xs: fits.losses([scaled(learned, x) for x in xs], random))
        best = found.search(lower)
    else:
        found = left_out_path(svi, objective, rows, target_shape, random)
        best = found.search(snapshot(objective.parameters), lower)
    return scaled(learned, best), found.statistics(first)


def scaled(learned: Learned, x: float) -> Learned:
    """The hyper-parameters times ``exp(x)``."""
    return {name: value * math.exp(x) for name, value in learned.items()}


def fold_fits(svi: SVI, objective: Objective, rows: DesignRows, held_out: Tensor, num_steps: int) -> FoldFits:
    """Fits of folds beside the one of all rows; guides with a covariance get independent weights in principal axes."""
    sites, is_point = objective.model.global_sites, isinstance(svi.guide, MAP)
    plain_axes = isinstance(svi.guide, Diagonal) and not svi.guide.principal_axes
    layer, rotated = (objective.layer, rows) if plain_axes else principal(objective.layer, rows)
    values = sites.constrain(objective.latents().globals_loc.detach())[0]

    def start(part: DesignRows, learned: Learned) -> Start:
        return warm_start(layer, sites, part, objective.model.num_outputs, learned)

    return FoldFits(
        layer, rotated, held_out.to(rows.device), sites.noise(values), sites.hyper(values), start, is_point,
        num_steps, min(svi.batch_size or 512, rows.num_rows), objective.learning_rate,
    )  # fmt: skip


def left_out_path(
    svi: SVI, objective: Objective, rows: DesignRows, target_shape: TargetShape, random: torch.Generator
) -> ScalePath[list[Tensor]]:
    """Fits of all rows at one scale after the other, of which each row is left out by one step."""
    fold, learned = Fold(rows, None), objective.learned

    def fit_at(x: float, state: list[Tensor]) -> tuple[float, list[Tensor]]:
        restore(objective.parameters, state)
        objective.hold(scaled(learned, x))
        climb(svi, objective, rows, random, NUM_PATH_STEPS)
        posterior = objective.posterior_in(rows.frame, target_shape)
        assert isinstance(posterior, GaussianPosterior)
        return fold.loss(posterior) / rows.num_rows, snapshot(objective.parameters)

    return ScalePath(fit_at=fit_at)


def climb(svi: SVI, objective: Objective, rows: DesignRows, random: torch.Generator, num_steps: int) -> None:
    """Some steps of Adam from where the parameters are."""
    optimizer = adam(objective.parameters, objective.learning_rate)
    batch_size = min(svi.batch_size or 512, rows.num_rows)
    done = 0
    while done < num_steps:
        for design, targets in rows.batches(batch_size, random):
            optimizer.param_groups[0]["lr"] = objective.learning_rate * half_cosine(done / num_steps)
            objective.gradient(design, targets, random)
            if svi.clip_norm is not None:
                nn.utils.clip_grad_norm_(objective.parameters, svi.clip_norm, foreach=True)
            optimizer.step()
            done += 1
            if done == num_steps:
                break


def conclude(trace: Trace, plateau: Plateau) -> None:
    """Keep what was seen of the ELBO's rise; a fit that was cut short has its own message already."""
    if plateau.step is not None:
        trace.statistics["plateau"] = plateau.step
    elif trace.converged:
        trace.converged = not plateau.can_tell
        trace.messages.append(plateau.verdict())
