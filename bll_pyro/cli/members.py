"""Classes by the names that a YAML has for them, and what the fields of a class may hold."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pkgutil
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor
from torch.distributions import Distribution

from bll_pyro.cli.usage import UsageError, nearest
from bll_pyro.declaration import Declaration
from bll_pyro.inference.svi.imported import Imported

# rooms that hold members of families: all of them are loaded, so that every name is known
ROOMS = (
    "priors", "likelihoods", "guides", "curvatures", "inference", "inference.svi", "layer", "ood", "cli.data", "cli.backbones"
)  # fmt: skip
SCALARS = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}


@dataclass(frozen=True)
class FieldKind:
    """What a field may hold: of its annotation what a YAML needs to know.

    Parameters
    ----------
    scalars
        Types of plain values.
    literals
        Plain values of which it is one.
    classes
        Declarations: families or single classes.
    element
        FieldKind of the elements, where it may be a list.
    distribution, tensor, anything
        Whether it may be a Pyro distribution, a tensor, or something else.
    """

    scalars: tuple[type, ...] = ()
    literals: tuple[Any, ...] = ()
    classes: tuple[type[Declaration], ...] = ()
    element: FieldKind | None = None
    distribution: bool = False
    tensor: bool = False
    anything: bool = False

    def expected(self) -> str:
        """In words."""
        said = [repr(one) for one in self.literals]
        said += [name for kind, name in SCALARS.items() if kind in self.scalars and kind is not type(None)]
        said += [f"one of {', '.join(sorted(members(base)))}" for base in self.classes]
        said += ["a list"] if self.element else []
        said += ["a distribution"] if self.distribution else []
        said += ["a tensor"] if self.tensor else []
        said += ["null"] if type(None) in self.scalars else []
        return " or ".join(said)


def field_kind_of(hint: Any) -> FieldKind:
    """The kind of an annotation; of what a YAML cannot hold it is ``anything``."""
    parts = typing.get_args(hint) if typing.get_origin(hint) in (types.UnionType, typing.Union) else (hint,)
    kinds = [_kind_of_one(part) for part in parts]
    elements = [kind.element for kind in kinds if kind.element is not None]
    return FieldKind(
        tuple(one for kind in kinds for one in kind.scalars),
        tuple(one for kind in kinds for one in kind.literals),
        tuple(one for kind in kinds for one in kind.classes),
        elements[0] if elements else None,
        any(kind.distribution for kind in kinds),
        any(kind.tensor for kind in kinds),
        any(kind.anything for kind in kinds),
    )


def _kind_of_one(hint: Any) -> FieldKind:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint in SCALARS:
        return FieldKind(scalars=(hint,))
    if origin is Literal:
        return FieldKind(literals=arguments)
    if isinstance(origin, type) and issubclass(origin, Sequence) and arguments:
        return FieldKind(element=field_kind_of(arguments[0]))
    if isinstance(hint, type) and issubclass(hint, Declaration):
        return FieldKind(classes=(hint,))
    if isinstance(hint, type) and issubclass(hint, Distribution):
        return FieldKind(distribution=True)
    if isinstance(hint, type) and issubclass(hint, Tensor):
        return FieldKind(tensor=True)
    return FieldKind(anything=True)


def fields_of(cls: type[Declaration]) -> dict[str, dataclasses.Field[Any]]:
    """The fields that its constructor takes, by name."""
    return {f.name: f for f in dataclasses.fields(cls) if f.init}  # type: ignore[arg-type]


def kinds_of(cls: type[Declaration]) -> dict[str, FieldKind]:
    """The kinds of its fields, by name."""
    hints = typing.get_type_hints(cls)
    return {name: field_kind_of(hints[name]) for name in fields_of(cls)}


def required_of(cls: type[Declaration]) -> list[str]:
    """Names of the fields without a default."""
    missing = dataclasses.MISSING
    return [
        name for name, f in fields_of(cls).items() if f.default is missing and f.default_factory is missing
    ]


def load_families() -> None:
    """Load the files of all families."""
    for room in ROOMS:
        importlib.import_module(f"bll_pyro.{room}")


def members(base: type[Declaration]) -> dict[str, type[Declaration]]:
    """The classes of the package that are of a base, by short name."""
    load_families()
    return {
        cls.__name__: cls
        for key, cls in Declaration.registry.items()
        if ":" not in key
        and issubclass(cls, base)
        and dataclasses.is_dataclass(cls)
        and not inspect.isabstract(cls)
    }


def find_class(name: Any, module: Any, bases: Sequence[type[Declaration]]) -> type[Declaration] | Imported:
    """The class of a name: ``Normal``, ``priors.Normal``, or an import path of the user's, such as ``my_priors.Wide``.

    Where :class:`bll_pyro.Imported` is among the bases, a path may lead to any function or class.

    Raises
    ------
    UsageError
        With the nearest name, if there is none of that name.
    """
    known: dict[str, type[Declaration]] = {}
    for base in bases:
        known |= {one: cls for one, cls in members(base).items() if one not in known}
    if not isinstance(name, str):
        raise UsageError(f"expected the name of a class, got {name!r}; {nearest('', known)}")
    family, dot, short = name.replace(":", ".").rpartition(".")
    if module is not None:
        return _of_module(f"{module}.{short}", bases, known)
    if short in known and (not dot or family == known[short].family):
        return known[short]
    families = {cls.family for cls in known.values()}
    if not dot or family in families:
        raise UsageError(
            f"expected a class, got {name!r}; {nearest(short, known)}, or give an import path (module.Class)"
        )
    return _of_module(f"{family}.{short}", bases, known)


def _of_module(
    path: str, bases: Sequence[type[Declaration]], known: Sequence[str] | Any
) -> type[Declaration] | Imported:
    try:
        found = pkgutil.resolve_name(path)
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(
            f"expected a class that can be imported, got {path!r} ({error}); its file may lie beside the YAML; in the package "
            f"{nearest(path, known)}"
        ) from error
    if isinstance(found, type) and issubclass(found, Declaration) and issubclass(found, tuple(bases)):
        return found
    if Imported in bases and callable(found):
        return Imported(path)
    names = " or ".join(sorted({base.__name__ for base in bases}))
    raise UsageError(f"expected a subclass of {names}, got {path!r}, which is {found!r}")
