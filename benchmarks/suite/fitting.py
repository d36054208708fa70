"""One fit and its predictions, with what they cost in processor seconds."""

import gc
import time
import warnings
from typing import Any

import numpy as np

from benchmarks.suite.budget import FULL, SHORT, Budget
from benchmarks.suite.methods import Method
from benchmarks.suite.predictions import Classes
from benchmarks.suite.splits import CLASSES, Split
from benchmarks.suite.tasks import small, small_values

Arrays = dict[str, np.ndarray]
Costs = dict[str, float]
_warm: set[tuple[str, str]] = set()


def fit_and_predict(method: Method, split: Split, seed: int, budget: Budget = FULL) -> tuple[Arrays, Costs]:
    """Fit, and predict every part of the split; arrays to keep, and costs.

    ``fit_cpu`` and ``predict_cpu`` are processor seconds of all threads; ``alarm_cpu`` is what scores of unknown rows cost
    where the method has some beside its predictions. Memory is measured by the benchmark `memory`, in fresh processes.
    """
    gc.collect()
    wall, began = time.perf_counter(), time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of iterations that ran out, and the packages' own deprecations
        predict = method.fit(split.kind)(split, seed, budget)
        fitted = time.process_time()
        predictions = {part: predict(rows) for part, rows in split.parts.items()}
        predicted = time.process_time()
        unknown = {}
        if split.kind == CLASSES and hasattr(predict, "unknown"):
            unknown = {part: predict.unknown(part, rows) for part, rows in split.parts.items()}
    scored = time.process_time()
    costs = {
        "fit_cpu": fitted - began,
        "predict_cpu": predicted - fitted,
        "alarm_cpu": scored - predicted,
        "wall": time.perf_counter() - wall,
    }
    return _kept(predict, predictions, unknown, split), costs


def _kept(predict: Any, predictions: dict[str, Any], unknown: Arrays, split: Split) -> Arrays:
    """The arrays that are kept of the predictions."""
    if split.kind != CLASSES:
        found = predict.finished(split.test_targets) if hasattr(predict, "finished") else predictions["test"]
        return {name: array.astype(np.float32) for name, array in found.arrays(split.test_targets).items()}
    arrays: Arrays = {}
    for part, prediction in predictions.items():
        arrays |= Classes(prediction.probs, unknown.get(part, prediction.unknown)).arrays(part)
    return arrays


def warm_up(method: Method, kind: str) -> None:
    """One short fit of made-up rows before the first that counts, so that imports and first calls are not in its time."""
    if (method.name, kind) not in _warm:
        made = small(0) if kind == CLASSES else small_values(0, kind)
        fit_and_predict(method, made, 0, SHORT)
        _warm.add((method.name, kind))
