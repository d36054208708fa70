"""A stratified choice of rows: those that are kept have the classes, or the values, of all rows."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor


def by_target(
    targets: Shaped[Tensor, "N *T"],
    may_leave: Bool[Tensor, " N"],
    is_class: bool,
    random: torch.Generator,
) -> Int[Tensor, " M"]:
    """Numbers of the rows that may leave the training, in the order of their targets, equal ones in a random order.

    Several targets of a row count by the sum of their standardised values. Of classes, and of the values of labels, one row each
    stays in training: a layer cannot learn a class that it never sees.
    """
    drawn = torch.randperm(len(targets), generator=random)
    columns = targets.cpu().reshape(len(targets), -1)
    may_leave = may_leave.cpu().clone()
    if is_class:
        for column in columns.unbind(1):
            first = np.unique(column[drawn].numpy(), return_index=True)[1]
            may_leave[drawn[torch.from_numpy(first)]] = False
    values = columns.double()
    key = ((values - values.mean(0)) / values.std(0).clamp_min(1e-300)).sum(1)
    order = drawn[key[drawn].argsort(stable=True)]
    return order[may_leave[order]]


def one_of_each_bin(
    order: Int[Tensor, " M"], num_bins: int, random: torch.Generator
) -> Int[Tensor, " num_bins"]:
    """A random one of each of ``num_bins`` equal parts of some rows in order, sorted by their numbers.

    So every class gives its share, up to one row, and so does every range of values.
    """
    edges = torch.linspace(0, len(order), num_bins + 1, dtype=torch.float64).round().long()
    position: Float[Tensor, " num_bins"] = torch.rand(num_bins, generator=random, dtype=torch.float64)
    within = (position * (edges[1:] - edges[:-1])).long()
    return order[edges[:-1] + within].sort().values
