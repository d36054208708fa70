"""The tasks of the suite, and how their rows are split. What is missing on disk is left out, and named."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from zlib import crc32

import numpy as np
import torch

from benchmarks.data import cifar_features, clinc_queries, data_folder, made_up, without_classes
from benchmarks.defaults.splits import stratified_order
from benchmarks.suite.network import hidden_features
from benchmarks.suite.splits import CLASSES, NETWORK, VALUES, Split

NUM_SEEDS, NUM_SPLITS = 5, 20
NUM_WORD_COLUMNS = 128
NUM_HELD_OUT_INTENTS = 15
TABLES = ("yacht", "energy", "concrete", "wine_red", "power")
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Task:
    """A task.

    Attributes
    ----------
    name, recipe : str
        Its name, and what its rows are.
    kind : str
        A kind of `benchmarks.suite.splits`.
    make : callable
        ``make(seed) -> Split``.
    num_seeds : int
        Number of seeds, or of splits.
    """

    name: str
    recipe: str
    kind: str
    make: Callable[[int], Split]
    num_seeds: int = NUM_SEEDS

    def split(self, seed: int, folder: Path) -> tuple[Split, Path]:
        """The split of a seed, and the file that it is in; the file is made if it is not there."""
        path = folder / f"{self.name}-{seed}-{crc32(self.recipe.encode()):08x}.npz"
        if not path.exists():
            self.make(seed).write(path)
        return Split.read(path), path


@cache
def stored(path: str) -> Arrays:
    """A file of arrays."""
    with np.load(data_folder() / path, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


@cache
def digits_through_resnet() -> np.ndarray:
    """MNIST digits in grey on three channels, through the ResNet-20 ``[1000, 64]``."""
    return cifar_features(1000).ood_features.numpy()


def held_out(seed: int) -> tuple[int, int]:
    """The two classes of ten that are near unknown rows; over five seeds each class is left out once."""
    return seed % 5, seed % 5 + 5


def known_and_near(
    labels: np.ndarray, seed: int, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the known classes in a stratified order, and rows of the held-out ones in a random order."""
    is_near = np.isin(labels, held_out(seed))
    known = np.flatnonzero(~is_near)
    return known[stratified_order(labels[known], random)], random.permutation(np.flatnonzero(is_near))


def renumbered(labels: np.ndarray, left_out: tuple[int, ...], num_classes: int) -> np.ndarray:
    """Labels of the classes that are left, from 0 on."""
    number = np.full(num_classes, -1)
    kept = [label for label in range(num_classes) if label not in left_out]
    number[kept] = np.arange(len(kept))
    return number[labels].astype(np.int64)


def images(seed: int, path: str, far: np.ndarray, sizes: tuple[int, int, int], *, is_seen: bool) -> Split:
    """Features of a network: training rows that it was trained on too, or rows that it has not seen.

    ``sizes``: training rows, rows kept aside, and test rows. The last two are never rows that the network has seen.
    """
    arrays, random = stored(path), np.random.default_rng(seed)
    num_train, num_kept, num_test = sizes
    known, near = known_and_near(arrays["y_test"], seed, random)
    first = np.concatenate([arrays["H_train"], arrays["H_test"]]).astype(np.float32)
    labels = np.concatenate([arrays["y_train"], arrays["y_test"]]).astype(np.int64)
    offset = len(arrays["y_train"])
    kept, test, rest = np.split(known + offset, [num_kept, num_kept + num_test])
    train = rest if not is_seen else known_and_near(arrays["y_train"], seed, random)[0]
    train, near = train[:num_train], near[:1000] + offset
    targets = renumbered(labels, held_out(seed), 10)
    parts = {"test": first[test], "kept": first[kept], "near": first[near], "far": far}
    rows = np.concatenate([train, test, kept, near])
    return Split(CLASSES, first[train], targets[train], parts, targets[test], 8, rows)


def fashion(seed: int) -> Split:
    """Fashion-MNIST features; the far rows are MNIST digits through the same network."""
    path = "fashion_features/cnn128.npz"
    far = stored(path)["H_mnist"][:1000].astype(np.float32)
    return images(seed, path, far, (3000, 1000, 3000), is_seen=True)


def cifar(seed: int, *, is_seen: bool) -> Split:
    """Features of the ResNet-20; the far rows are MNIST digits through the same network."""
    sizes = (3000, 250, 550) if is_seen else (450, 120, 230)
    path = "backbones/resnet20_cifar10_features.npz"
    return images(seed, path, digits_through_resnet(), sizes, is_seen=is_seen)


