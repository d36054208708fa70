"""Rows and targets of every kind for the public functions that take data, and what must come out (test_front_doors.py).

A case is a table of plain float64 numbers, a type of numbers that it is rounded to, and a container that it is put into. What a
function answers for the container must be what it answers for the plain arrays with the same (rounded) numbers.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse
import torch
import xarray as xr
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import bll_pyro as bll
from bll_pyro import scope as bll_scope

type Values = NDArray[Any]

NUM_COLUMNS = 3
SIZES = (0, 1, 2, 3, 8, 30)
TYPES = (
    "float64",
    "float32",
    "float16",
    "int64",
    "int32",
    "int16",
    "int8",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "bool",
)
TORCH_ONLY = {"bfloat16": torch.bfloat16}


def tensor_of(values: Any) -> Tensor:
    """A tensor of a number or a row of NumPy's, of its type."""
    return torch.from_numpy(np.array(values))


class Items(Dataset[Any]):
    """A dataset of pairs, or of inputs alone."""

    def __init__(self, inputs: Values, targets: Values | None) -> None:
        self.inputs, self.targets = inputs, targets

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> Any:
        row = tensor_of(self.inputs[index])
        return row if self.targets is None else (row, tensor_of(self.targets[index]))


class Stream(IterableDataset[Any]):
    """Items that come one after the other."""

    def __init__(self, items: Items) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Any:
        return (self.items[index] for index in range(len(self.items)))


def readonly(values: Values) -> Values:
    copied = values.copy()
    copied.flags.writeable = False
    return copied


def memory_mapped(values: Values) -> Values:
    folder = tempfile.mkdtemp(prefix="front-doors-")
    path = Path(folder) / "rows.npy"
    np.save(path, values)
    loaded: Values = np.load(path, mmap_mode="r" if values.size else None)
    path.unlink()
    Path(folder).rmdir()
    return loaded


def every_other(values: Values) -> Values:
    wide = np.repeat(values, 2, axis=0)
    return wide[::2]


ARRAYS: dict[str, Callable[[Values], Any]] = {
    "array": lambda v: v,
    "read-only": readonly,
    "reversed": lambda v: v[::-1].copy()[::-1],
    "big-endian": lambda v: v.astype(v.dtype.newbyteorder(">")),
    "column-major": np.asfortranarray,
    "every other row": every_other,
    "memory-mapped": memory_mapped,
    "masked": np.ma.masked_array,
    "matrix of objects": lambda v: v.astype(object),
    "tensor": lambda v: torch.tensor(v),
    "tensor that wants gradients": lambda v: (
        torch.tensor(v).requires_grad_() if v.dtype.kind == "f" else torch.tensor(v)
    ),
    "transposed tensor": lambda v: torch.tensor(v.T.copy()).T if v.ndim == 2 else torch.tensor(v),
    "list": lambda v: v.tolist(),
    "list of arrays": list,
    "list of tensors": lambda v: [tensor_of(row) for row in v],
    "tuple of rows": lambda v: tuple(v.tolist()),
    "frame": lambda v: pd.DataFrame(v) if v.ndim == 2 else pd.Series(v),
    "frame with an index": lambda v: (pd.DataFrame if v.ndim == 2 else pd.Series)(
        v, index=np.arange(len(v))[::-1] * 7
    ),
    "xarray": lambda v: xr.DataArray(v),
    "sparse": lambda v: scipy.sparse.csr_array(v) if v.ndim == 2 and v.dtype != np.float16 else v,
    "iterator": lambda v: iter(v.tolist()),
    "generator": lambda v: (row for row in v.tolist()),
    "dictionary": lambda v: {"rows": v},
    "text": lambda v: v.astype(str),
    "None": lambda v: None,
}
PAIRS: dict[str, Callable[[Values, Values | None], Any]] = {
    "dataset": Items,
    "tensor dataset": lambda x, y: TensorDataset(*(torch.tensor(v) for v in (x, y) if v is not None)),
    "loader": lambda x, y: DataLoader(Items(x, y), batch_size=4),
    "loader of a stream": lambda x, y: DataLoader(Stream(Items(x, y)), batch_size=4),
    "data": lambda x, y: bll.Data(x if y is None else (x, y)),
    "weighted data": lambda x, y: bll.Data(x if y is None else (x, y), sample_weight=np.ones(len(x))),
    "store": lambda x, y: bll.Features.from_tensors(torch.tensor(x), None if y is None else torch.tensor(y)),
}


