"""Random features that are found from the rows of a fit: which rows, which responses, and the kernel of highest evidence."""

from __future__ import annotations

import torch
from torch import Tensor

from bll_pyro.features.arrays import check_finite
from bll_pyro.features.columns import Columns
from bll_pyro.features.length_scales import KernelRows, kernel_of
from bll_pyro.features.random_fourier import RandomFeatures, RandomFourierBackbone
from bll_pyro.inference.standardization import scale_by_column, weighted_moments
from bll_pyro.inference.training_data import TrainingData
from bll_pyro.likelihoods import Likelihood
from bll_pyro.scope import generator

CHOOSING = 4  # the form of the kernel is chosen on a quarter of the most rows that its numbers are found on,
LABELS = 4  # and the evidence of labels, for which a mode is sought, takes a quarter of the rows
MOST_LABELS = 10  # classes or labels that the lengths are found for: those that split the rows best


def found_from(declared: RandomFeatures, rows: TrainingData) -> RandomFourierBackbone:
    """The features whose kernel has the highest evidence on some of the rows; rows of weight 0 are not looked at.

    Raises
    ------
    ValueError
        If rows cannot be reached by number, or are no tables ``[N, D]``.
    """
    inputs, targets, columns = _some(rows, declared)
    likelihood = rows.layer.likelihood
    weight = torch.ones(len(inputs), dtype=torch.float64)
    if columns.weight is not None:
        weight = columns.weight.double().cpu()
    moments = weighted_moments([inputs], columns.weight)
    center, scale = moments.mean, scale_by_column(moments, inputs, columns.weight)
    responses, are_labels = _responses(likelihood, targets, columns, weight)
    found = KernelRows((inputs.double() - center) / scale, responses, weight, are_labels)
    most = declared.num_rows
    if are_labels:
        most = -(-most // LABELS)
        found = found.first(most)
    choosing = most // (CHOOSING // 2 if are_labels else CHOOSING)
    kernel = kernel_of(found, max(2, choosing))
    return declared.features(kernel, center, scale)


def _some(rows: TrainingData, declared: RandomFeatures) -> tuple[Tensor, Tensor, Columns]:
    """Up to ``num_rows`` rows of positive weight in random order, with targets as the likelihood uses them, on the CPU."""
    number, weight = rows.source.num_rows, rows.source.columns.weight
    index = torch.randperm(number, generator=generator(declared.seed))
    if weight is not None:
        index = index[(weight.reshape(-1).cpu() > 0)[index]]
    if rows.whole is None and rows.source.subset(index[:1]) is None:
        raise ValueError(
            "random_features: expected rows that can be reached by number, got a loader or stream whose rows cannot; pass arrays "
            "or a dataset"
        )
    some = rows.subset(index[: declared.num_rows])
    inputs, targets, columns = next(some.batches(declared.num_rows))
    if not isinstance(inputs, Tensor) or inputs.dim() != 2:
        got = list(inputs.shape) if isinstance(inputs, Tensor) else type(inputs).__name__
        raise ValueError(
            f"random_features: expected a table [N, D], got inputs {got}; reshape them, or use the backbone of a network"
        )
    check_finite(inputs, "inputs")
    inputs = inputs.detach().cpu()
    return inputs if inputs.is_floating_point() else inputs.double(), targets.detach().cpu(), columns


def _responses(
    likelihood: Likelihood, targets: Tensor, columns: Columns, weight: Tensor
) -> tuple[Tensor, bool]:
    """What the process explains ``[n, T]``: labels 0 and 1 of classes and yes-or-no answers, else values of mean 0 and scale 1."""
    num_outputs = likelihood.num_outputs(tuple(targets.shape[1:]))
    if likelihood.is_discrete and num_outputs > 1:
        labels = torch.nn.functional.one_hot(targets.long(), num_outputs).double()
        labels = labels[:, :1] if num_outputs == 2 else labels
    elif likelihood.is_binary:
        labels = targets.double().reshape(len(targets), -1)
    else:
        values = targets.double().reshape(len(targets), -1)
        if likelihood.is_count:
            exposure = 1.0 if columns.exposure is None else columns.exposure.double().cpu()
            values = (values / exposure).log1p()
        moments = weighted_moments([values], columns.weight)
        scale = torch.where(moments.constant, 1.0, moments.variance.sqrt())
        return (values - moments.mean) / scale, False
    share = weight @ labels / weight.sum()
    best = (share * (1 - share)).argsort(descending=True, stable=True)[:MOST_LABELS]
    return labels[:, best], True
