"""What likelihoods of class labels share: the labels of their classes, declared or found in the training targets."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import Any, ClassVar, Self

import torch
from jaxtyping import Shaped
from torch import Tensor

from bll_pyro.checks import count
from bll_pyro.classes import Classes, Labels, as_numbers
from bll_pyro.likelihoods.base import Likelihood
from bll_pyro.likelihoods.targets import integer_targets


class OfClasses(Likelihood):
    """A likelihood of labels; its dataclass has the field ``classes``, labels in the order of the class numbers, or None."""

    classes: Any  # tuple[label, ...] or None: declared as a field, the last one, by each member
    needs_order: ClassVar[bool] = False  # whether the order of the classes means something

    @cached_property
    def coding(self) -> Classes | None:  # type: ignore[override]
        """The classes, which turn labels into numbers and back; None where labels are the numbers 0 to C - 1."""
        return None if self.classes is None else Classes(tuple(self.classes), is_ordered=True)

    def _settled(self, num_classes: Any, least: int, remedy: str = "") -> int | None:
        """Check the declared classes and their number, of which one follows from the other; return the number."""
        owner = type(self).__name__
        if self.classes is not None:
            known = Classes.declared(self.classes, owner)
            if num_classes not in (None, len(known)):
                raise ValueError(
                    f"{owner}(classes=...): expected {num_classes} labels, one for each class, got {known}; leave num_classes out"
                )
            num_classes = len(known)
            are_numbers = not isinstance(known.labels[0], bool) and known.labels == tuple(range(len(known)))
            object.__setattr__(self, "classes", None if are_numbers else known.labels)
        if num_classes is None:
            return None
        return count(num_classes, "num_classes", owner, least, remedy)

    def _wanted_number(self) -> int | None:
        """The number of classes that is declared; None where the training targets say it."""
        number: int | None = self.num_classes  # type: ignore[attr-defined]  # a field
        return number

    def _known_number(self) -> int:
        """The same; an error where nobody has said it."""
        number = self._wanted_number()
        if number is None:
            owner = type(self).__name__
            raise ValueError(
                f"{owner}: expected the number of classes, got None, and no training targets in memory that say it; give "
                f"{owner}(num_classes) or {owner}(classes=[...])"
            )
        return number

    def _named(self, numbers: list[int]) -> list[Any]:
        """Labels of class numbers, for messages."""
        return numbers if self.classes is None else [self.classes[number] for number in numbers]

    def with_classes_of(self, targets: Tensor | Labels, what: str) -> Self:
        """The same with the classes of training targets, where they are not declared.

        Whole numbers from 0 to C - 1 are the class numbers themselves.

        Raises
        ------
        ValueError
            If labels are not as many as declared, only one, or without the order that they need.
        """
        if self.classes is not None:
            return self
        owner, num_classes = type(self).__name__, self._wanted_number()
        found = _found(targets, num_classes)
        if found is None:
            if num_classes is not None:
                return self
            assert isinstance(targets, Tensor)
            found = Classes(tuple(range(_number_in(targets, owner))))
        remedy = f"name all classes, those without rows too: {owner}(classes=[...])"
        if self.needs_order and isinstance(targets, Labels) and not found.is_ordered:
            raise ValueError(
                f"{what}: expected labels in an order for {owner}, got {found}; name them from the lowest to the highest, "
                f"{owner}(classes=[...]), or pass an ordered categorical (pandas) or an Enum (polars)"
            )
        if len(found) < 2:
            raise ValueError(f"{what}: expected labels of at least two classes, got only {found}; {remedy}")
        if num_classes is not None and num_classes != len(found):
            if num_classes < len(found):
                name = "Ordinal" if self.needs_order else "Categorical"
                remedy = f"use {name}({len(found)}), or {name}(), which takes the classes that occur"
            raise ValueError(
                f"{what}: expected labels of {num_classes} classes, got {len(found)}: {found}; {remedy}"
            )
        return replace(self, classes=found.labels)  # type: ignore[type-var]  # a dataclass


def _found(targets: Tensor | Labels, num_classes: int | None) -> Classes | None:
    """The classes of labels; None where they are the class numbers, or no labels of one class a row."""
    if isinstance(targets, Labels):
        return targets.classes
    if targets.dim() != 1 or targets.is_complex() or not len(targets):
        return None
    if targets.dtype == torch.bool:
        return Classes((False, True))
    if targets.is_floating_point() and not bool((targets.isfinite() & (targets == targets.round())).all()):
        return None
    if num_classes is not None and bool(((targets >= 0) & (targets < num_classes)).all()):
        return None
    values = targets.unique().tolist()
    is_number_of = num_classes is None and values == list(range(len(values)))
    if is_number_of or len(values) != (len(values) if num_classes is None else num_classes):
        return None
    return Classes(tuple(values))


def _number_in(targets: Tensor, owner: str) -> int:
    """The number of classes of class numbers; an error for what are none."""
    most = torch.iinfo(torch.int64).max
    return int(integer_targets(targets, most, owner).max()) + 1


def numbers_for(likelihood: Likelihood, targets: Tensor | Labels, what: str) -> Shaped[Tensor, "N ..."]:
    """Targets as the numbers that a likelihood takes: labels as the numbers of their classes, all else as it is."""
    remedy = f"{type(likelihood).__name__} takes numbers; labels of classes need likelihoods.Categorical()"
    if likelihood.is_discrete or likelihood.is_binary:
        remedy = f"pass class numbers, or name the classes: {type(likelihood).__name__}(classes=[...])"
    return as_numbers(targets, likelihood.coding, what, remedy)