@dataclass(frozen=True)
class Case:
    """One call: a door, rows and targets with the numbers that they hold, and the containers that they come in."""

    door: str
    inputs: Values
    targets: Values
    container: str
    target_container: str

    def rows(self, plain: bool = False) -> Any:
        """Inputs alone."""
        if plain:
            return self.inputs.astype(float)
        if self.container in PAIRS:
            return PAIRS[self.container](self.inputs, None)
        return ARRAYS[self.container](self.inputs)

    def pair(self, plain: bool = False) -> Any:
        """Inputs and targets together."""
        if plain:
            return self.inputs.astype(float), self.labels(plain=True)
        if self.container in PAIRS and len(self.inputs) == len(self.targets):
            return PAIRS[self.container](self.inputs, self.targets)
        return self.rows(), self.labels()

    def labels(self, plain: bool = False) -> Any:
        """Targets alone."""
        if plain:
            is_real = DOORS[self.door].kind == "numbers"
            return self.targets.astype(float if is_real else np.int64)
        return ARRAYS[self.target_container](self.targets)

    def answer(self, plain: bool = False) -> Values:
        """What the door says."""
        value = DOORS[self.door].call(self, plain)
        return np.asarray(value.detach().numpy() if isinstance(value, Tensor) else value, dtype=float)

    @property
    def rounding(self) -> float:
        """How far two answers may differ, relative to their size: 1,000 roundings of the type in which the case is computed."""
        # floats and integers of up to 16 bits are exact in float32; what is wider is computed in float64
        is_narrow = any(
            v.dtype.itemsize * (2 if v.dtype.kind in "iu" else 1) <= 4 for v in (self.inputs, self.targets)
        )
        searched = (
            100 if DOORS[self.door].kind != "numbers" else 1
        )  # a search for a mode ends before the last digits
        return searched * (1000 * float(np.finfo("float32" if is_narrow else "float64").eps) + 1e-7)


RANDOM = np.random.default_rng(0)
TRAIN = RANDOM.normal(size=(60, NUM_COLUMNS))
NEW = RANDOM.normal(size=(5, NUM_COLUMNS))
NUMBERS = TRAIN @ [1.0, -0.5, 0.0] + 0.3 * RANDOM.normal(size=60)
LABELS = (np.digitize(NUMBERS, [-0.5, 0.5])).astype(np.int64)
COUNTS = RANDOM.poisson(np.exp(0.5 * TRAIN[:, 0] + 1))
PRIOR = bll.priors.Normal(scale=1.0)


def layer_of(likelihood: bll.likelihoods.Likelihood) -> bll.LastLayer:
    return bll.LastLayer(likelihood, PRIOR, standardize="columns")


@cache
def fitted(kind: str) -> bll.Fit:
    """A fit to plain arrays."""
    likelihood, targets, inference = {
        "numbers": (bll.likelihoods.Gaussian(), NUMBERS, bll.Exact()),
        "classes": (bll.likelihoods.Categorical(num_classes=3), LABELS, bll.Laplace()),
        "counts": (bll.likelihoods.Poisson(), COUNTS, bll.Laplace()),
    }[kind]
    return bll.fit(layer_of(likelihood), (TRAIN, targets), inference=inference)


@cache
def of_size(num_rows: int) -> bll.Fit:
    """A fit of counts to so many rows, two at least."""
    size = max(num_rows, 2)
    data = np.resize(TRAIN, (size, NUM_COLUMNS)), np.resize(COUNTS, size)
    return bll.fit(layer_of(bll.likelihoods.Poisson()), data, inference=bll.Laplace())


@cache
def detector() -> bll.ood.Detector:
    return bll.ood.Detector(bll.ood.Mahalanobis()).calibrate(fitted("numbers"), NEW, train=(TRAIN, NUMBERS))


@cache
def network() -> torch.nn.Module:
    with bll_scope.isolated(0):
        return torch.nn.Sequential(torch.nn.Linear(NUM_COLUMNS, 2), torch.nn.Tanh()).double()


def known_noise(case: Case) -> bll.LastLayer:
    """A layer whose posterior is well conditioned for the targets of a case."""
    spread = float(np.std(case.targets.astype(float))) if case.targets.size else 1.0
    return layer_of(bll.likelihoods.Gaussian(noise_scale=spread / 2 if 0 < spread < 1e100 else 1.0))


def joined(prediction: Any) -> Values:
    """Means and variances; of counts their logs, which a small difference of the outputs moves by as little."""
    values = np.concatenate([np.ravel(v) for v in (prediction.mean, prediction.total)])
    return np.log1p(values) if prediction.mixture.likelihood.is_count else values


@dataclass(frozen=True)
class Door:
    """A public call with data, as a function of a case: in its containers, or as plain arrays."""

    kind: str
    call: Callable[[Case, bool], Any]


def fit_numbers(case: Case, plain: bool) -> Any:
    return joined(bll.fit(known_noise(case), case.pair(plain), inference=bll.Exact()).predict(NEW))


