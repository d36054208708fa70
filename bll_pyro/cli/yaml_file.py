"""YAML as plain data that remembers its lines; numbers and switches as in YAML 1.2.

PyYAML follows YAML 1.1, where ``1e-3`` is a string, ``no`` is false, and of a key that is there twice the first is lost.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from bll_pyro.cli.usage import UsageError

Path_ = tuple[str | int, ...]  # keys and positions that lead to a value
WIDTH = 100


class Loader(yaml.SafeLoader):
    """Scalars of YAML 1.2's core schema."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  as in the base class


class _Dumper(yaml.SafeDumper):
    """Numbers so that every reader takes them as numbers; lists of scalars in one line."""

    def ignore_aliases(self, data: Any) -> bool:
        """What is there twice is written twice."""
        return True

    def represent_list(self, data: Any) -> yaml.Node:  # type: ignore[override]
        """Lists without mappings in one line."""
        flow = not any(isinstance(one, dict) for one in data)
        return self.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=flow)

    def represent_dict(self, data: Any) -> yaml.Node:  # type: ignore[override]
        """An empty mapping, and one around a tensor, in one line."""
        flow = not data or set(data) == {"tensor"}
        return self.represent_mapping("tag:yaml.org,2002:map", data, flow_style=flow)


_Dumper.add_representer(list, _Dumper.represent_list)
_Dumper.add_representer(tuple, _Dumper.represent_list)
_Dumper.add_representer(dict, _Dumper.represent_dict)


for tag, pattern, first in (
    ("merge", "<<", ["<"]),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+", list("-+0123456789")),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", list("-+0123456789.")),
):  # fmt: skip
    for kind in (Loader, _Dumper):  # what is written is quoted where it would be read as something else
        kind.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(rf"^(?:{pattern})$"), first)


@dataclass
class Document:
    """Plain data of a file.

    Parameters
    ----------
    plain
        Dictionaries, lists and scalars.
    name
        What the file is called in messages.
    places
        Where a value comes from, by its path: ``line 4``, or the option that gave it.
    folder
        Folder of the file, where modules of the user's may lie.
    """

    plain: Any
    name: str
    places: dict[Path_, str] = field(default_factory=dict)
    folder: Path = Path()

    def place(self, path: Path_) -> str:
        """Where the value at a path, or the nearest one around it, comes from."""
        while path and path not in self.places:
            path = path[:-1]
        return self.places.get(path, "")


def read_yaml(path: Path) -> Document:
    """Read a file; :class:`UsageError` if there is none, or it is no YAML."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: expected a YAML file in UTF-8, got other bytes ({error})") from error
    except OSError as error:
        raise UsageError(f"{path}: expected a YAML file that can be read, got: {error.strerror}") from error
    plain, places = parse(text, str(path))
    return Document(plain, str(path), places, path.absolute().parent)


def parse(text: str, name: str) -> tuple[Any, dict[Path_, str]]:
    """Plain data of a text, and the line of each value."""
    loader = Loader(text)
    places: dict[Path_, str] = {}
    try:
        node = loader.get_single_node()
        if node is None:
            return None, places
        return _plain(loader, node, (), places, name), places
    except UsageError:
        raise
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = "" if mark is None else f", line {mark.line + 1}"
        raise UsageError(f"{name}{where}: expected YAML, got: {error.problem}") from error
    except (yaml.YAMLError, ValueError) as error:
        raise UsageError(f"{name}: expected YAML, got: {error}") from error
    finally:
        loader.dispose()


def _plain(loader: Loader, node: yaml.Node, path: Path_, places: dict[Path_, str], name: str) -> Any:
    places.setdefault(path, f"line {node.start_mark.line + 1}")
    if isinstance(node, yaml.SequenceNode):
        return [_plain(loader, one, (*path, i), places, name) for i, one in enumerate(node.value)]
    if not isinstance(node, yaml.MappingNode):
        return loader.construct_object(node, deep=True)
    _check_keys(node, name)
    loader.flatten_mapping(node)  # what is merged comes first, so that the mapping's own keys win
    found: dict[str, Any] = {}
    for key, value in node.value:
        places[*path, key.value] = f"line {key.start_mark.line + 1}"
        found[key.value] = _plain(loader, value, (*path, key.value), places, name)
    return found


def _check_keys(node: yaml.MappingNode, name: str) -> None:
    seen = set()
    for key, _ in node.value:
        line = f"line {key.start_mark.line + 1}"
        if not isinstance(key, yaml.ScalarNode):
            raise UsageError(f"{name}, {line}: expected a name as the key, got a list or mapping")
        if key.value in seen:
            raise UsageError(f"{name}, {line}: the key {key.value!r} is there twice; leave one out")
        seen.add(key.value)


def scalar(text: str, name: str) -> Any:
    """A value as YAML in one line: ``8``, ``Horseshoe``, ``{class: Normal, scale: 1.0}``."""
    return parse(text, name)[0]


def dump(plain: Any) -> str:
    """Plain data as YAML: one line for each value, lists of numbers in one line, keys in their order."""
    return yaml.dump(
        plain, Dumper=_Dumper, sort_keys=False, width=WIDTH, allow_unicode=True, default_flow_style=False
    )
