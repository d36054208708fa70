"""What every prediction has: a decomposition that adds up, a log probability, and a table."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from jaxtyping import Float, Shaped
from torch import Tensor

from bll_pyro.features.arrays import to_tensor
from bll_pyro.observation import stage
from bll_pyro.prediction.verdict import Verdict
from bll_pyro.summary import Summary, spread

if TYPE_CHECKING:
    import pandas as pd


JOINED_AT_ONCE = 32
MOST_LABELS = 5  # whose rows are counted when a prediction is printed


@dataclass(frozen=True, eq=False)
class Prediction(Summary, ABC):
    """Posterior predictive of N rows.

    ``total = aleatoric + epistemic`` for each row: nats of entropy for classes, variances in the user's units
    squared otherwise. ``ood`` is the verdict of the fit's detector, where it has one. ``shuffled``: the rows came from a
    DataLoader in another order than its dataset's, so that no targets can be matched to them.
    """

    total: Float[Tensor, "N ..."]
    aleatoric: Float[Tensor, "N ..."]
    epistemic: Float[Tensor, "N ..."]
    ood: Verdict | None = field(default=None, kw_only=True)
    shuffled: bool = field(default=False, kw_only=True)

    def __len__(self) -> int:
        """Number of rows N."""
        return len(self.total)

    def lines(self) -> dict[str, str]:
        """What is printed of the prediction, by name: of numbers their mean and range over the rows."""
        names = ("label", "confidence", "mean", "scale", "total", "aleatoric", "epistemic")
        found = {name: spread(getattr(self, name)) for name in names if hasattr(self, name)}
        if "label" in found:
            labels, counts = self.label.unique(return_counts=True)  # type: ignore[attr-defined]
            pairs = list(zip(labels.tolist(), counts.tolist(), strict=True))
            found["label"] = ", ".join(f"{label:g}: {count:,} rows" for label, count in pairs[:MOST_LABELS])
            found["label"] += f", and {len(pairs) - MOST_LABELS} more" if len(pairs) > MOST_LABELS else ""
        alarms = {} if self.ood is None else {"ood": f"alarm in {int(self.ood.is_ood.sum()):,} rows"}
        return {"rows": f"{len(self):,}"} | found | alarms

    @abstractmethod
    def log_prob(self, targets: Any) -> Float[Tensor, " N"]:
        """Log density or probability of targets under the predictive, nats, ``[N]``."""

    @abstractmethod
    def to_pandas(self) -> pd.DataFrame:
        """One line for each row."""

    def _table(self, names: Sequence[str]) -> pd.DataFrame:
        """Columns ``name`` for values ``[N]``, ``name_t`` for each target t of values ``[N, T]``."""
        import pandas as pd

        values = {name: getattr(self, name).cpu().numpy() for name in names}
        if next(iter(values.values())).ndim == 1:
            return pd.DataFrame(values)
        return pd.DataFrame(
            {f"{name}_{t}": value[:, t] for name, value in values.items() for t in range(value.shape[1])}
        )

    @classmethod
    @abstractmethod
    def concat(cls, parts: list[Any]) -> Prediction:
        """Join the predictions of several batches."""


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


def as_targets(targets: Any, prediction: Prediction) -> Shaped[Tensor, "N ..."]:
    """Targets in any form as a tensor; ValueError unless there is one for each predicted row, in a known order."""
    if prediction.shuffled:
        raise ValueError(
            "targets: expected predictions of rows in a fixed order, the order of the targets, got those of a DataLoader that "
            "shuffles; predict its dataset, or a loader with shuffle=False"
        )
    values = to_tensor(targets, "targets")
    if values.dim() == 0 or len(values) != len(prediction):
        raise ValueError(
            f"targets: expected one for each of the {len(prediction)} predicted rows, got shape {list(values.shape)}; "
            "pass the targets of the same rows in the same order"
        )
    return values
