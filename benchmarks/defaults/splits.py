"""A split of a data set into training and test rows, its hash, and its test rows under shift."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from zlib import crc32

import numpy as np

COLUMN_NOISE = 0.5  # of a training column's standard deviation


@dataclass(frozen=True, eq=False)
class Split:
    """Training and test rows.

    Features are float32 ``[N, D]``. Targets are int64 classes, or float32 values where ``num_classes`` is 0. ``rows`` names
    where the rows come from (indices of the data set, training rows first), and makes the hash.
    """

    features: np.ndarray
    targets: np.ndarray
    test_features: np.ndarray
    test_targets: np.ndarray
    num_classes: int
    rows: np.ndarray

    @property
    def hash(self) -> str:
        """Which rows train, which test, and their targets.

        The features follow from them and the data set's recipe; a data set with another recipe gets another name.
        """
        made = hashlib.sha256(np.ascontiguousarray(self.rows, np.int64).tobytes())
        for targets in (self.targets, self.test_targets):
            made.update(np.ascontiguousarray(targets, np.float64).tobytes())
        made.update(repr(self.features.shape).encode())
        return made.hexdigest()[:12]


@dataclass(frozen=True)
class DataSet:
    """A data set at several numbers of training rows.

    Attributes
    ----------
    name, recipe : str
        Its name, and what its rows and columns are.
    sizes : tuple of int
        Numbers of training rows.
    make : callable
        ``make(size, seed) -> Split``.
    shifts : tuple of str
        Names out of ``SHIFTS``.
    is_table : bool
        Columns have units of their own; else they share one, as pixels and features of a network do.
    is_kept_aside : bool
        Not looked at while the defaults are tuned (nor are seeds from ``NUM_SEEN_SEEDS`` on, of any set).
    is_large : bool
        Many classes: scikit-learn's search is given fewer penalties, folds and iterations.
    num_seeds : int
        At most so many splits.
    """

    name: str
    recipe: str
    sizes: tuple[int, ...]
    make: Callable[[int, int], Split]
    shifts: tuple[str, ...] = ("columns",)
    is_table: bool = True
    is_kept_aside: bool = False
    is_large: bool = False
    num_seeds: int = 10


def stratified_order(labels: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """An order of the rows in which every beginning, and every end, has about the same shares of the classes."""
    position = np.empty(len(labels))
    for label in np.unique(labels):
        rows = random.permutation(np.flatnonzero(labels == label))
        position[rows] = (np.arange(len(rows)) + random.random()) / len(rows)
    return np.argsort(position)


def split(features: np.ndarray, targets: np.ndarray, train: np.ndarray, test: np.ndarray) -> Split:
    """The rows ``train`` and ``test`` of one data set; integer targets are classes."""
    is_class = np.issubdtype(targets.dtype, np.integer)
    features, targets = features.astype(np.float32), targets.astype(np.int64 if is_class else np.float32)
    return Split(
        features[train], targets[train], features[test], targets[test],
        int(targets.max()) + 1 if is_class else 0, np.concatenate([train, test]),
    )  # fmt: skip


def first_and_last(features: np.ndarray, targets: np.ndarray, size: int, num_test: int, seed: int) -> Split:
    """A seed's order of the rows: the first ``size`` train, the last ``num_test`` test.

    So the sizes of a seed have the same test rows, and smaller ones are parts of larger ones.
    """
    if size + num_test > len(targets):
        raise ValueError(f"Expected at most {len(targets)} rows, got {size} + {num_test}.")
    random = np.random.default_rng(seed)
    if np.issubdtype(targets.dtype, np.integer):
        order = stratified_order(targets, random)
    else:
        order = random.permutation(len(targets))
    return split(features, targets, order[:size], order[-num_test:])


# ---- shifts of the test rows


def noisy_pixels(scale: float) -> Callable[[Split, np.random.Generator], np.ndarray]:
    """Normal noise on every pixel."""
    return lambda made, random: made.test_features + scale * random.normal(size=made.test_features.shape)


def noisy_columns(made: Split, random: np.random.Generator) -> np.ndarray:
    """Normal noise on every column, half its standard deviation over the training rows."""
    noise = random.normal(size=made.test_features.shape) * made.features.std(0)
    return made.test_features + COLUMN_NOISE * noise


def moved(made: Split, random: np.random.Generator) -> np.ndarray:
    """Square images one pixel to the right; what enters at the left is 0."""
    side = round(made.test_features.shape[1] ** 0.5)
    images = made.test_features.reshape(-1, side, side)
    return np.pad(images, ((0, 0), (0, 0), (1, 0)))[:, :, :-1].reshape(len(images), -1)


SHIFTS: dict[str, Callable[[Split, np.random.Generator], np.ndarray]] = {
    "noise .3": noisy_pixels(0.3),
    "noise .6": noisy_pixels(0.6),
    "moved": moved,
    "columns": noisy_columns,
}


def shifted(made: Split, shift: str, seed: int) -> np.ndarray:
    """The test features under a shift; "none" leaves them as they are."""
    if shift == "none":
        return made.test_features
    random = np.random.default_rng([seed, crc32(shift.encode())])
    return SHIFTS[shift](made, random).astype(np.float32)
