"""What is deprecated works as before, and says in one line of warning what takes its place and when it goes."""

import ast
import re
import warnings
from pathlib import Path

import pytest

import bll_pyro as bll
from bll_pyro.deprecation import deprecated, renamed_parameter

PACKAGE = Path(bll.__file__).parent
SOON = {"since": "0.2", "removed_in": "0.3"}


@deprecated(**SOON, use="bll.new")
def old(x: int, *, factor: int = 2) -> int:
    """The docstring."""
    return factor * x


@deprecated(**SOON, use="bll.New")
class Old:
    def __init__(self, value: int) -> None:
        self.value = value


@renamed_parameter("width", "scale", **SOON)
def drawn(x: int, scale: int = 1) -> tuple[int, int]:
    return x, scale


class Prior:
    @renamed_parameter("width", "scale", **SOON)
    def __init__(self, scale: int = 1) -> None:
        self.scale = scale


def test_a_deprecated_function_works_and_warns() -> None:
    with pytest.warns(FutureWarning) as said:
        assert old(3, factor=5) == 15
    (one,) = said
    assert (
        str(one.message) == f"{__name__}.old is deprecated since bll_pyro 0.2 and goes with 0.3; use bll.new"
    )
    assert one.filename == __file__  # where it was called, not where it stands
    assert old.__name__ == "old" and old.__doc__ == "The docstring."


def test_a_deprecated_class_warns_when_it_is_made() -> None:
    with pytest.warns(FutureWarning, match=r"Old is deprecated .* use bll.New") as said:
        made = Old(4)
    assert made.value == 4 and isinstance(made, Old) and said[0].filename == __file__


@pytest.mark.parametrize("make", [lambda **given: drawn(0, **given)[1], lambda **given: Prior(**given).scale])
def test_a_renamed_parameter_is_taken_by_both_names(make) -> None:
    with pytest.warns(FutureWarning, match=r"width=\.\.\.\) is deprecated .* 0\.3; use scale=") as said:
        assert make(width=7) == 7
    assert said[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert make(scale=7) == 7 and make() == 1
    with pytest.raises(TypeError, match="got scale= and its old name width="):
        make(scale=7, width=7)


@pytest.mark.parametrize(
    "decorator", [lambda **v: deprecated(**v, use="x"), lambda **v: renamed_parameter("a", "b", **v)]
)
def test_versions_leave_time_to_move(decorator) -> None:
    decorator(since="0.9", removed_in="0.10")  # by number, not by letter
    decorator(since="0.9", removed_in="1.0")
    for since, removed_in in (("0.2", "0.2"), ("0.10", "0.9"), ("1.0", "0.11")):
        with pytest.raises(ValueError, match=r"expected a later version than since="):
            decorator(since=since, removed_in=removed_in)
    for wrong in ("0.2.1", "2", "v0.2", ""):
        with pytest.raises(ValueError, match=r'since: expected "MAJOR\.MINOR"'):
            decorator(since=wrong, removed_in="9.0")


def overdue(source: str, version: str) -> list[str]:
    """Versions of removal, named in a file, that the package has reached."""
    major, minor = map(int, re.match(r"(\d+)\.(\d+)", version).groups())
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("deprecated", "renamed_parameter"):
            given = {keyword.arg: ast.literal_eval(keyword.value) for keyword in node.keywords}
            if tuple(map(int, given["removed_in"].split("."))) <= (major, minor):
                found.append(f"line {node.lineno}: {given['removed_in']}")
    return found


def test_nothing_is_overdue() -> None:
    """On the day on which the version is raised to that of a removal, the name must be gone."""
    sample = '@deprecated(since="0.2", removed_in="0.3", use="x")\ndef f(): ...\n'
    assert not overdue(sample, "0.2.7") and overdue(sample, "0.3.0") == overdue(sample, "1.0.0") == [
        "line 1: 0.3"
    ]
    late = {
        str(file.relative_to(PACKAGE)): lines
        for file in sorted(PACKAGE.rglob("*.py"))
        if file.name != "deprecation.py" and (lines := overdue(file.read_text(), bll.__version__))
    }
    assert not late
