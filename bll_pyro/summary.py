"""How results print: about ten readable lines in place of their tensors, and the same in notebooks."""

from __future__ import annotations

import dataclasses
import html
from typing import Any

import numpy as np
import torch
from torch import Tensor

MOST_NUMBERS = 4  # of a vector that is printed whole
MOST_LINES = 11  # below the first
WIDTH = 110


def brief(value: Any) -> str:
    """A value within one line: numbers to four digits, larger tensors by their shape alone."""
    if isinstance(value, (Tensor, np.ndarray)):
        numbers = torch.as_tensor(value).detach()
        if numbers.dim() <= 1 and numbers.numel() <= MOST_NUMBERS and not numbers.is_complex():
            said = [f"{number:.4g}" for number in numbers.reshape(-1).tolist()]
            return said[0] if not numbers.dim() else f"[{', '.join(said)}]"
        return f"tensor{list(numbers.shape)}"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name}: {brief(one)}" for name, one in value.items()) + "}"
    if type(value) in (list, tuple):
        if len(value) > MOST_NUMBERS:
            return f"{len(value)} values"
        left, right = "[]" if isinstance(value, list) else "()"
        return left + ", ".join(map(brief, value)) + ("," if right == ")" and len(value) == 1 else "") + right
    if isinstance(value, Summary):
        return type(value).__name__
    if isinstance(value, float):
        return f"{value:.4g}"
    return repr(value)


def spread(values: Tensor) -> str:
    """Numbers of many rows: their mean, and between which values they lie."""
    flat = values.detach().double().flatten()
    if not len(flat):
        return "no rows"
    return f"mean {float(flat.mean()):.4g}, from {float(flat.min()):.4g} to {float(flat.max()):.4g}"


class Summary:
    """Mixin of results: they print as the lines that they give."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "__repr__" not in vars(cls):  # dataclasses write one only where the class has none of its own
            cls.__repr__ = Summary.__repr__  # type: ignore[method-assign]

    def lines(self) -> dict[str, str]:
        """What to print, by name; by default the fields."""
        found: dict[str, str] = {}
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if value is not None and field.repr:
                is_long = isinstance(value, Tensor) and value.numel() > MOST_NUMBERS
                found[field.name] = brief(value) + (
                    f": {spread(value)}" if is_long and value.is_floating_point() else ""
                )
        return found

    def __repr__(self) -> str:
        shown = [(name, text) for name, text in self.lines().items() if text][:MOST_LINES]
        width = max((len(name) for name, _ in shown), default=0)
        body = [f"  {name:<{width}}  {text}"[:WIDTH] for name, text in shown]
        return "\n".join([type(self).__name__, *body])

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(repr(self))}</pre>"
