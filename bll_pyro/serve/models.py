"""``ServedModel``: what a service needs of a model, whatever computes it: a fit by torch, or an exported graph."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bll_pyro.runtime.loading import GRAPH, MANIFEST
from bll_pyro.serve.preparing import preparation

if TYPE_CHECKING:
    from PIL import Image

    from bll_pyro.fitting import Fit
    from bll_pyro.runtime import Predictor

Predicted = dict[str, np.ndarray]
QUANTILES = (0.05, 0.5, 0.95)
NUM_DRAWS = 200
THREADS_VARIABLE = "OMP_NUM_THREADS"  # of torch, and here of onnxruntime, too


@dataclass(frozen=True, eq=False)
class ServedModel:
    """A model that is served.

    Parameters
    ----------
    predict
        From rows ``[n, *input_shape]``, float32, to arrays ``[n, ...]``: ``probs``, or ``mean``, ``scale`` and ``quantiles``;
        ``total``, ``aleatoric`` and ``epistemic``; with a detector ``score``, ``p_value`` and ``is_ood``.
    input_shape
        Of a row; None for images of any size.
    classes
        Labels, in the order of ``probs``; None where there are none.
    metadata
        Plain data for ``GET /model``.
    columns
        Names of the columns of a row, where it has some: rows may then come as objects.
    encode
        From columns by name to rows, where columns are more than numbers; None takes the numbers in the order of ``columns``.
    prepare
        From an image to a row; None where rows are no images.
    channels
        Of images: 3, or 1 for grey.
    intervals
        From rows and a probability to ``lower`` and ``upper`` ends of ``probs`` over draws of the weights; None where draws
        are not known.
    has_detector, threshold, num_calibration
        Whether there is a verdict on rows; of its detector, where they are known, the score above which a row is unlike the
        known ones, and the number of calibration rows, without which there is no watch for drift.
    """

    predict: Callable[[np.ndarray], Predicted]
    input_shape: tuple[int, ...] | None
    classes: list[Any] | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    columns: tuple[str, ...] | None = None
    encode: Callable[[Mapping[str, Sequence[Any]]], np.ndarray] | None = None
    prepare: Callable[[Image.Image], np.ndarray] | None = None
    channels: int = 3
    intervals: Callable[[np.ndarray, float], Predicted] | None = None
    has_detector: bool = False
    threshold: float | None = None
    num_calibration: int | None = None

    def warm_up(self) -> None:
        """Compute one row and two, so that the first request finds everything loaded; a model that cannot fails here."""
        if self.input_shape is not None:
            for num_rows in (1, 2):
                self.predict(np.zeros((num_rows, *self.input_shape), np.float32))


def open_model(path: str | Path) -> ServedModel:
    """The model in a graph (``.onnx``) or a saved fit; onnxruntime computes it if there is a graph, else torch."""
    if holds_graph(path):
        from bll_pyro.runtime import load as load_graph

        return of_graph(load_graph(path, threads=int(os.environ.get(THREADS_VARIABLE, 0)) or None))
    import bll_pyro as bll

    return of_fit(bll.load(path))


def holds_graph(path: str | Path) -> bool:
    """Whether a file or folder is a graph, or a saved fit with one."""
    place = Path(path)
    if place.suffix == ".onnx":
        return True
    try:
        if place.is_dir():
            manifest = (place / MANIFEST).read_bytes()
        else:
            with zipfile.ZipFile(place) as archive:
                manifest = archive.read(MANIFEST)
        return GRAPH in json.loads(manifest)["files"]
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile):  # what loads it says what is wrong
        return False


def of_graph(predictor: Predictor) -> ServedModel:
    """An exported graph, computed by onnxruntime."""
    told = predictor.metadata
    names = predictor.inputs.get("names")
    return ServedModel(
        predictor.predict,
        predictor.input_shape,
        predictor.classes,
        {name: told[name] for name in ("likelihood", "fingerprint", "alpha", "quantiles") if name in told},
        columns=None if names is None else tuple(names),
        prepare=preparation(told.get("images")),
        channels=predictor.input_shape[0] if len(predictor.input_shape) == 3 else 3,
        has_detector="p_value" in predictor.outputs,
        threshold=told.get("threshold"),
        num_calibration=told.get("num_calibration"),
    )


def of_fit(fit: Fit, **more: Any) -> ServedModel:
    """A fit, computed by torch; ``more``: fields of :class:`ServedModel` that are known from elsewhere."""
    likelihood, backbone = fit.layer.likelihood, fit.backbone
    known = fit.classes
    classes = None if known is None else known.tolist()
    if classes is None and likelihood.is_discrete:
        classes = list(range(_num_classes(fit)))
    given: dict[str, Any] = {
        "predict": lambda rows: _predicted(fit, rows),
        "input_shape": (fit.posterior.frame.num_features,) if backbone is None else None,
        "classes": classes,
        "columns": fit.feature_names,
        "metadata": {
            "likelihood": type(likelihood).__name__,
            "fingerprint": fit.fingerprint,
            "alpha": None if fit.detector is None else fit.detector.alpha,
            "num_training_rows": fit.num_rows,
        },
    }
    if fit.detector is not None and fit.detector.calibration_scores is not None:
        given |= {
            "has_detector": True,
            "threshold": float(fit.detector.threshold),
            "num_calibration": len(fit.detector.calibration_scores),
        }
    if likelihood.is_discrete or likelihood.is_binary:
        given["intervals"] = lambda rows, prob: _intervals(fit, rows, prob)
    if (transform := getattr(backbone, "transform", None)) is not None:
        shape = tuple(backbone.config["images"]["input_size"])  # type: ignore[union-attr,index]
        given |= {
            "input_shape": shape,
            "channels": shape[0],
            "prepare": lambda image: transform(image).numpy(),
        }
    return ServedModel(**(given | more))


def _num_classes(fit: Fit) -> int:
    import torch

    features = torch.zeros(1, fit.posterior.frame.num_features)
    return int(fit.head.predict(features).probs.shape[1])  # type: ignore[attr-defined]


def _predicted(fit: Fit, rows: np.ndarray) -> Predicted:
    from bll_pyro.observation import unobserved

    with unobserved():
        prediction = fit.predict(rows, batch_size=len(rows))
    found = {
        name: getattr(prediction, name).numpy(force=True)
        for name in ("probs", "mean", "scale", "total", "aleatoric", "epistemic")
        if hasattr(prediction, name)
    }
    if "mean" in found:
        ends = [prediction.quantile(q).numpy(force=True) for q in QUANTILES]  # type: ignore[attr-defined]
        found["quantiles"] = np.stack(ends, -1)
    if prediction.ood is not None:
        for name in ("score", "p_value", "is_ood"):
            found[name] = getattr(prediction.ood, name).numpy(force=True)
    return found


def _intervals(fit: Fit, rows: np.ndarray, prob: float) -> Predicted:
    """Equal-tailed intervals of the class probabilities over draws of the weights."""
    from bll_pyro.observation import unobserved

    with unobserved():
        draws = fit.draw(rows, NUM_DRAWS, batch_size=len(rows)).double().numpy(force=True)
    lower, upper = np.quantile(draws, [(1 - prob) / 2, (1 + prob) / 2], axis=0)
    return {"lower": lower, "upper": upper}