def fit_classes(case: Case, plain: bool) -> Any:
    layer = layer_of(bll.likelihoods.Categorical(num_classes=3))
    return bll.fit(layer, case.pair(plain), inference=bll.Laplace()).predict(NEW).probs  # type: ignore[attr-defined]


def fit_counts(case: Case, plain: bool) -> Any:
    return joined(
        bll.fit(layer_of(bll.likelihoods.Poisson()), case.pair(plain), inference=bll.Laplace()).predict(NEW)
    )


def predicted(kind: str, case: Case) -> Any:
    """A prediction of as many rows as the case has."""
    return fitted(kind).predict(np.resize(TRAIN, (max(len(case.targets), 1), NUM_COLUMNS)))


DOORS: dict[str, Door] = {
    "fit numbers": Door("numbers", fit_numbers),
    "fit classes": Door("classes", fit_classes),
    "fit counts": Door("counts", fit_counts),
    "predict": Door("numbers", lambda c, p: joined(fitted("numbers").predict(c.rows(p)))),
    "predict classes": Door("classes", lambda c, p: fitted("classes").predict(c.rows(p)).probs),  # type: ignore[attr-defined]
    "draw": Door("numbers", lambda c, p: fitted("numbers").draw(c.rows(p), 3)),
    "features": Door("numbers", lambda c, p: fitted("numbers").features(c.rows(p)).tensor()),
    "extract": Door("numbers", lambda c, p: bll.extract(network(), c.rows(p)).tensor()),
    "detect": Door("numbers", lambda c, p: detector().detect(c.rows(p)).p_value),
    "log_prob": Door("numbers", lambda c, p: predicted("numbers", c).log_prob(c.labels(p))),
    "crps": Door("numbers", lambda c, p: predicted("numbers", c).crps(c.labels(p))),
    "pit": Door("numbers", lambda c, p: predicted("numbers", c).pit(c.labels(p))),
    "log_prob of classes": Door("classes", lambda c, p: predicted("classes", c).log_prob(c.labels(p))),
    "log_prob of counts": Door("counts", lambda c, p: predicted("counts", c).log_prob(c.labels(p))),
    "calibrate": Door(
        "numbers", lambda c, p: bll.calibrate(fitted("numbers"), c.pair(p)).recalibration.factor
    ),  # type: ignore[union-attr]
    "calibrate classes": Door(
        "classes",
        lambda c, p: bll.calibrate(fitted("classes"), c.rows(p), c.labels(p)).recalibration.temperature,  # type: ignore[union-attr]
    ),
    "intervals": Door(
        "numbers",
        lambda c, p: (
            bll.conformal.PredictionIntervals(alpha=0.5).calibrate(fitted("numbers"), c.pair(p)).threshold
        ),
    ),
    "sets": Door(
        "classes",
        lambda c, p: (
            bll.conformal.PredictionSets(alpha=0.5).calibrate(fitted("classes"), c.pair(p)).threshold
        ),
    ),
    "update": Door("numbers", lambda c, p: joined(fitted("numbers").update(c.pair(p)).predict(NEW))),
    "tree": Door(
        "numbers",
        lambda c, p: (
            fitted("numbers").to_datatree(c.rows(p), c.labels(p), num_draws=3)["log_likelihood"]["y"].values
        ),
    ),
    "evaluate": Door(
        "numbers",
        lambda c, p: list(
            bll.evaluate(fitted("numbers"), c.pair(p), held_out=(TRAIN, NUMBERS), plain=fitted("numbers"))
            .scores["Bayesian"]
            .values()
        ),
    ),
    "leave one out": Door("counts", lambda c, p: bll.loo(of_size(len(c.targets)), c.pair(p)).elpd),
    "prior predictive": Door(
        "numbers",  # its draws are other ones in another precision
        lambda c, p: (
            bll.prior_predictive(known_noise(c), c.rows(p), c.labels(p), num_draws=3)["observed_data"][
                "y"
            ].values
        ),
    ),
    "mae": Door("numbers", lambda c, p: bll.metrics.mae(np.resize(NUMBERS, len(c.targets)), c.labels(p))),
    "crps of draws": Door(
        "numbers", lambda c, p: bll.metrics.crps_sample(np.resize(NUMBERS, (4, len(c.targets))), c.labels(p))
    ),
    "nll": Door("classes", lambda c, p: bll.metrics.nll(np.full((len(c.targets), 3), 1 / 3), c.labels(p))),
    "brier": Door(
        "classes", lambda c, p: bll.metrics.brier(np.full((len(c.targets), 3), 1 / 3), c.labels(p))
    ),
    "rmse": Door("numbers", lambda c, p: bll.metrics.rmse(np.resize(NUMBERS, len(c.targets)), c.labels(p))),
    "accuracy": Door(
        "classes", lambda c, p: bll.metrics.accuracy(np.resize(np.eye(3), (len(c.targets), 3)), c.labels(p))
    ),
}


