"""``UsageError``: what the user asked for cannot be done as it was asked; and the names that were perhaps meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UsageError(ValueError):
    """A mistake in the command line, in a YAML, or in data: exit code 2, where other errors are 1."""


def nearest(name: str, known: Iterable[str]) -> str:
    """The remedy for a name that is not known: the nearest of those that are, or all of them."""
    names = sorted(set(known))
    folded = {one.lower(): one for one in names}
    close = difflib.get_close_matches(name.lower(), list(folded), n=1, cutoff=0.6)
    if close:
        return f"did you mean {folded[close[0]]!r}?"
    return f"known are {', '.join(names)}" if names else "there are none"
