"""Rows and targets in any container, type and size give the answer of plain arrays, or a clear error.

``BLL_EXAMPLES`` says how many cases are drawn (400 by default, the same ones each time), ``BLL_SEED`` from which seed.
"""

import os
import warnings

import numpy as np
import pytest
from front_doors import ARRAYS, PAIRS, Case, cases, check
from hypothesis import HealthCheck, given, seed, settings

pytestmark = [pytest.mark.unchecked, pytest.mark.filterwarnings("ignore")]

NUM_EXAMPLES = int(os.environ.get("BLL_EXAMPLES", "400"))
SEED = int(os.environ.get("BLL_SEED", "0"))
ROWS = np.random.default_rng(1).normal(size=(8, 3))
COLUMN = np.random.default_rng(2).normal(size=8)
HUGE = np.array([2**63 + 5, 2**63 + 9], dtype="uint64")
FAILED = [  # what failed once
    Case("extract", ROWS[:1], COLUMN[:1], "reversed", "list"),
    Case("log_prob", ROWS[:1], COLUMN[:1], "array", "reversed"),
    Case("features", ROWS[:0], COLUMN[:0], "weighted data", "list"),
    Case("pit", ROWS[:2], HUGE, "array", "list"),
    Case("log_prob of classes", ROWS[:2], np.array([1, 2], dtype="uint64"), "array", "list of tensors"),
    Case(
        "fit numbers", (1e-30 * ROWS).astype("float32"), (1e30 * COLUMN).astype("float32"), "array", "tensor"
    ),
    Case("fit numbers", ROWS.astype("float32"), np.c_[np.full(8, 1e30), 1e29 * COLUMN], "array", "array"),
    Case("fit classes", (1e-30 * ROWS).astype("float32"), np.arange(8) % 3, "tensor", "array"),
    Case("prior predictive", (1e30 * ROWS).astype("float32"), COLUMN.astype("float32"), "masked", "list"),
]


@pytest.mark.slow
@seed(SEED)
@settings(max_examples=NUM_EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(case=cases())
def test_any_data(case: Case) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of fits to few or odd rows
        check(case)


@pytest.mark.parametrize("container", [*ARRAYS, *PAIRS])
def test_plain_numbers_in_each_container(container: str) -> None:
    random = np.random.default_rng(0)
    inputs = random.normal(size=(20, 3)).astype("float32")
    numbers, counts = inputs[:, 0] + 0.3 * random.normal(size=20).astype("float32"), random.poisson(3, 20)
    for door, targets in (
        ("fit numbers", numbers),
        ("fit counts", counts),
        ("predict", numbers),
        ("update", numbers),
    ):
        check(Case(door, inputs, targets, container, container if container in ARRAYS else "array"))


@pytest.mark.parametrize("case", FAILED, ids=lambda case: case.door)
def test_what_failed_once(case: Case) -> None:
    check(case)
