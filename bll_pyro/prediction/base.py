"""What every prediction has: a decomposition that adds up, a log probability, and a table."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Shaped
from numpy.typing import NDArray
from torch import Tensor

from bll_pyro.classes import Classes, as_numbers
from bll_pyro.features.arrays import to_targets
from bll_pyro.features.tables import Table
from bll_pyro.observation import stage
from bll_pyro.prediction.verdict import Verdict
from bll_pyro.scope import own_modes
from bll_pyro.summary import Summary, spread

if TYPE_CHECKING:
    import pandas as pd


PARTS = ("total", "aleatoric", "epistemic")
JOINED_AT_ONCE = 32
MOST_NAMES = 12  # in an error
MOST_LABELS = 5  # whose rows are counted when a prediction is printed


@dataclass(frozen=True, eq=False)
class Prediction(Summary, ABC):
    """Posterior predictive of N rows.

    ``total = aleatoric + epistemic`` for each row: nats of entropy for classes, variances in the user's units
    squared otherwise. ``ood`` is the verdict of the fit's detector, where it has one. ``shuffled``: the rows came from a
    DataLoader in another order than its dataset's, so that no targets can be matched to them. ``table``: library and index of the
    data frame that they came in, where they did.
    """

    total: Float[Tensor, "N ..."]
    aleatoric: Float[Tensor, "N ..."]
    epistemic: Float[Tensor, "N ..."]
    ood: Verdict | None = field(default=None, kw_only=True)
    shuffled: bool = field(default=False, kw_only=True)
    table: Table | None = field(default=None, kw_only=True, repr=False)

    def __len__(self) -> int:
        """Number of rows N."""
        return len(self.total)

    @property
    def coding(self) -> Classes | None:
        """The classes, which turn labels into numbers and back; None where there are none, or labels are the numbers."""
        return None

    @property
    def classes(self) -> NDArray[Any] | None:
        """Labels of the classes ``[C]``, of the type that they came in; None where these are the numbers from 0 to C - 1."""
        return None if self.coding is None else self.coding.array.copy()

    def class_numbers(self, targets: Any) -> Shaped[Tensor, "N ..."]:
        """Labels of the predicted rows as class numbers ``[N]``, which :mod:`bll_pyro.metrics` take beside ``probs``."""
        return as_targets(targets, self)

    def lines(self) -> dict[str, str]:
        """What is printed of the prediction, by name: of numbers their mean and range over the rows."""
        names = ("label", "confidence", "mean", "scale", "total", "aleatoric", "epistemic")
        found = {}
        for name in names:
            if hasattr(self, name):
                found[name] = "" if name == "label" else spread(getattr(self, name))
        if "label" in found:
            given: NDArray[Any] = as_array(self.label)  # type: ignore[attr-defined]
            labels, counts = np.unique(given, return_counts=True)
            pairs = list(zip(labels.tolist(), counts.tolist(), strict=True))
            found["label"] = ", ".join(f"{label}: {count:,} rows" for label, count in pairs[:MOST_LABELS])
            found["label"] += f", and {len(pairs) - MOST_LABELS} more" if len(pairs) > MOST_LABELS else ""
        alarms = {} if self.ood is None else {"ood": f"alarm in {int(self.ood.is_ood.sum()):,} rows"}
        return {"rows": f"{len(self):,}"} | found | alarms

    @abstractmethod
    def log_prob(self, targets: Any) -> Float[Tensor, " N"]:
        """Log density or probability of targets under the predictive, nats, ``[N]``."""

    @abstractmethod
    def _shown(self, prob: float | None) -> dict[str, Any]:
        """What :meth:`to_frame` shows, by name: arrays or tensors ``[N]``, or ``[N, T]`` with one column for each target."""

    @own_modes(gradients=False)
    def to_frame(self, prob: float | None = 0.9, columns: Sequence[str] | None = None) -> Any:
        """One line for each row, in a data frame of the library that the inputs came in, with their index; else of pandas.

        ============= ==============================================================================================
        prediction    columns
        ============= ==============================================================================================
        of classes    ``label``, ``confidence``, a probability of each class (``p0``, or ``p_cat`` by its label)
        of labels 0/1 ``label``, ``confidence``, ``probs``: the probability of 1
        of numbers    ``mean``, ``scale``, and the ends ``lower`` and ``upper`` of an equal-tailed interval
        all           ``total``, ``aleatoric``, ``epistemic``; with a detector ``is_ood``, ``ood_p_value``, ``ood_score``
        ============= ==============================================================================================

        Of T targets there is a column for each: ``mean_0``, ``mean_1``, ...

        Parameters
        ----------
        prob
            Probability of the interval; None leaves its ends out, which take longer than all the rest.
        columns
            Names of the columns to keep, in this order; None keeps all. With many classes it leaves their probabilities out.

        Raises
        ------
        ValueError
            For a column that is not there.
        """
        return self._frame(Table() if self.table is None else self.table, prob, columns)

    @own_modes(gradients=False)
    def to_pandas(self, prob: float | None = 0.9, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """The same as :meth:`to_frame`, always as a frame of pandas."""
        return self._frame(Table() if self.table is None else self.table.in_pandas, prob, columns)

    def _frame(self, table: Table, prob: float | None, columns: Sequence[str] | None) -> Any:
        shown = self._shown(prob) | {name: getattr(self, name) for name in PARTS}
        if self.ood is not None:
            shown |= {"is_ood": self.ood.is_ood, "ood_p_value": self.ood.p_value, "ood_score": self.ood.score}
        return framed(table, shown, columns)

    @classmethod
    @abstractmethod
    def concat(cls, parts: list[Any]) -> Prediction:
        """Join the predictions of several batches."""


def framed(table: Table, shown: Mapping[str, Any], kept: Sequence[str] | None = None) -> Any:
    """Arrays and tensors ``[N]`` by name as a data frame, with columns ``name_t`` for each target t of those ``[N, T]``."""
    columns: dict[str, np.ndarray] = {}
    for name, given in shown.items():
        values = as_array(given)
        columns |= {name: values} if values.ndim == 1 else {f"{name}_{t}": v for t, v in enumerate(values.T)}
    if kept is not None:
        unknown = [name for name in kept if name not in columns]
        if unknown or isinstance(kept, str) or not kept:
            some = ", ".join(list(columns)[:MOST_NAMES]) + (", ..." if len(columns) > MOST_NAMES else "")
            got = unknown[0] if unknown else kept
            raise ValueError(
                f"columns: expected a list of some of {some}, got {got!r}; leave it out to keep all"
            )
        columns = {name: columns[name] for name in kept}
    return table.frame(columns)


def gathered(parts: Iterable[Prediction], num_rows: int) -> Prediction:
    """Join the predictions of batches as they come, of N rows together.

    First a few at a time: thousands of small arrays between larger ones would fragment the memory.
    """
    some: list[Prediction] = []
    many: list[Prediction] = []
    with stage("prediction", num_rows, rows_per_step=1) as done:
        for part in parts:
            some.append(part)
            done.advance(len(part))
            if len(some) == JOINED_AT_ONCE:
                many.append(type(part).concat(some))
                some.clear()
    many += some
    return type(many[0]).concat(many)


def as_array(values: Tensor | NDArray[Any]) -> NDArray[Any]:
    """Values of a prediction in an array: those of a tensor, or labels."""
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else values


def as_targets(targets: Any, prediction: Prediction) -> Shaped[Tensor, "N ..."]:
    """Targets in any form as a tensor, labels as class numbers; ValueError unless there is one for each row, in a known order."""
    if prediction.shuffled:
        raise ValueError(
            "targets: expected predictions of rows in a fixed order, the order of the targets, got those of a DataLoader that "
            "shuffles; predict its dataset, or a loader with shuffle=False"
        )
    given = to_targets(targets, "targets")
    values = as_numbers(given, prediction.coding, "targets", "pass numbers, as in training")
    if values.dim() == 0 or len(values) != len(prediction):
        raise ValueError(
            f"targets: expected one for each of the {len(prediction)} predicted rows, got shape {list(values.shape)}; "
            "pass the targets of the same rows in the same order"
        )
    return values
