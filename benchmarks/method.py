"""The interface of a benchmarked method: a name, fit, predict, and optionally one training step."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec

from torch import Tensor


@dataclass(frozen=True)
class ClassPrediction:
    """Class probabilities ``[N, K]`` and mutual information ``[N]`` in nats, None for methods without it."""

    probs: Tensor
    epistemic: Tensor | None = None


Predict = Callable[[Tensor], ClassPrediction]
Step = Callable[[], None]


@dataclass(frozen=True)
class Method:
    """A method that fits a classifier to features.

    Attributes
    ----------
    name : str
        Name in the tables.
    fit : callable
        ``fit(features [N, D], targets [N], num_classes, seed) -> predict``, and ``predict(features) ->
        ClassPrediction``. All work that depends on the data happens inside, standardisation and tuning included.
    step : callable or None
        ``step(features, targets, num_classes, batch_size, seed) -> run``; each ``run()`` takes the next batch of the
        features and makes one optimiser step. None: the method has no such step.
    note : str
        Its settings, in one line.
    requires : str or None
        Name of a module that it needs; without the module the method is left out, and the report says so.
    """

    name: str
    fit: Callable[[Tensor, Tensor, int, int], Predict]
    step: Callable[[Tensor, Tensor, int, int, int], Step] | None = None
    note: str = ""
    requires: str | None = None

    @property
    def is_available(self) -> bool:
        """Whether the module that the method needs is installed."""
        return self.requires is None or find_spec(self.requires) is not None
