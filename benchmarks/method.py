"""What a benchmarked method is: a name, a way to fit, a way to predict, and perhaps one training step."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec

from torch import Tensor


@dataclass(frozen=True)
class ClassPrediction:
    """Class probabilities ``[N, K]`` and, from a method that has it, mutual information ``[N]`` in nats."""

    probs: Tensor
    epistemic: Tensor | None = None


Predict = Callable[[Tensor], ClassPrediction]
Step = Callable[[], None]


@dataclass(frozen=True)
class Method:
    """One way to put a classifier on features.

    Attributes
    ----------
    name : str
        As the tables show it.
    fit : callable
        ``fit(features [N, D], targets [N], num_classes, seed) -> predict``, and ``predict(features) ->
        ClassPrediction``. All work that depends on the data happens inside, standardisation and tuning included.
    step : callable or None
        ``step(features, targets, num_classes, batch_size, seed) -> run``; each ``run()`` takes the next batch out
        of the features and makes one whole optimiser step. None: the method has no such step.
    note : str
        How it was set up, in a line.
    requires : str or None
        Module that must be there; the method is left out, by name, where it is not.
    """

    name: str
    fit: Callable[[Tensor, Tensor, int, int], Predict]
    step: Callable[[Tensor, Tensor, int, int, int], Step] | None = None
    note: str = ""
    requires: str | None = None

    @property
    def is_available(self) -> bool:
        """Whether the module that the method needs can be found."""
        return self.requires is None or find_spec(self.requires) is not None
