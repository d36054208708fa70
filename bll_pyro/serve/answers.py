"""From outputs to the body of an answer."""

from __future__ import annotations

from typing import Any

import numpy as np

from bll_pyro.serve.models import Predicted, ServedModel
from bll_pyro.serve.service import Entry


def answer(served: Entry, outputs: Predicted) -> dict[str, Any]:
    """A prediction as plain data: ``label`` where there are probabilities, then the outputs as lists, one entry a row."""
    found: dict[str, Any] = {"model": served.name, "num_rows": len(outputs["total"])}
    if "probs" in outputs:
        found["label"] = most_probable(served.model, outputs["probs"])
    return found | {name: values.tolist() for name, values in outputs.items()}


def most_probable(model: ServedModel, probs: np.ndarray) -> list[Any]:
    """The most probable label of each row: of classes ``[n, C]``, or the more probable value of labels ``[n]``, ``[n, T]``."""
    classes = model.classes
    if classes is not None and probs.ndim == 2 and probs.shape[1] == len(classes):
        return [classes[number] for number in probs.argmax(1)]
    values = (probs > 0.5).astype(int)
    if classes is not None and len(classes) == 2 and probs.ndim == 1:
        return [classes[number] for number in values]
    return list(values.tolist())


def description(served: Entry) -> dict[str, Any]:
    """What ``GET /model`` tells."""
    model = served.model
    shape = model.input_shape
    return {
        "name": served.name,
        "classes": model.classes,
        "input_shape": None if shape is None else list(shape),
        "columns": None if model.columns is None else list(model.columns),
        "takes_images": model.prepare is not None,
        "has_intervals": model.intervals is not None,
        "has_detector": model.has_detector,
        "threshold": model.threshold,
        "loaded_at": served.loaded_at,
        "metadata": dict(model.metadata),
    }
