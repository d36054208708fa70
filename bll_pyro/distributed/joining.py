"""Predictions of ranks, joined to that of all rows: what a metric says of it is what one process says, with no row twice."""

from __future__ import annotations

from bll_pyro.prediction import Prediction
from bll_pyro.ranks import Processes


def join_predictions(ranks: Processes, prediction: Prediction) -> Prediction:
    """The prediction of the rows of all ranks, in their order, on all ranks.

    The ranks predict different rows, as many as each has. Join their targets by ``ranks.cat(targets)``, and every metric of the
    library is that of one process on all rows. Each rank holds the whole prediction: predict and join parts of what does not fit.

    Raises
    ------
    TypeError
        If ranks have predictions of different kinds.
    """
    parts = ranks.gather(prediction)
    kinds = {type(part).__name__ for part in parts}
    if len(kinds) > 1:
        raise TypeError(
            f"join_predictions: expected predictions of one fit on all ranks, got {sorted(kinds)}; load the same fit"
        )
    return type(prediction).concat(parts)
