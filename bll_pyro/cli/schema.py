"""The JSON Schema (draft 2020-12) of an experiment, for editors and validators, made from the classes themselves."""

from __future__ import annotations

import inspect
from typing import Any

import docstring_parser

from bll_pyro.cli.building import default_of
from bll_pyro.cli.experiment import Experiment
from bll_pyro.cli.members import FieldKind, fields_of, kinds_of, members, required_of
from bll_pyro.declaration import Declaration

DRAFT = "https://json-schema.org/draft/2020-12/schema"
TYPES = {int: "integer", float: "number", bool: "boolean", str: "string", type(None): "null"}
NUMBERS = {"anyOf": [{"type": "number"}, {"type": "array", "items": {"$ref": "#/$defs/numbers"}}]}
TENSOR = {
    "type": "object",
    "properties": {"tensor": {"anyOf": [{"$ref": "#/$defs/numbers"}, {"type": "object"}]}},
    "required": ["tensor"],
    "additionalProperties": False,
}
DISTRIBUTION = {
    "type": "object",
    "properties": {"distribution": {"type": "string"}},
    "required": ["distribution"],
}
FROM_DATA = ("likelihood", "num_classes")  # what may be left to the data


def json_schema() -> dict[str, Any]:
    """The schema of a YAML file that ``bll fit`` takes."""
    schema = _Schema()
    body = schema.fields(Experiment)
    body["required"] = ["data"]
    body["properties"]["class"] = {"enum": ["Experiment", "experiment.Experiment"]}
    return {"$schema": DRAFT, "title": "bll_pyro experiment", **body, "$defs": schema.definitions}


class _Schema:
    """Makes the parts of the schema; each class and each family is defined once."""

    def __init__(self) -> None:
        self.definitions: dict[str, Any] = {
            "numbers": NUMBERS,
            "tensor": TENSOR,
            "distribution": DISTRIBUTION,
        }

    def fields(self, cls: type[Declaration]) -> dict[str, Any]:
        """A mapping with the fields of a class."""
        doc = docstring_parser.parse(inspect.getdoc(cls) or "")
        described = {
            name.strip(): param.description
            for param in doc.params
            for name in param.arg_name.split(",")
            if param.description
        }
        kinds, properties = kinds_of(cls), {}
        for name, field in fields_of(cls).items():
            properties[name] = self.kind(kinds[name], default_of(field))
            if name in described:
                properties[name]["description"] = " ".join(described[name].split())
        return {
            "type": "object",
            "description": doc.short_description or cls.__name__,
            "properties": properties,
            "required": [name for name in required_of(cls) if name not in FROM_DATA],
            "additionalProperties": False,
        }

    def kind(self, kind: FieldKind, default: Any = None) -> dict[str, Any]:
        """What a field may hold."""
        if kind.anything:
            return {}
        found: list[dict[str, Any]] = []
        if kind.scalars:
            found.append({"type": [TYPES[one] for one in kind.scalars]})
        if kind.literals:
            found.append({"enum": list(kind.literals)})
        if kind.element is not None:
            found.append({"type": "array", "items": self.kind(kind.element)})
        if kind.tensor:
            found.append({"$ref": "#/$defs/tensor"})
        if kind.distribution:
            found.append({"$ref": "#/$defs/distribution"})
        for base in kind.classes:
            found.append(self.family(base))
        clear = type(default) if isinstance(default, Declaration) else None
        if clear is None and len(kind.classes) == 1 and kind.classes[0] in members(kind.classes[0]).values():
            clear = kind.classes[0]
        if clear is not None:
            found.append({"$ref": self.member(clear)})  # its class need not be named
        return found[0] if len(found) == 1 else {"anyOf": found}

    def family(self, base: type[Declaration]) -> dict[str, Any]:
        """One of the members of a family, or a class of the user's by its import path."""
        name = f"any.{base.family}.{base.__name__}"
        if name not in self.definitions:
            self.definitions[name] = {}  # a family may hold itself
            known = members(base)
            words = [
                word
                for one, cls in known.items()
                if not set(required_of(cls)) - set(FROM_DATA)
                for word in _words(one, cls)
            ]
            named = [
                {"allOf": [{"$ref": self.member(cls)}, {"required": ["class"]}]} for cls in known.values()
            ]
            families = "|".join(sorted({cls.family for cls in known.values()} | {base.family}))
            path = {"type": "string", "pattern": rf"^(?!({families})\.)[A-Za-z_]\w*([.:][A-Za-z_]\w*)+$"}
            own = {"type": "object", "properties": {"class": path}, "required": ["class"]}
            placed = {
                "type": "object",
                "properties": {"module": {"type": "string"}},
                "required": ["class", "module"],
            }
            self.definitions[name] = {"anyOf": [{"enum": words}, path, own, placed, *named]}
        return {"$ref": f"#/$defs/{name}"}

    def member(self, cls: type[Declaration]) -> str:
        """The address of a class."""
        name = f"{cls.family}.{cls.__name__}"
        if name not in self.definitions:
            self.definitions[name] = {}
            body = self.fields(cls)
            body["properties"] = {"class": {"enum": _words(cls.__name__, cls)}, **body["properties"]}
            self.definitions[name] = body
        return f"#/$defs/{name}"


def _words(name: str, cls: type[Declaration]) -> list[str]:
    return [name, f"{cls.family}.{name}"]
