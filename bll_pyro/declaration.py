"""Declarations: frozen dataclasses that print, compare, hash, and go to plain data and back.

A choice (a prior, a likelihood, a guide, an inference) is an object of a class, so plain data must keep the name of
the class: ``{"class": "priors.Normal", "scale": 1.0}``, and of a class outside the package also where it is imported from:
``{"class": "likelihoods.ZeroInflated", "module": "my_project.counts"}``. Tensors inside a declaration go into a side
dictionary, since they belong in a safetensors file and not in YAML.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from torch import Tensor

from bll_pyro.checks import plain_numbers
from bll_pyro.summary import brief

LATER = {
    "added later": True
}  # metadata of a field that is written only where it has a value: older hashes stay the same
MOST_NUMBERS = 10_000  # of a tensor that is written where people read it
Plain = Any  # None, bool, number, string, or a list or dictionary of these


class _PlainNumbers(type):
    """Numbers of NumPy's are plain ones before a declaration checks and keeps them."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        return super().__call__(*plain_numbers(args), **plain_numbers(kwargs))


class Declaration(metaclass=_PlainNumbers):
    """Base of everything that is declared. Subclasses are frozen dataclasses and register under their name.

    Those outside the package register under their module as well; there several may have one name.
    """

    family: ClassVar[str] = ""
    absent: ClassVar[
        dict[str, Any]
    ] = {}  # fields that earlier files do not have, with what they stand for there
    registry: ClassVar[dict[str, type[Declaration]]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "__repr__" not in vars(cls):  # dataclasses write one only where the class has none of its own
            cls.__repr__ = Declaration.__repr__  # type: ignore[method-assign]
        if cls.__name__.startswith("_"):
            return
        name = f"{cls.family}.{cls.__name__}"
        own = cls.__module__.partition(".")[0] == __name__.partition(".")[0]
        Declaration.registry[name if own else f"{cls.__module__}:{name}"] = cls

    def __repr__(self) -> str:
        """As of a dataclass, with larger tensors by their shape alone."""
        shown: list[dataclasses.Field[Any]] = []
        if dataclasses.is_dataclass(self):
            fields = [f for f in dataclasses.fields(self) if f.repr]
            shown = [f for f in fields if f.metadata != LATER or getattr(self, f.name) is not None]
        body = (f"{f.name}={_repr_of(getattr(self, f.name))}" for f in shown)
        return f"{type(self).__name__}({', '.join(body)})"

    def __eq__(self, other: object) -> bool:
        if type(self) is not type(other):
            return NotImplemented
        return self._key() == other._key()  # type: ignore[attr-defined]

    def __hash__(self) -> int:
        return hash(self._key())

    def _key(self) -> tuple[Any, ...]:
        # torch compares tensors and distributions by identity; a declaration compares by content
        tensors: dict[str, Tensor] = {}
        plain = to_plain(self, tensors, functions=True)
        contents = tuple((k, tuple(t.shape), t.flatten().tolist().__repr__()) for k, t in tensors.items())
        return (repr(plain), contents)


def _repr_of(value: Any) -> str:
    return brief(value) if isinstance(value, (Tensor, dict)) else repr(value)


def to_plain(value: Any, tensors: dict[str, Tensor], path: str = "", *, functions: bool = False) -> Plain:
    """Turn a declaration into plain data; tensors are put into ``tensors`` under the path that leads to them.

    A function or class cannot be written; with ``functions`` it is named with its address, to compare declarations.
    """
    if isinstance(value, Declaration):
        given: tuple[dataclasses.Field[Any], ...] = ()
        if dataclasses.is_dataclass(value):
            given = dataclasses.fields(value)
        if vars(value) and not given:
            raise TypeError(
                f"{type(value).__name__}: expected a frozen dataclass, so that it can be compared and written down, got the "
                f"attributes {sorted(vars(value))} of another class; put @dataclass(frozen=True, eq=False) above it"
            )
        fields = {f.name: getattr(value, f.name) for f in given if f.init}
        for later in (f.name for f in given if f.metadata == LATER and fields[f.name] is None):
            del fields[later]
        body = {
            k: to_plain(v, tensors, f"{path}.{k}" if path else k, functions=functions)
            for k, v in fields.items()
        }
        name, module = f"{value.family}.{type(value).__name__}", type(value).__module__
        own = value.registry.get(name) is type(value)
        return {"class": name, **({} if own else {"module": module}), **body}
    if isinstance(value, torch.distributions.Distribution):
        return distribution_to_plain(value)
    if isinstance(value, Tensor):
        tensors[path] = value.detach()
        return {"tensor": path}
    if isinstance(value, dict):
        return {str(k): to_plain(v, tensors, f"{path}.{k}", functions=functions) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(v, tensors, f"{path}.{i}", functions=functions) for i, v in enumerate(value)]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if functions and callable(value):
        return f"{value!r} at {id(value)}"
    remedy = "; write a subclass of the family, whose name can be written" if callable(value) else ""
    raise TypeError(
        f"{path or 'the declaration'}: expected numbers, strings, tensors, distributions or declarations, "
        f"got {type(value).__name__}, which cannot be written to a file{remedy}"
    )


def written(value: Any) -> Plain:
    """The plain data of a declaration for files that people read: tensors are where they belong, ``{"tensor": [[0.5, 1.0]]}``.

    Raises
    ------
    ValueError
        If a tensor is too large for that.
    """
    tensors: dict[str, Tensor] = {}
    return _with_tensors(to_plain(value, tensors), tensors)


def _with_tensors(plain: Plain, tensors: dict[str, Tensor]) -> Plain:
    if isinstance(plain, list):
        return [_with_tensors(one, tensors) for one in plain]
    if not isinstance(plain, dict):
        return plain
    if set(plain) == {"tensor"}:
        tensor = tensors[plain["tensor"]]
        if tensor.numel() > MOST_NUMBERS:
            raise ValueError(
                f"{plain['tensor']}: expected a tensor of at most {MOST_NUMBERS:,} numbers to write down, got "
                f"{tensor.numel():,}; write a class of your own that reads it from a file"
            )
        return {"tensor": argument_to_plain(tensor)}
    return {key: _with_tensors(value, tensors) for key, value in plain.items()}


def from_plain(plain: Plain, tensors: dict[str, Tensor]) -> Any:
    """Build the declaration that :func:`to_plain` wrote; only the modules of classes outside the package are imported."""
    if isinstance(plain, dict):
        if "class" in plain:
            cls = _class_of(plain["class"], plain.get("module"))
            given = {k: from_plain(v, tensors) for k, v in plain.items() if k not in ("class", "module")}
            return cls(**cls.absent | given)
        if "distribution" in plain:
            made: Any = getattr(dist, str(plain["distribution"]), None)
            if not (isinstance(made, type) and issubclass(made, torch.distributions.Distribution)):
                raise ValueError(f"expected the name of a Pyro distribution, got {plain['distribution']!r}")
            arguments = {k: argument_from_plain(v) for k, v in plain.items() if k != "distribution"}
            return made(**arguments)
        if set(plain) == {"tensor"}:
            return tensors[plain["tensor"]]
        return {k: from_plain(v, tensors) for k, v in plain.items()}
    if isinstance(plain, list):
        return tuple(from_plain(v, tensors) for v in plain)
    return plain


def _class_of(name: str, module: str | None) -> type[Declaration]:
    """The declaration of this name: one of the package, or one of a module that is imported if it has to be."""
    if module is None:
        named = [cls for key, cls in Declaration.registry.items() if key.rpartition(":")[2] == name]
        found = Declaration.registry.get(name) or (named[-1] if named else None)
        why, remedy = "", "import the module that defines it first"
    else:
        key = f"{module}:{name}"
        why, remedy = (
            f" of the module {module}",
            "make that module importable (sys.path), with the class at its top level",
        )
        if key not in Declaration.registry and module != "__main__":
            try:
                importlib.import_module(module)
            except ImportError as error:
                why += f" ({error})"
        found = Declaration.registry.get(key)
    if found is None:
        raise ValueError(f"expected the name of a known declaration, got {name!r}{why}; {remedy}")
    return found


ALTERNATIVES = (
    ("probs", "logits"),
    ("gate", "gate_logits"),
    ("covariance_matrix", "precision_matrix", "scale_tril"),
)


def distribution_to_plain(value: torch.distributions.Distribution) -> Plain:
    """Name and arguments of one of Pyro's distributions; of the ``ALTERNATIVES`` the last is written."""
    name = type(value).__name__
    if type(value) is not getattr(dist, name, None):
        raise TypeError(
            f"expected a distribution from pyro.distributions so that it can be written down, got {name}; "
            "use one of Pyro's own, or write a Prior subclass"
        )
    names = [
        n for n in inspect.signature(type(value).__init__).parameters if n not in ("self", "validate_args")
    ]
    for group in ALTERNATIVES:
        present = [n for n in group if n in names]
        names = [n for n in names if n not in present[:-1]]
    plain: dict[str, Any] = {"distribution": name}
    for argument in names:
        stored = {"base_distribution": "base_dist"}.get(argument, argument)
        try:
            plain[argument] = argument_to_plain(getattr(value, stored))
        except (AttributeError, TypeError) as error:
            raise TypeError(
                f"expected a distribution whose arguments are numbers, so that it can be written down, got {name} "
                f"with {argument}; write a Prior subclass"
            ) from error
    return plain


def argument_to_plain(value: Any) -> Plain:
    """An argument of a distribution: a number, a tensor, or another distribution."""
    if isinstance(value, torch.distributions.Distribution):
        return distribution_to_plain(value)
    if isinstance(value, Tensor):
        numbers = value.detach().tolist()
        # float32 is the default when this is read; float64 is named, or it would lose digits
        return {str(value.dtype).removeprefix("torch."): numbers} if value.dtype == torch.float64 else numbers
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"got {type(value).__name__}")


def argument_from_plain(plain: Plain) -> Any:
    """Inverse of :func:`argument_to_plain`."""
    if isinstance(plain, dict) and "distribution" in plain:
        return from_plain(plain, {})
    if isinstance(plain, dict):
        ((dtype, numbers),) = plain.items()
        return torch.tensor(numbers, dtype=getattr(torch, dtype))
    if isinstance(plain, (list, tuple)):
        value = torch.tensor(plain)
        return value.float() if value.is_floating_point() else value
    return torch.tensor(plain, dtype=torch.float32) if isinstance(plain, float) else plain