@st.composite
def numbers_of(draw: st.DrawFn, shape: tuple[int, ...]) -> Values:
    """A table or a column of float64 numbers: spread out, constant, repeated, tiny, huge, far from 0, or with a hole."""
    values = np.random.default_rng(draw(st.integers(0, 50))).normal(size=shape)
    if len(shape) == 2 and shape[1] > 1 and draw(st.booleans()):
        values[:, draw(st.integers(0, shape[1] - 1))] = draw(st.sampled_from([0.0, 1.0, 1e6]))
    if len(shape) == 2 and shape[1] > 1 and draw(st.integers(0, 4)) == 0:
        values[:, 1] = values[:, 0]
    if shape[0] > 2 and draw(st.integers(0, 4)) == 0:
        values[shape[0] // 2 :] = values[0]
    values = values * 10.0 ** draw(st.sampled_from([0, 0, 0, -30, -6, 2, 6, 30]))
    values = values + draw(st.sampled_from([0.0, 0.0, 0.0, -3.0, 1e6, 1.7e9, 1e15]))
    if values.size and draw(st.integers(0, 14)) == 0:
        values.flat[draw(st.integers(0, values.size - 1))] = draw(st.sampled_from([np.nan, np.inf, -np.inf]))
    return values


def rounded(values: Values, kind: str) -> Values:
    """The numbers as a type holds them; those that it cannot hold become its own."""
    with np.errstate(all="ignore"):
        if np.dtype(kind).kind in "iu":
            info = np.iinfo(kind)
            filled = np.nan_to_num(values, posinf=0, neginf=0)
            # the largest float64 below the bound: the bound itself may be rounded up
            return np.clip(filled, float(info.min), np.nextafter(float(info.max), 0)).astype(kind)
        return values.astype(kind)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """A door with data in containers."""
    door = draw(st.sampled_from(sorted(DOORS)))
    num_rows = draw(st.sampled_from(SIZES))
    num_columns = draw(st.sampled_from([NUM_COLUMNS] * 8 + [1, 4]))
    inputs = rounded(draw(numbers_of((num_rows, num_columns))), draw(st.sampled_from(TYPES)))
    shape = draw(st.sampled_from([(num_rows,)] * 8 + [(num_rows, 1), (num_rows, 2), (num_rows + 1,)]))
    kind = DOORS[door].kind
    if kind == "numbers":
        targets = rounded(draw(numbers_of(shape)), draw(st.sampled_from(TYPES)))
    else:
        most = {"classes": 3, "counts": 9}[kind] + draw(st.sampled_from([0] * 8 + [1]))
        integers = np.random.default_rng(draw(st.integers(0, 50))).integers(0, most, shape)
        targets = integers.astype(draw(st.sampled_from(TYPES[:-1])))
    container = draw(st.sampled_from([*ARRAYS, *PAIRS]))
    target_container = draw(st.sampled_from(sorted(set(ARRAYS) - {"sparse"})))
    return Case(door, inputs, targets, container, target_container)


def is_clear(error: Exception) -> bool:
    """Whether an error says what was expected, what was got and what to do."""
    return (
        isinstance(error, ValueError | TypeError)
        and re.search(r"expected .*got .*[;:(].", str(error), re.S) is not None
    )


def check(case: Case) -> None:
    """Fail unless the answer is that of the plain arrays, or the error is clear."""
    answers: list[Values | Exception] = []
    for plain in (True, False):
        try:
            answers.append(case.answer(plain))
        except Exception as error:  # whatever comes is judged
            if not is_clear(error):
                raise
            answers.append(error)
    expected, found = answers
    if isinstance(found, Exception):
        return
    assert not isinstance(expected, Exception), f"an answer, where plain arrays give {expected}"
    finite = np.isfinite(expected)  # e^1000 has no number: nothing to compare
    if nearly_constant(case.inputs) or nearly_constant(case.targets):
        return
    size = np.max(np.abs(expected[finite]), initial=0.0)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found[finite], expected[finite], rtol=case.rounding, atol=case.rounding * size)


def nearly_constant(values: Values) -> bool:
    """Whether a column varies by the rounding of its type alone, so that it is constant in this type and not in a wider one."""
    if values.dtype.kind != "f" or not values.size:
        return False
    columns = values.astype(float).reshape(len(values), -1)
    spread, largest = np.ptp(columns, 0), np.abs(columns).max(0)
    narrow = np.finfo("float32" if values.dtype.itemsize <= 4 else "float64").eps
    return bool(((spread > 0) & (spread < 1000 * float(narrow) * largest)).any())