def clinc(seed: int) -> Split:
    """CLINC150: words and pairs of words on 128 directions; 15 intents are held out, and queries of no intent are far."""
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    queries, random = clinc_queries(), np.random.default_rng(seed)
    order = np.random.default_rng(0).permutation(queries.num_classes)
    left_out = tuple(int(i) for i in order[seed * NUM_HELD_OUT_INTENTS : (seed + 1) * NUM_HELD_OUT_INTENTS])
    labels = {part: queries.targets[part].numpy() for part in ("train", "val", "test")}
    known = {part: np.flatnonzero(~np.isin(of, left_out)) for part, of in labels.items()}
    sizes = {"train": 3000, "val": 500, "test": 1500}
    picked = {p: known[p][stratified_order(labels[p][known[p]], random)][:size] for p, size in sizes.items()}
    near = np.flatnonzero(np.isin(labels["test"], left_out))
    counts = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    words = counts.fit_transform([queries.texts["train"][i] for i in picked["train"]])
    directions = TruncatedSVD(NUM_WORD_COLUMNS, random_state=seed).fit(words)

    def features(part: str, rows: np.ndarray) -> np.ndarray:
        texts = [queries.texts[part][i] for i in rows]
        found: np.ndarray = directions.transform(counts.transform(texts)).astype(np.float32)
        return found

    parts = {
        "test": features("test", picked["test"]),
        "kept": features("val", picked["val"]),
        "near": features("test", near),
        "far": features("oos_test", np.arange(len(queries.texts["oos_test"]))),
    }
    number = {p: renumbered(labels[p], left_out, queries.num_classes)[picked[p]] for p in ("train", "test")}
    rows = np.concatenate([picked["train"], picked["test"], picked["val"], near])
    num_classes = queries.num_classes - len(left_out)
    train = features("train", picked["train"])
    return Split(CLASSES, train, number["train"], parts, number["test"], num_classes, rows)


def network(name: str, seed: int) -> Split:
    """A standard split of a UCI table: the inputs of a network."""
    table = stored(f"uci/{name}.npz")
    train, test = table[f"train_{seed}"], table[f"test_{seed}"]
    inputs, targets = table["X"].astype(np.float32), table["y"].astype(np.float32)
    parts = {"test": inputs[test]}
    rows = np.concatenate([train, test])
    return Split(NETWORK, inputs[train], targets[train], parts, targets[test], 0, rows)


def last_layer(name: str, seed: int) -> Split:
    """The same rows as 50 hidden features of a network that was trained on the training rows by its MAP estimate."""
    split = network(name, seed)
    features, test = hidden_features(split, seed)
    return Split(VALUES, features, split.targets, {"test": test}, split.test_targets, 0, split.source)


def small(seed: int) -> Split:
    """Made-up features, for a quick run that says whether everything runs."""
    task = without_classes(made_up(300, 6, 4, num_test_rows=240, seed=seed), (3,))
    test, kept = task.test_features.tensor_split(2)
    parts = {"test": test, "kept": kept, "near": task.ood_features, "far": 3.0 * torch.ones(50, 6)}
    arrays = {name: rows.numpy() for name, rows in parts.items()}
    targets = (task.train_targets.numpy(), task.test_targets[: len(test)].numpy())
    return Split(CLASSES, task.train_features.numpy(), targets[0], arrays, targets[1], 3, np.arange(300))


def small_values(seed: int, kind: str) -> Split:
    """Made-up values."""
    random = np.random.default_rng(seed)
    features = random.normal(size=(120, 4)).astype(np.float32)
    targets = (features.sum(1) + 0.3 * random.normal(size=120)).astype(np.float32)
    return Split(kind, features[:80], targets[:80], {"test": features[80:]}, targets[80:], 0, np.arange(120))


TASKS = (
    Task(
        "fashion", "Fashion-MNIST: 3,000 training rows of 128 features of a small CNN, 8 classes; near: 2 classes that the last "
        "layer has not seen; far: MNIST digits", CLASSES, fashion,
    ),
    Task(
        "cifar-seen", "CIFAR-10: 3,000 rows of 64 features of a ResNet-20 on which the network was trained too, 8 classes; near: 2 "
        "classes that the last layer has not seen; far: MNIST digits", CLASSES, lambda seed: cifar(seed, is_seen=True),
    ),
    Task(
        "cifar-unseen", "the same with 450 training rows on which the network was not trained", CLASSES,
        lambda seed: cifar(seed, is_seen=False),
    ),
    Task(
        "clinc", "CLINC150: 3,000 queries as TF-IDF of words and pairs on 128 directions, 135 intents; near: 15 intents that were "
        "held out; far: queries of no intent", CLASSES, clinc,
    ),
    *(
        Task(
            f"{name}", f"UCI {name}: 50 features of a network with one hidden layer, trained on the training rows (MAP); last "
            "layer only", VALUES, lambda seed, name=name: last_layer(name, seed), NUM_SPLITS,  # type: ignore[misc]
        )
        for name in TABLES
    ),
    *(
        Task(
            f"{name}-net", f"UCI {name}: end to end, one hidden layer of 50", NETWORK,
            lambda seed, name=name: network(name, seed), NUM_SPLITS,  # type: ignore[misc]
        )
        for name in TABLES
    ),
)  # fmt: skip
SMALL = (
    Task("small", "made-up features", CLASSES, small, 2),
    Task("small-values", "made-up values", VALUES, lambda seed: small_values(seed, VALUES), 1),
    Task("small-net", "made-up values", NETWORK, lambda seed: small_values(seed, NETWORK), 1),
)
