"""The data of a fit, read and checked once: what every inference, and the training of a backbone, is given."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from bll_pyro.classes import Classes, Labels
from bll_pyro.features.arrays import check_finite
from bll_pyro.features.columns import NO_COLUMNS, Columns
from bll_pyro.features.data import read
from bll_pyro.features.extraction import extract_source, features_in_memory
from bll_pyro.features.identity import rows_identity
from bll_pyro.features.rows import NamedRows, parts_of
from bll_pyro.features.sources import Source
from bll_pyro.features.store import Features
from bll_pyro.frame import as_floats
from bll_pyro.inference.rows import FeatureRows, is_streamed
from bll_pyro.layer import LastLayer
from bll_pyro.likelihoods import Likelihood
from bll_pyro.likelihoods.base import TargetShape
from bll_pyro.likelihoods.labels import OfClasses, numbers_for
from bll_pyro.ranks import ALONE, Processes, agree

BATCH_ROWS = 1024  # rows at a time in a pass over targets


@dataclass(frozen=True, eq=False)
class TrainingData:
    """Rows with targets, and what the likelihood says of them.

    Parameters
    ----------
    source
        The rows as they were given.
    layer
        Its likelihood checks targets, and knows the classes of labels.
    target_shape
        Shape of one target; empty for classes.
    whole
        All inputs, and all targets as the likelihood uses them, where both are in memory and were checked. None where rows come
        batch by batch: then each batch is checked when it comes.
    trains
        Whether a layer is fitted on the rows, so that there have to be enough different targets.
    index
        Numbers of the rows of ``whole`` that are meant; None for all.
    ranks
        Who shares the rows; these are the own ones.
    """

    source: Source
    layer: LastLayer
    target_shape: TargetShape
    whole: tuple[Tensor | NamedRows, Tensor] | None
    trains: bool = True
    index: Tensor | None = None
    ranks: Processes = ALONE

    @classmethod
    def of(
        cls,
        layer: LastLayer,
        data: Any,
        what: str = "data",
        trains: bool = True,
        feature_names: tuple[str, ...] | None = None,
        finds_classes: bool = True,
        ranks: Processes = ALONE,
    ) -> Self:
        """Read data in any form, and check what is in memory before any work; ``what`` names it in errors.

        ``feature_names``: of the rows of a fit, by which the columns of a frame are brought into order. Labels become class
        numbers here. Their classes are those of the likelihood, or, if it names none and rows that are trained on find them
        (``finds_classes``), those that occur, on any of the ``ranks``; the likelihood of ``layer`` then has them.
        """
        source = read(data, need_targets=True, what=what, min_rows=2).arranged(feature_names, what)
        if ranks.size > 1:
            agree_on_rows(source, ranks, what)
        if trains and finds_classes:
            layer = with_classes_of(layer, source, what, ranks)
        source = numbered(source, layer.likelihood, what)
        whole = source.tensors()
        given = source.example()[1] if whole is None else whole[1]
        assert given is not None
        targets = layer.likelihood.check_targets(given)
        if whole is not None:
            if trains:
                layer.likelihood.check_training(ranks.cat(targets))
            for name, part in parts_of(whole[0], f"inputs of {what}").items():
                check_finite(part, name)
            whole = whole[0], targets
        target_shape = () if layer.likelihood.is_discrete else tuple(given.shape[1:])
        if source.columns.exposure is not None:
            check_exposure(layer, source.columns, target_shape)
        return cls(source, layer, target_shape, whole, trains, ranks=ranks)

    def features(
        self,
        backbone: nn.Module | None,
        store: Path | None,
        device: str | torch.device | None,
        batch_size: int,
    ) -> tuple[FeatureRows, Tensor]:
        """Features ``[N, D]`` of all rows, and their targets as the likelihood uses them."""
        if backbone is None and store is None and self.whole is not None:
            inputs = self.whole[0]
            if not isinstance(inputs, Tensor) or inputs.dim() != 2:
                form = (
                    list(inputs.shape)
                    if isinstance(inputs, Tensor)
                    else f"a dictionary of {list(inputs.parts)}"
                )
                raise ValueError(
                    f"inputs: expected features of shape [N, D], got {form}; "
                    "pass backbone=... for other inputs, or reshape with inputs.flatten(1)"
                )
            inputs = inputs if self.index is None else inputs[self.index]
            return inputs.detach() if inputs.is_floating_point() else as_floats(inputs), self._targets()
        if backbone is not None and store is None and self.whole is not None:
            return features_in_memory(backbone, self.source, batch_size, device), self._targets()
        features = self.source.stored if backbone is None else None
        if features is None:
            features = extract_source(
                backbone, self.source, store=store, batch_size=batch_size, device=device
            )
        return features, self._targets() if self.whole is not None else self._checked_targets(features)

    def batches(
        self, batch_size: int, generator: torch.Generator | None = None
    ) -> Iterator[tuple[Any, Tensor, Columns]]:
        """One pass over inputs, targets as the likelihood uses them, and columns: in order, or in a random one.

        A last batch of one row joins the batch before, since BatchNorm cannot train on one row.
        """
        columns = self.source.columns
        if self.whole is not None:
            inputs, targets = self.whole
            num_rows = self.source.num_rows
            every = torch.arange(num_rows)
            if generator is not None:
                every = torch.randperm(num_rows, generator=generator, device=generator.device)
            whole, last = divmod(num_rows, batch_size)
            sizes = [batch_size] * whole + [last] * (last > 0)
            if last == 1 < batch_size and whole:  # as in features.sources.with_last_joined
                sizes[-2:] = [batch_size + 1]
            for rows in every.to(inputs.device).split(sizes):
                number = rows if self.index is None else self.index.to(rows.device)[rows]
                yield inputs[number], targets[number], columns if columns is NO_COLUMNS else columns[rows]
            return
        passed = self.source.batches_with_columns(batch_size, generator=generator)
        for inputs, given, some_columns in passed:
            if isinstance(inputs, Tensor):
                check_finite(inputs, "inputs")
            yield inputs, self.layer.likelihood.check_targets(given), some_columns

    def all_targets(self) -> Iterator[Tensor]:
        """All targets as the likelihood uses them, in parts."""
        if self.whole is not None:
            yield self._targets()
            return
        for _, targets in self.source.batches(BATCH_ROWS):
            if targets is not None:
                yield self.layer.likelihood.check_targets(targets)

    def in_order(self) -> Tensor | None:
        """All targets ``[N]`` or ``[N, T]`` by the numbers that :meth:`subset` takes; None if rows have no numbers."""
        if self.whole is not None:
            return self._targets()
        source = self.source.in_order()
        if source is None:
            return None
        given = [targets for _, targets in source.batches(BATCH_ROWS) if targets is not None]
        return self.layer.likelihood.check_targets(torch.cat(given))

    def subset(self, index: Tensor) -> Self:
        """The rows of these numbers, with their weights and exposures, of data whose rows have numbers."""
        source = self.source.subset(index)
        assert source is not None
        source.columns, source.classes = self.source.columns[index], self.source.classes
        chosen = index if self.index is None else self.index[index]
        return replace(self, source=source, index=None if self.whole is None else chosen)

    def _targets(self) -> Tensor:
        """Targets in memory."""
        assert self.whole is not None
        targets = self.whole[1].detach()
        return targets if self.index is None else targets[self.index]

    def _checked_targets(self, features: Features) -> Tensor:
        """Targets that came batch by batch, once all of them are there."""
        assert features.targets is not None
        if not (self.trains and is_streamed(features)):  # the first pass of the fit checks them
            features.check_finite()
        targets = self.layer.likelihood.check_targets(features.targets)
        if self.trains:
            self.layer.likelihood.check_training(self.ranks.cat(targets))
        return targets


def agree_on_rows(source: Source, ranks: Processes, what: str) -> None:
    """Stop on all ranks unless their rows are of one form, and no two ranks have the same ones."""
    inputs, targets = source.example()
    same = {
        f"inputs of {what}": {
            name: f"{part.dtype} {list(part.shape[1:])}" for name, part in parts_of(inputs, "inputs").items()
        }
        if isinstance(inputs, (Tensor, NamedRows))
        else type(inputs).__name__,
        f"targets of {what}": None if targets is None else f"{targets.dtype} {list(targets.shape[1:])}",
        f"names of the columns of {what}": source.feature_names,
        f"sample_weight of {what}": source.columns.weight is not None,
        f"exposure of {what}": None if source.columns.exposure is None else source.columns.exposure.shape[1],
    }
    identity = rows_identity(source)
    agree(ranks, same, {f"{what}": None if None in identity else identity})


def with_classes_of(layer: LastLayer, source: Source, what: str, ranks: Processes = ALONE) -> LastLayer:
    """The layer with the classes that occur in the rows of all ranks, where its likelihood takes labels and names none."""
    likelihood, labels = layer.likelihood, source.labels()
    if not isinstance(likelihood, OfClasses):
        return layer
    if ranks.size > 1:
        labels = labels_of_all(labels, ranks, what)
    if labels is None:
        return layer
    found = likelihood.with_classes_of(labels, f"targets of {what}")
    return layer if found is likelihood else replace(layer, likelihood=found)


def labels_of_all(labels: Tensor | Labels | None, ranks: Processes, what: str) -> Tensor | Labels | None:
    """The different labels of all ranks; ValueError where ranks have labels of different kinds or orders."""
    kind = "none"
    if isinstance(labels, Labels):
        kind = f"labels in the order {labels.classes}" if labels.classes.is_ordered else "labels"
    elif labels is not None:
        kind = f"numbers {labels.dtype} of {labels.dim()} axes"
    agree(ranks, {f"kind of targets of {what}": kind}, {})
    if isinstance(labels, Tensor):
        return ranks.cat(labels.unique()).unique() if labels.dim() == 1 else labels
    if labels is None or labels.classes.is_ordered:
        return labels
    found = tuple(sorted({label for some in ranks.gather(labels.classes.labels) for label in some}))
    return Labels(torch.arange(len(found)), Classes(found))


def numbered(source: Source, likelihood: Likelihood, what: str) -> Source:
    """The rows with their labels as the class numbers of a likelihood; the same rows where they are that, or no labels."""
    classes, given = likelihood.coding, source.classes
    if classes is given or (classes is not None and given is not None and classes.labels == given.labels):
        return source
    name = f"targets of {what}"

    def numbers(targets: Tensor) -> Tensor:
        return numbers_for(likelihood, targets if given is None else Labels(targets, given), name)

    found = source.changed(numbers)
    found.columns, found.classes = source.columns, classes
    return found


def check_exposure(layer: LastLayer, columns: Columns, target_shape: tuple[int, ...]) -> None:
    """Only counts have an exposure: one for a row, or one for each of its counts."""
    if columns.exposure is None:
        return
    if not layer.likelihood.is_count:
        raise ValueError(
            f"exposure: expected a likelihood of counts (Poisson, NegativeBinomial), got {type(layer.likelihood).__name__}; "
            "leave it out, or divide the targets by it"
        )
    width, num_targets = columns.exposure.shape[1], math.prod(target_shape)
    if width not in (1, num_targets):
        raise ValueError(
            f"exposure: expected shape [N] or [N, {num_targets}], one for each count, got [N, {width}]; reshape it"
        )
