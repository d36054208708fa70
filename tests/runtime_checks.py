"""How the annotations of bll_pyro are checked while the tests run: shapes everywhere, plain types in functions.

Constructors of declarations check plain types themselves, with messages that say what was expected, what was got and
what to do, and those messages are under test. So a constructor keeps only its jaxtyping shapes here.

A call through ``jaxtyping.jaxtyped`` costs 10 microseconds even where no annotation has a shape, by beartype alone half
of one. So only functions with shapes go through it: ``jaxtyped`` here takes its place (conftest.py).
"""

from collections.abc import Callable, Iterator
from dataclasses import is_dataclass
from functools import wraps
from inspect import isclass, isfunction
from random import Random
from types import FunctionType
from typing import Any, Self, TypeAliasType, get_args, get_type_hints

import jaxtyping
import numpy as np
from beartype import BeartypeConf, FrozenDict, beartype
from beartype._check.code import codemain
from beartype._util.kind.integer import utilintget
from jaxtyping import AbstractArray, TypeCheckError

# Which item of a list is checked is drawn at random, from Python's own state, which a call must leave alone (world.py).
codemain.getrandbits = utilintget.getrandbits = Random(0).getrandbits

# an int is as good as a float, as in the type checker's eyes; numbers of NumPy's are as good as Python's
FLOAT = float | int | np.floating | np.integer
NUMBERS: Any = FrozenDict({int: int | np.integer, float: FLOAT, complex: complex | FLOAT})
ANY_NUMBER = BeartypeConf(hint_overrides=NUMBERS, violation_type=TypeCheckError)
with_shapes = jaxtyping.jaxtyped


def parts(annotation: object) -> Iterator[object]:
    """Yield an annotation and everything inside its brackets, at any depth."""
    yield annotation
    if isinstance(annotation, TypeAliasType):
        yield from parts(annotation.__value__)
    for part in get_args(annotation):
        yield from parts(part)


def has_shape(annotation: object) -> bool:
    """Whether a jaxtyping shape occurs in an annotation."""
    return any(isclass(part) and issubclass(part, AbstractArray) for part in parts(annotation))


def is_checkable(annotation: object) -> bool:
    """Whether a method can be checked by itself: ``Self`` has a meaning only inside its class."""
    return not any(part is Self for part in parts(annotation))


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a function so that its arguments and its result are compared with its annotations."""
    keep = has_shape if function.__name__ == "__init__" else is_checkable
    function.__annotations__ = {k: v for k, v in function.__annotations__.items() if keep(v)}
    return beartype(conf=ANY_NUMBER)(function)


def jaxtyped(*, typechecker: Callable[..., Any]) -> Callable[[Any], Any]:
    """``jaxtyping.jaxtyped`` for functions with shapes, and beartype alone for the others."""
    whole = with_shapes(typechecker=typechecker)

    def decorate(decorated: Any) -> Any:
        if isclass(decorated):
            shaped = is_dataclass(decorated) and any(map(has_shape, hints(decorated.__init__).values()))
            return whole(decorated) if shaped else decorated  # of plain types a constructor keeps no check
        if not isfunction(decorated) or any(map(has_shape, hints(decorated).values())):
            return whole(decorated)
        return without_shapes(decorated)

    return decorate


def hints(function: Any) -> dict[str, Any]:
    """Annotations as objects; what only type checkers import is Any, as in jaxtyping."""

    def resolved(annotation: object) -> Any:
        def holder() -> None: ...

        holder.__annotations__ = {"value": annotation}
        try:
            return get_type_hints(holder, function.__globals__, include_extras=True)["value"]
        except Exception:  # not only NameError: whatever an annotation raises when it is evaluated
            return Any

    annotations = getattr(function, "__annotations__", {})
    return {name: resolved(annotation) for name, annotation in annotations.items()}


def without_shapes(function: FunctionType) -> Callable[..., Any]:
    """Check plain types, unless the checks are switched off."""
    copy = FunctionType(
        function.__code__,
        function.__globals__,
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    copy.__kwdefaults__, copy.__qualname__, copy.__module__ = (
        function.__kwdefaults__,
        function.__qualname__,
        function.__module__,
    )
    copy.__annotations__ = hints(function)
    typed = checked(copy)
    if typed is copy:  # nothing to check
        return function

    @wraps(function)
    def either(*args: Any, **kwargs: Any) -> Any:
        return (function if jaxtyping.config.jaxtyping_disable else typed)(*args, **kwargs)

    return either
