"""The checks of single values: which values pass, and the one form of the errors."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest

from bll_pyro import checks

Check = Callable[[Any, str, str], object]


@pytest.mark.parametrize(
    ("check", "value"),
    [
        *(
            (checks.positive, value)
            for value in (1, 0.5, 1e-300, True, np.float64(2.0), np.float32(0.5), np.int8(3))
        ),
        *((checks.positive_or_none, value) for value in (None, 2.0)),
        *((checks.share, value) for value in (0.5, 1e-9, np.float32(0.5))),
        *((checks.count, value) for value in (1, 10**9, np.int64(3), np.uint8(3))),
        (partial(checks.count, least=0), 0),
        *((checks.switch, value) for value in (True, False, np.bool_(True))),
    ],
)
def test_right_values_pass(check: Check, value: object) -> None:
    found = check(value, "size", "Owner")
    assert found == value
    assert type(found) in (bool, int, float, type(None))


@pytest.mark.parametrize(
    ("check", "expected", "values"),
    [
        (checks.positive, "a positive number", (0, -1.0, math.nan, math.inf, None, "1")),
        (partial(checks.positive, strict=True), "a positive number", (0, True)),
        (checks.positive_or_none, "a positive number", (0, math.nan)),
        (checks.share, "a number between 0 and 1", (0, 1, 1.5, math.nan, None)),
        (checks.count, "a whole number >= 1", (0, 1.0, True, None, np.bool_(True), np.float64(2.0))),
        (partial(checks.count, least=4), "a whole number >= 4", (3,)),
    ],
)
def test_wrong_values_are_refused(check: Check, expected: str, values: tuple[object, ...]) -> None:
    for value in values:
        with pytest.raises(ValueError) as caught:
            check(value, "size", "Owner")
        assert str(caught.value) == f"Owner(size=...): expected {expected}, got {value!r}"


def test_a_switch_is_a_bool() -> None:
    for value in (1, 0, None, "yes"):
        with pytest.raises(TypeError) as caught:
            checks.switch(value, "bias", "Owner")
        assert str(caught.value) == f"Owner(bias=...): expected True or False, got {value!r}"


def test_the_remedy_comes_last() -> None:
    with pytest.raises(ValueError, match=r"got 0; use one or more$"):
        checks.count(0, "size", "Owner", remedy="use one or more")
