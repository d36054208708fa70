"""Which likelihood suits targets, by their type and values, and what the choice rests on, in words."""

from __future__ import annotations

import torch
from torch import Tensor

from bll_pyro.classes import Labels
from bll_pyro.features.sources import Source
from bll_pyro.likelihoods import Bernoulli, Categorical, Gaussian, Likelihood, NegativeBinomial

MOST_CLASSES = 100_000
RAREST = 0.1  # of the average number of rows of a value: the least for it to be a class


def suited_likelihood(source: Source) -> tuple[Likelihood, str]:
    """The likelihood of targets, and a sentence on why.

    ============================================================== ====================
    targets                                                        likelihood
    ============================================================== ====================
    with an exposure                                               ``NegativeBinomial``
    real numbers                                                   ``Gaussian``
    two labels of any type; zeros and ones ``[N, T]``              ``Bernoulli``
    more labels that are text                                      ``Categorical``
    whole numbers, each value in many rows                         ``Categorical``
    other whole numbers from 0 on                                  ``NegativeBinomial``
    other whole numbers                                            ``Gaussian``
    ============================================================== ====================

    Whole numbers can be labels or counts. Labels have about as many rows each, and large counts are rare: values are taken for
    labels where the rarest has at least a tenth of the average number of rows, and two.

    Raises
    ------
    ValueError
        For whole numbers of rows that come batch by batch, whose values are not known before all have been read.
    """
    targets = source.labels()
    if source.columns.exposure is not None:
        return NegativeBinomial(), "counts with an exposure"
    if targets is None:
        example = source.example()[1]
        assert example is not None
        if example.is_floating_point():
            return Gaussian(), "real values"
        raise ValueError(
            "recommend: expected real values, or targets in memory, got whole numbers or labels that come batch by batch, so that "
            "their kind is not known before all are read; pass likelihood=bll.likelihoods.Categorical(num_classes), Bernoulli() or "
            "NegativeBinomial()"
        )
    if isinstance(targets, Labels):
        return _of_labels(len(targets.classes), "labels")
    if targets.dim() == 2 and targets.shape[1] == 1:
        targets = targets[:, 0]
    return _of_numbers(targets)


def _of_labels(num_classes: int, what: str) -> tuple[Likelihood, str]:
    if num_classes == 2:
        return Bernoulli(), f"two {what}"
    return Categorical(), f"{what} of {num_classes} classes"


def _of_numbers(targets: Tensor) -> tuple[Likelihood, str]:
    if targets.dtype == torch.bool or bool(((targets == 0) | (targets == 1)).all()):
        labels = f"{targets.shape[1]} labels a row" if targets.dim() > 1 else "two labels"
        return Bernoulli(), f"zeros and ones: {labels}"
    if targets.is_floating_point():
        return Gaussian(), "real values"
    found = _classes(targets) if targets.dim() == 1 else None
    if found is not None and len(found) == 2:
        return _of_labels(2, f"labels, {found[0]} and {found[1]}")
    if found is not None:
        is_plain = found == list(range(len(found)))
        said = f"whole numbers, none of them rare: {len(found)} classes (for counts pass likelihood=)"
        return (Categorical(len(found)) if is_plain else Categorical(classes=found)), said
    if bool((targets >= 0).all()):
        return NegativeBinomial(), "whole numbers from 0 on, some rare: counts (for labels pass likelihood=)"
    return Gaussian(), "whole numbers, some below 0: real values (for labels pass likelihood=)"


def _classes(targets: Tensor) -> list[int] | None:
    """The values of whole numbers that look like labels, in order; None for others."""
    lowest, highest = (int(end) for end in torch.aminmax(targets))
    if highest - lowest >= MOST_CLASSES:
        return None
    times = torch.bincount((targets - lowest).flatten())
    found = times.nonzero()[:, 0]
    average, rarest = len(targets) / len(found), int(times[found].min())
    if len(found) > 2 and rarest < max(2.0, RAREST * average):
        return None
    return [lowest + number for number in found.tolist()]
