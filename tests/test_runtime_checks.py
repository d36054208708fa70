"""The tests check annotations at run time: plain types and shapes, arguments and results, unless they are switched off."""

from dataclasses import dataclass
from typing import Any, Self

import jaxtyping
import pytest
import torch
from jaxtyping import Float, TypeCheckError
from runtime_checks import checked, jaxtyped, without_shapes
from torch import Tensor

from bll_pyro.scope import generator

type Rows = dict[str, Float[Tensor, "n d"]]
check = jaxtyped(typechecker=checked)


@check
def plain(count: int, scale: float = 1.0, *, name: "str" = "", other: "NotThere" = None) -> str:
    """With a default, a keyword, an int for a float, and a name that only type checkers know."""
    return name if count else count  # type: ignore[return-value]


@check
def shaped(rows: Float[Tensor, "n d"], targets: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    return targets[: rows.shape[1]]


@check
def in_an_alias(rows: "Rows", targets: Float[Tensor, " n"]) -> None: ...


@check
@dataclass
class Declared:
    count: int
    rows: Float[Tensor, "n d"] = torch.zeros(2, 3)

    @classmethod
    @check
    def made(cls, count: int) -> Self:
        return cls(count)


def test_plain_types_of_arguments_and_results() -> None:
    assert plain(1, 2, name="a", other=5) == "a"
    for call in (lambda: plain("1"), lambda: plain(1, name=2), lambda: plain(0), lambda: generator("0")):
        with pytest.raises(TypeCheckError):
            call()


def test_shapes() -> None:
    rows = torch.zeros(3, 3)
    assert len(shaped(rows, torch.zeros(3))) == 3
    wrong: list[Any] = [
        lambda: shaped(rows, torch.zeros(4)),
        lambda: shaped(torch.zeros(3, 2), torch.zeros(3)),  # the result
        lambda: shaped(rows.long(), torch.zeros(3)),
        lambda: in_an_alias({"x": rows}, torch.zeros(4)),
        lambda: Declared(1, torch.zeros(2)),
        lambda: Declared.made("1"),
    ]
    for call in wrong:
        with pytest.raises(TypeCheckError):
            call()
    assert Declared("a").count == "a"  # constructors check plain types themselves


@pytest.mark.unchecked
def test_switched_off() -> None:
    assert plain("1", name="a") == "a"  # type: ignore[arg-type]
    assert shaped(torch.zeros(3, 3), torch.zeros(4)).shape == (3,)


def test_a_function_without_annotations_is_left_alone() -> None:
    def function(x): ...

    assert without_shapes(function) is function  # type: ignore[arg-type]
    assert jaxtyping.jaxtyped is jaxtyped
