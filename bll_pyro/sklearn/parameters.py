"""Parameters of estimators that are declarations: their fields are reached as in ``set_params(inference__guide=...)``."""

from __future__ import annotations

import dataclasses
from typing import Any, Self

from sklearn.base import BaseEstimator

from bll_pyro.declaration import Declaration


class DeclaredParameters(BaseEstimator):
    """A scikit-learn estimator some of whose parameters are declarations, which are frozen and know no ``set_params``.

    ``get_params()`` names the fields of each declaration, ``inference__guide__rank``, and ``set_params`` puts a declaration with
    another value of the field in its place; other estimators that hold the old one keep it.
    """

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Parameters by name; with ``deep`` also the fields of declarations and the parameters of estimators in them.

        Parameters
        ----------
        deep
            Whether to name what is inside parameters too.
        """
        params: dict[str, Any] = super().get_params(deep=deep)
        if deep:
            for name in self._get_param_names():
                params |= _fields(name, params[name])
        return params

    def set_params(self, **params: Any) -> Self:
        """Set parameters by name; ``inference__guide=...`` is the field ``guide`` of the parameter ``inference``.

        Parameters
        ----------
        **params
            Values by name.

        Raises
        ------
        ValueError
            If there is no such parameter or field.
        """
        outside: dict[str, Any] = {}
        inside: dict[str, dict[str, Any]] = {}
        for name, value in params.items():
            own, _, rest = name.partition("__")
            if rest and own in self._get_param_names() and not hasattr(getattr(self, own), "set_params"):
                inside.setdefault(own, {})[rest] = value
            else:
                outside[name] = value
        super().set_params(**outside)
        changed = {name: _replaced(name, self._declared(name), fields) for name, fields in inside.items()}
        for name, value in changed.items():  # when all are known to be good
            setattr(self, name, value)
        return self

    def _declared(self, name: str) -> Any:
        """The value of a parameter, or, where it is None, what None stands for."""
        value = getattr(self, name)
        return self._standing_for_none(name) if value is None else value

    def _standing_for_none(self, name: str) -> Any:
        """What None stands for as the value of a parameter."""
        return None


def _fields(name: str, value: Any) -> dict[str, Any]:
    """Fields of a declaration, and of those inside it, under names that begin with ``name``."""
    if not isinstance(value, Declaration) or not dataclasses.is_dataclass(value):
        return {}
    found: dict[str, Any] = {}
    for field in (field for field in dataclasses.fields(value) if field.init):
        path = f"{name}__{field.name}"
        inner = getattr(value, field.name)
        found |= {path: inner} | _fields(path, inner)
    return found


def _replaced(name: str, value: Any, fields: dict[str, Any]) -> Any:
    """The declaration with other values of some fields, each a name or a path ``guide__rank``."""
    if not isinstance(value, Declaration) or not dataclasses.is_dataclass(value):
        raise ValueError(
            f"{name}: expected a declaration, whose fields {', '.join(sorted(fields))} could be set, got {value!r}; set "
            f"{name} itself first"
        )
    known = [field.name for field in dataclasses.fields(value) if field.init]
    whole = {field: new for field, new in fields.items() if "__" not in field}
    deeper: dict[str, dict[str, Any]] = {}
    for path, new in fields.items():
        field, _, rest = path.partition("__")
        if rest:
            deeper.setdefault(field, {})[rest] = new
    if unknown := sorted({*whole, *deeper} - set(known)):
        raise ValueError(
            f"{name}: expected fields of {type(value).__name__} ({', '.join(known)}), got {', '.join(unknown)}"
        )
    for field, inner in deeper.items():
        start = whole.get(field, getattr(value, field))
        whole[field] = _replaced(f"{name}__{field}", start, inner)
    return dataclasses.replace(value, **whole)
