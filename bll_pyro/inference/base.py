"""What an inference is: it turns a declaration and rows into a posterior and a trace of how it got there."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from bll_pyro.declaration import Declaration
from bll_pyro.inference.rows import DesignRows
from bll_pyro.inference.training_data import TrainingData
from bll_pyro.layer import LastLayer
from bll_pyro.likelihoods.base import TargetShape
from bll_pyro.posterior import Posterior
from bll_pyro.summary import Summary

if TYPE_CHECKING:
    from bll_pyro.inference.exact.statistics import SufficientStatistics


class FitWarning(UserWarning, RuntimeWarning):
    """A fit did not go as it should; the text says what to do. Each is also in ``fit.trace.messages``."""


@dataclass
class Trace(Summary):
    """What happened on the way.

    Parameters
    ----------
    elbo
        ELBO estimate of each step in nats (log joint density for MAP), ``[num_steps]``.
    validation
        Negative log likelihood on the validation data after each epoch, nats a row.
    wall_time
        Seconds.
    converged
        Whether the stopping test passed.
    messages
        What did not go as it should; ``bll.fit`` warns of each.
    notes
        What else is worth knowing, and no trouble.
    statistics
        What else the inference keeps, by name. What other parts of the library read has a property below.
    """

    elbo: Tensor | None = None
    validation: list[float] = field(default_factory=list)
    wall_time: float = 0.0
    converged: bool = True
    messages: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    statistics: dict[str, Any] = field(default_factory=dict)

    def stop(self, message: str) -> None:
        """Record that the fit did not go as it should."""
        self.converged = False
        self.messages.append(message)

    def end_early(self, what: str) -> None:
        """Record that a callback ended a stage, as it was asked to: no trouble, but not the optimum either."""
        self.converged = False
        self.notes.append(f"a callback ended {what}")

    @property
    def final_elbo(self) -> float | None:
        """ELBO of the result on all rows, nats (SVI)."""
        value = self.statistics.get("elbo")
        return None if value is None else float(value)

    @property
    def log_evidence(self) -> float | None:
        """Log evidence of the training targets, nats (Exact, Laplace)."""
        value = self.statistics.get("log_evidence")
        return None if value is None else float(value)

    @property
    def sums(self) -> SufficientStatistics | None:
        """Sums over the training rows, with which a fit can be updated (Exact)."""
        return self.statistics.get("sums")

    @property
    def joint(self) -> Trace | None:
        """Trace of the joint training with the backbone, where a final stage followed it."""
        return self.statistics.get("joint")

    @property
    def by_draw(self) -> dict[str, Any]:
        """What a sampler kept of each draw, arrays or tensors ``{name: [chain, draw]}``; empty for other inferences."""
        return self.statistics.get("sample_stats", {})

    @property
    def rhat(self) -> dict[str, Tensor] | None:
        """R-hat of each number, ``{site: [*event]}`` (NUTS)."""
        return self.statistics.get("rhat")

    @property
    def ess(self) -> dict[str, Tensor] | None:
        """Effective number of draws of each number, ``{site: [*event]}`` (NUTS)."""
        return self.statistics.get("ess")

    @property
    def finite(self) -> bool:
        """Whether every step's ELBO is finite."""
        return self.elbo is None or bool(torch.isfinite(self.elbo).all())

    @property
    def loss(self) -> Tensor | None:
        """``-elbo``."""
        return None if self.elbo is None else -self.elbo


class Inference(Declaration):
    """Turns (layer, rows) into (posterior, trace)."""

    family: ClassVar[str] = "inference"
    at_mode: ClassVar[bool] = (
        False  # the Gaussian is made of derivatives at its mean, and not of expectations
    )
    from_sums: ClassVar[bool] = False  # all that is needed of the rows are their sufficient statistics

    @abstractmethod
    def check(self, layer: LastLayer, num_outputs: int, num_columns: int) -> None:
        """Raise before any work starts if this layer, or its size, cannot be handled; name those that can."""

    @property
    def trains_backbone(self) -> bool:
        """Whether the backbone is trained along."""
        return False

    def train_backbone(
        self,
        layer: LastLayer,
        backbone: nn.Module,
        data: TrainingData,
        seed: int,
        validation: TrainingData | None,
        device: str | torch.device | None,
    ) -> tuple[Posterior, Trace]:
        """Train the backbone in place, and the last layer with it."""
        raise NotImplementedError(f"{type(self).__name__} leaves the backbone as it is")

    def on_features(self) -> Inference | None:
        """The inference of a final stage, on the frozen features of the trained backbone; None without such a stage."""
        return self

    def rotates(self, layer: LastLayer) -> bool:
        """Whether the frame should be rotated to the principal axes of the features."""
        return False

    @abstractmethod
    def run(
        self,
        layer: LastLayer,
        rows: DesignRows,
        target_shape: TargetShape,
        *,
        seed: int,
        validation: DesignRows | None = None,
    ) -> tuple[Posterior, Trace]:
        """Fit. ``layer`` is in the units of the frame of ``rows``; runs inside an isolated random state."""

    def update(
        self, layer: LastLayer, rows: DesignRows, target_shape: TargetShape, trace: Trace
    ) -> tuple[Posterior, Trace]:
        """Posterior of the rows of an earlier fit, whose ``trace`` knows them, and of these."""
        raise TypeError(
            f"update: expected a fit by bll.Exact(), which keeps the sums that it needs, got {type(self).__name__}; "
            "make the posterior the prior of the new rows with fit.as_prior(), or fit again on all rows"
        )
