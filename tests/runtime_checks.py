"""How the annotations of bll_pyro are checked while the tests run: shapes everywhere, plain types in functions.

Constructors of declarations check plain types themselves, with messages that say what was expected, what was got and
what to do, and those messages are under test. So a constructor keeps only its jaxtyping shapes here.
"""

from collections.abc import Callable, Iterator
from inspect import isclass
from typing import Any, Self, get_args

from beartype import BeartypeConf, beartype
from jaxtyping import AbstractArray

# an int is as good as a float, as in the type checker's eyes
INT_IS_FLOAT = BeartypeConf(is_pep484_tower=True)


def parts(annotation: object) -> Iterator[object]:
    """Yield an annotation and everything inside its brackets, at any depth."""
    yield annotation
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
    return beartype(conf=INT_IS_FLOAT)(function)
