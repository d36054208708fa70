"""Plain data to declarations, every mistake with its line.

The plain data are those of :mod:`bll_pyro.declaration`, as in a saved fit, with three short forms for people: a class by its name
alone (``Normal`` for ``priors.Normal``), a class without arguments as one word (``prior: Horseshoe``), and no class where the
field has a default (``inference: {num_epochs: 5}`` is of SVI). Tensors are written where they are: ``{tensor: [[0.5, 1.0]]}``.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from bll_pyro.cli.members import FieldKind, fields_of, find_class, kinds_of, members, required_of
from bll_pyro.cli.usage import UsageError, nearest
from bll_pyro.cli.yaml_file import Document, Path_
from bll_pyro.declaration import (
    Declaration,
    Plain,
    argument_from_plain,
    from_plain,
)
from bll_pyro.inference.svi.imported import Imported

WRONG = object()  # stands for a value of which a problem was noted


@dataclass
class Builder:
    """Makes declarations of a document, and collects what is wrong with it."""

    document: Document
    problems: list[str] = field(default_factory=list)

    def wrong(self, path: Path_, text: str, at: Path_ | None = None) -> object:
        """Note a problem; ``at`` is the path of its line, if it is another one."""
        where = self.document.place(path if at is None else at)
        dotted = ".".join(map(str, path))
        self.problems.append(": ".join(part for part in (where, dotted, text) if part))
        return WRONG

    def raise_problems(self) -> None:
        """Raise a UsageError that lists what is wrong, if something is."""
        if len(self.problems) == 1:
            raise UsageError(f"{self.document.name}, {self.problems[0]}")
        if self.problems:
            listed = "\n".join(f"  {problem}" for problem in self.problems)
            raise UsageError(f"{self.document.name}: {len(self.problems)} problems\n{listed}")

    def value(self, plain: Plain, kind: FieldKind, path: Path_, default: Any = None) -> Any:
        """A value of a field; ``default`` is the field's own, whose class is taken where none is named."""
        if kind.anything:
            return self.anything(plain, path)
        if plain is None and type(None) in kind.scalars:
            return None
        is_named = isinstance(plain, str) and str not in kind.scalars
        if kind.classes and (is_named or (isinstance(plain, dict) and not _special(plain))):
            return self.declared(plain, kind, path, default)
        if isinstance(plain, dict) and _special(plain):
            allowed = kind.tensor if "tensor" in plain else kind.distribution
            return self.special(plain, path) if allowed else self.unfit(plain, kind, path)
        if isinstance(plain, list) and kind.element is not None:
            parts = [self.value(one, kind.element, (*path, i)) for i, one in enumerate(plain)]
            return WRONG if WRONG in parts else tuple(parts)
        return plain if _fits(plain, kind) else self.unfit(plain, kind, path)

    def unfit(self, plain: Plain, kind: FieldKind, path: Path_) -> object:
        """Note that a value is not of the kind."""
        return self.wrong(path, f"expected {kind.expected()}, got {plain!r}")

    def anything(self, plain: Plain, path: Path_) -> Any:
        """A value of a field that may hold anything: what it looks like."""
        if isinstance(plain, dict):
            if _special(plain):
                return self.special(plain, path)
            if "class" in plain:
                return self.declared(plain, FieldKind(classes=(Declaration,)), path, None)
            found = {key: self.anything(value, (*path, key)) for key, value in plain.items()}
            return WRONG if WRONG in found.values() else found
        if isinstance(plain, list):
            parts = tuple(self.anything(one, (*path, i)) for i, one in enumerate(plain))
            return WRONG if WRONG in parts else parts
        return plain

    def special(self, plain: dict[str, Plain], path: Path_) -> Any:
        """A tensor or a distribution."""
        try:
            if "tensor" in plain:
                made = argument_from_plain(plain["tensor"])
                return made if isinstance(made, Tensor) else torch.tensor(made)
            return from_plain(plain, {})
        except (TypeError, ValueError, RuntimeError) as error:
            return self.wrong(
                path,
                f"expected {'a tensor' if 'tensor' in plain else 'a distribution'}, got {plain!r}: {error}",
            )

    def declared(self, plain: Plain, kind: FieldKind, path: Path_, default: Any) -> Any:
        """An object of a class that the plain data name, or that is clear without a name."""
        given = {"class": plain} if isinstance(plain, str) else dict(plain)
        name, module = given.pop("class", None), given.pop("module", None)
        cls: type[Declaration] | Imported | None
        if name is None:
            cls = _clear_class(kind, default)
            if cls is None:
                return self.wrong(path, f"expected class: and {kind.expected()}")
        else:
            try:
                cls = find_class(name, module, kind.classes)
            except UsageError as error:
                return self.wrong(path, str(error), self._at(path))
        if isinstance(cls, Imported):  # a function of the user's, with its arguments beside its name
            return self.made(Imported, {"path": cls.path, "arguments": given}, path)
        return self.made(cls, given, path)

    def _at(self, path: Path_) -> Path_:
        inside = (*path, "class")
        return inside if inside in self.document.places else path

    def made(self, cls: type[Declaration], given: dict[str, Plain], path: Path_) -> Any:
        """An object of a class from plain fields."""
        found, num_before = {}, len(self.problems)
        fields, kinds = fields_of(cls), kinds_of(cls)
        for name, plain in given.items():
            if name not in fields:
                text = f"{cls.__name__} has no {name!r}; {nearest(name, fields)}"
                self.wrong((*path, name), text)
            else:
                found[name] = self.value(plain, kinds[name], (*path, name), default_of(fields[name]))
        for name in required_of(cls):
            if name not in given:
                self.wrong(path, f"{cls.__name__} needs {name}: {kinds[name].expected()}", self._at(path))
        if len(self.problems) > num_before:
            return WRONG
        try:
            return cls(**found)
        except (TypeError, ValueError) as error:
            return self.wrong(path, str(error), self._at(path))


def default_of(field: dataclasses.Field[Any]) -> Any:
    """The default of a field; None if it has none."""
    if field.default is not dataclasses.MISSING:
        return field.default
    return None if field.default_factory is dataclasses.MISSING else field.default_factory()


def _clear_class(kind: FieldKind, default: Any) -> type[Declaration] | None:
    if isinstance(default, Declaration):
        return type(default)
    (base, *others) = kind.classes
    return base if not others and base in members(base).values() else None


def _special(plain: dict[str, Plain]) -> bool:
    return "distribution" in plain or set(plain) == {"tensor"}


def _fits(plain: Plain, kind: FieldKind) -> bool:
    if any(plain == one and type(plain) is type(one) for one in kind.literals):
        return True
    if isinstance(plain, bool):
        return bool in kind.scalars
    if isinstance(plain, int) and float in kind.scalars:
        return True
    return type(plain) in kind.scalars
