"""The steps of joint training: rates and weights by the number of steps that are done, and what follows each step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from bll_pyro.inference.svi.backbone_optimizer import made_scheduler
from bll_pyro.inference.svi.backbone_training import BackboneTraining
from bll_pyro.inference.svi.joint_training import JointTraining
from bll_pyro.inference.svi.train import Stepper, half_cosine
from bll_pyro.scope import without_warnings


@dataclass(frozen=True)
class Course:
    """What holds at each step, as a function of the number t of steps before it.

    Parameters
    ----------
    options
        As declared.
    epoch_steps, num_epochs
        Steps in a pass, and passes.
    """

    options: BackboneTraining
    epoch_steps: int
    num_epochs: int

    @property
    def num_steps(self) -> int:
        """Steps in all passes."""
        return self.num_epochs * self.epoch_steps

    @property
    def num_frozen(self) -> int:
        """Steps on the frozen backbone, the first ones."""
        return self.options.frozen_epochs * self.epoch_steps

    def rate_factor(self, done: int) -> float:
        """Factor of the backbone's rates: the line of the warm-up, then the schedule with a name."""
        since, whole = done - self.num_frozen, self.num_steps - self.num_frozen
        warmup = round(self.options.warmup * self.epoch_steps)
        if since < warmup:
            return line(since, warmup)
        return (
            1.0 if self.options.schedule == "constant" else half_cosine((since - warmup) / (whole - warmup))
        )

    def kl_weight(self, done: int) -> float:
        """Weight of the Kullback-Leibler divergence; below 1 the ELBO is no bound."""
        return line(done, math.ceil(self.options.kl_warmup * self.epoch_steps))


def line(done: int, length: int) -> float:
    """``(t + 1) / (w + 1)`` up to 1."""
    return min((done + 1) / (length + 1), 1.0)


class JointStepper(Stepper):
    """Takes the steps of joint training: guide and backbone, each with its own rates; first those on the frozen backbone.

    Parameters
    ----------
    training, course
        What is trained, and what holds at each step.
    clip_norm
        Largest norm of the gradient; None does not clip.
    """

    def __init__(self, training: JointTraining, course: Course, clip_norm: float | None) -> None:
        super().__init__(training.first_optimizer, course.num_steps, clip_norm)
        self.training, self.course = training, course
        num_steps = course.num_steps - course.num_frozen
        self.scheduler = made_scheduler(training.backbone_optimizer, course.options, num_steps)

    def begin(self) -> None:
        """Set what holds in the next step."""
        (guide, guide_rate), *backbone = zip(self.optimizer.param_groups, self.rates, strict=True)
        guide["lr"] = guide_rate * half_cosine(self.done / self.num_steps)
        if self.scheduler is None:
            for group, rate in backbone:
                group["lr"] = rate * self.course.rate_factor(self.done)
        self.training.begin_step(self.done < self.course.num_frozen, self.course.kl_weight(self.done))

    def move(self) -> None:
        """Move the parameters along their gradients; the scheduler follows."""
        self.training.end_step(self.done, self.clip_norm)
        if self.scheduler is not None and self.done >= self.course.num_frozen:
            # a scaler of gradients leaves out a step whose gradients are not finite
            with without_warnings("Detected call of `lr_scheduler.step"):
                self.scheduler.step()

    def state(self) -> dict[str, Any]:
        """What the next step depends on, but for the parameters."""
        return {
            **super().state(),
            "scheduler": None if self.scheduler is None else self.scheduler.state_dict(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Put a state back."""
        super().restore(state)
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state["scheduler"])
