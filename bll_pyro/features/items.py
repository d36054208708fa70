"""Single items of a user's dataset: the first as a batch, and whether it is another one each time."""

from __future__ import annotations

from typing import Any

from torch.utils.data import IterableDataset

from bll_pyro.classes import Labels, labels_in
from bll_pyro.features.arrays import to_tensor
from bll_pyro.features.fingerprint import DataHash
from bll_pyro.features.sources import Batch
from bll_pyro.scope import isolated

NUM_LOOKS = 4  # a flip of one half of the images is seen in seven of eight


def first_item(
    dataset: Any, collate: Any, what: str, collated: bool = True, seed: int | None = None
) -> Batch:
    """The first item as a batch of one row, or of two where ``collate`` takes an even number of rows."""
    # the item may draw from the global random state, which must not change for the caller
    with isolated(seed):
        item = next(iter(dataset)) if isinstance(dataset, IterableDataset) else dataset[0]
        try:
            try:
                return as_pair(collate([item] if collated else item), what)
            except AssertionError:  # timm's Mixup, of one row
                if not collated or isinstance(dataset, IterableDataset) or len(dataset) < 2:
                    raise
                return as_pair(collate([item, dataset[1]]), what)
        except TypeError as error:
            raise TypeError(
                f"{what}: expected items that can be put into a batch (tensors, arrays, numbers), got {_kind(item)}: "
                f"{error}; convert them in the dataset, for example images by transform=backbone.transform"
            ) from error


def inputs_vary(dataset: Any, collate: Any, what: str, collated: bool = True) -> bool:
    """Whether the first inputs are others each time that they are read, as with random augmentation; of a stream nobody knows."""
    if isinstance(dataset, IterableDataset):
        return False
    first = None
    for seed in range(NUM_LOOKS):
        digest = DataHash()
        digest.update(first_item(dataset, collate, what, collated, seed)[0], None)
        found = digest.hexdigest()
        if first is not None and found != first:
            return True
        first = found
    return False


def as_pair(batch: Any, what: str) -> Batch:
    """Inputs and targets of what a loader gives; None for targets that are not there."""
    if not isinstance(batch, (tuple, list)):
        return batch, None
    if len(batch) == 1:  # a TensorDataset of one tensor
        return batch[0], None
    if len(batch) != 2:
        raise ValueError(
            f"{what}: expected items (inputs, targets) or inputs alone, got {len(batch)} parts; give several inputs as "
            "one dictionary or tuple: ((x1, x2), y)"
        )
    inputs, targets = batch
    if isinstance(found := labels_in(targets, f"targets of {what}"), Labels):
        raise ValueError(
            f"{what}: expected items with numbers as targets, got text ({found.classes}); give class numbers, such as "
            "classes.index(label), and name the classes by the likelihood: Categorical(classes=classes)"
        )
    return inputs, None if targets is None else to_tensor(targets, f"targets of {what}")


def _kind(item: Any) -> str:
    return (
        f"({', '.join(type(part).__name__ for part in item)})"
        if isinstance(item, tuple)
        else type(item).__name__
    )
