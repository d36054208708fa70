"""YAML that remembers its lines: scalars, errors, and what is written is read again."""

import math
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from bll_pyro.cli.usage import UsageError
from bll_pyro.cli.yaml_file import dump, parse, read_yaml, scalar


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001), ("-2.5E+4", -25000.0), (".5", 0.5), ("3.", 3.0), ("8", 8), ("-8", -8), (".inf", math.inf),
        ("no", "no"), ("on", "on"), ("y", "y"), ("true", True), ("False", False), ("null", None), ("~", None), ("", None),
        ("'8'", "8"), ("2026-11-29", "2026-11-29"), ("0x1f", "0x1f"), ("1_000", "1_000"), ("Horseshoe", "Horseshoe"),
        ("[1, a, {b: 2.5}]", [1, "a", {"b": 2.5}]), ("{class: Normal, scale: 1.0}", {"class": "Normal", "scale": 1.0}),
    ],
)  # fmt: skip
def test_scalars_of_yaml_1_2(text: str, value: object) -> None:
    found = scalar(text, "here")
    assert found == value and type(found) is type(value)


def test_lines() -> None:
    text = "# a comment\na: 1\nb:\n  c: [x,\n    y]\n  d:\n    - {e: 2}\n    - f: 3\n"
    plain, places = parse(text, "file")
    assert plain == {"a": 1, "b": {"c": ["x", "y"], "d": [{"e": 2}, {"f": 3}]}}
    lines = {
        ("a",): 2, ("b",): 3, ("b", "c"): 4, ("b", "c", 1): 5, ("b", "d"): 6, ("b", "d", 0, "e"): 7, ("b", "d", 1, "f"): 8
    }  # fmt: skip
    assert {path: places[path] for path in lines} == {path: f"line {line}" for path, line in lines.items()}


def test_anchors_and_merged_keys() -> None:
    plain, _ = parse("a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\nc: *a\n", "file")
    assert plain["b"] == {"x": 1, "y": 3} and plain["c"] == {"x": 1, "y": 2}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: [1, 2\nc: 3\n", "file, line 3: expected YAML, got: "),
        ("a: 1\n\ta: 2\n", "file, line 2: expected YAML"),
        ("a: 1\nb: 2\na: 3\n", "file, line 3: the key 'a' is there twice; leave one out"),
        ("[1, 2]: 3\n", "file, line 1: expected a name as the key, got a list or mapping"),
        ("a: !!python/object:os.system x\n", "file, line 1: expected YAML, got: could not determine a constructor"),
        ("a: *b\n", "file, line 1: expected YAML, got: found undefined alias"),
        ("a: 1\n---\nb: 2\n", "file, line 2: expected YAML, got: but found another document"),
    ],
)  # fmt: skip
def test_what_is_no_yaml(text: str, message: str) -> None:
    with pytest.raises(UsageError) as raised:
        parse(text, "file")
    assert str(raised.value).startswith(message)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"none.yaml: expected a YAML file that can be read, got: No such file"
    ):
        read_yaml(tmp_path / "none.yaml")
    with pytest.raises(UsageError, match="got: Is a directory"):
        read_yaml(tmp_path)
    (tmp_path / "latin.yaml").write_bytes("a: é".encode("latin-1"))
    with pytest.raises(UsageError, match="expected a YAML file in UTF-8"):
        read_yaml(tmp_path / "latin.yaml")


NUMBERS = st.integers() | st.floats(allow_nan=False)
TEXT = st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), max_size=8)  # of a line
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXT | st.sampled_from(["1e-3", "no", "null", "0x1f", "1:30", "~"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(TEXT.filter(lambda key: key != "<<"), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=80, deadline=None)
@given(VALUES)
def test_what_is_written_is_read_again(value: object) -> None:
    text = dump({"x": value})
    assert parse(text, "file")[0] == {"x": value}
    assert yaml.safe_load(text) == {"x": value}, "readers of YAML 1.1 see the same"
