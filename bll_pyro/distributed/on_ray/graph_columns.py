"""Outputs of an exported graph as the columns of a prediction, the same as of :meth:`Prediction.to_frame`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from bll_pyro.features.tables import Table
from bll_pyro.prediction.base import PARTS, framed
from bll_pyro.runtime import Predictor

if TYPE_CHECKING:
    import pandas as pd

VERDICT = {"is_ood": "is_ood", "ood_p_value": "p_value", "ood_score": "score"}  # column, and name in a graph


def check_interval(graph: Predictor, interval: float | None) -> None:
    """ValueError where a graph cannot give an interval."""
    if interval is not None and "mean" in graph.outputs:
        _ends(graph, interval)


def frame_of_outputs(
    graph: Predictor, outputs: Mapping[str, np.ndarray], interval: float | None
) -> pd.DataFrame:
    """One line for each row of what a graph has given."""
    kind = graph.metadata["kind"]
    shown = {"classes": _of_classes, "labels": _of_labels, "values": _of_values}[kind](
        graph, outputs, interval
    )
    shown |= {name: outputs[name] for name in PARTS}
    shown |= {column: outputs[name] for column, name in VERDICT.items() if name in outputs}
    frame: pd.DataFrame = framed(Table(), shown)
    return frame


def _of_classes(graph: Predictor, outputs: Mapping[str, np.ndarray], _: float | None) -> dict[str, Any]:
    probs, classes = outputs["probs"], graph.classes
    numbers, count = probs.argmax(1), probs.shape[1]
    if classes is None or classes == list(range(count)):
        label, names = numbers, [f"p{k}" for k in range(count)]
    else:
        label, names = np.array(classes)[numbers], [f"p_{name}" for name in classes]
    by_class = {name: probs[:, k] for k, name in enumerate(names)}
    return {"label": label, "confidence": probs.max(1), **by_class}


def _of_labels(graph: Predictor, outputs: Mapping[str, np.ndarray], _: float | None) -> dict[str, Any]:
    probs, classes = outputs["probs"], graph.classes
    numbers = (probs > 0.5).astype(np.int64)
    label = numbers if classes is None or classes == [0, 1] else np.array(classes)[numbers]
    return {"label": label, "confidence": np.maximum(probs, 1 - probs), "probs": probs}


def _of_values(graph: Predictor, outputs: Mapping[str, np.ndarray], interval: float | None) -> dict[str, Any]:
    shown = {"mean": outputs["mean"], "scale": outputs["scale"]}
    if interval is None:
        return shown
    lower, upper = _ends(graph, interval)
    return {**shown, "lower": outputs["quantiles"][..., lower], "upper": outputs["quantiles"][..., upper]}


def _ends(graph: Predictor, interval: float) -> tuple[int, int]:
    """Numbers of the quantiles at the ends of an interval."""
    found = []
    for prob in ((1 - interval) / 2, (1 + interval) / 2):
        near = [k for k, known in enumerate(graph.quantiles) if math.isclose(known, prob, abs_tol=1e-9)]
        if not near:
            raise ValueError(
                f"interval={interval}: expected a graph with the quantile {prob:g}, got one with {list(graph.quantiles)}; export "
                f"it by fit.export(path, quantiles=(..., {prob:g})), or pass interval=None"
            )
        found.append(near[0])
    return found[0], found[1]
