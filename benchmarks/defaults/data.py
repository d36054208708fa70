"""The data sets: small and real, but for one with 1,200 classes. What is missing on disk is left out."""

import gzip
import json
from collections.abc import Callable
from functools import cache

import numpy as np
from sklearn import datasets
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer

from benchmarks.data import data_folder
from benchmarks.defaults.splits import DataSet, Split, first_and_last, split, stratified_order

NUM_SEEN_SEEDS = 5  # the splits of later seeds are kept aside while the defaults are tuned
NUM_WORD_COLUMNS = 128
NUM_BUMPS = 20
NUM_CLASSES, NUM_CENTRE_COLUMNS, CENTRE_NOISE = 1200, 64, 1.3

Rows = tuple[np.ndarray, np.ndarray]
Make = Callable[[int, int], Split]


@cache
def packaged(name: str) -> Rows:
    """A table that scikit-learn ships."""
    made = getattr(datasets, f"load_{name}")()
    features = made.data / 16 if name == "digits" else made.data
    return features, made.target


@cache
def stored(path: str) -> dict[str, np.ndarray]:
    """A file of arrays."""
    with np.load(data_folder() / path, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


@cache
def texts() -> tuple[list[str], np.ndarray]:
    """All queries of CLINC150 with a known intent, and the intents as numbers."""
    with gzip.open(data_folder() / "clinc150_small" / "data_small.json.gz") as file:
        parts = json.load(file)
    pairs = [pair for part in ("train", "val", "test") for pair in parts[part]]
    return [text for text, _ in pairs], np.unique([intent for _, intent in pairs], return_inverse=True)[1]


def from_package(name: str, num_test: int) -> Make:
    """Rows of a table that scikit-learn ships."""
    return lambda size, seed: first_and_last(*packaged(name), size, num_test, seed)


def uci(name: str) -> Make:
    """The first rows of a standard split (they are in random order)."""

    def make(size: int, seed: int) -> Split:
        table = stored(f"uci/{name}.npz")
        return split(table["X"], table["y"], table[f"train_{seed}"][:size], table[f"test_{seed}"])

    return make


def motorcycle(size: int, seed: int) -> Split:
    """Accelerations over Gaussian bumps of the time, evenly spaced, twice as wide as they are apart.

    Narrower ones would be zero in all training rows of some splits.
    """
    path = data_folder() / "motorcycle" / "motorcycle.csv"
    times, accelerations = np.loadtxt(path, delimiter=",", skiprows=1).T
    centres = np.linspace(0, 60, NUM_BUMPS)
    bumps = np.exp(-0.5 * ((times[:, None] - centres) / (2 * centres[1])) ** 2)
    return first_and_last(bumps, accelerations, size, 33, seed)


def network(path: str, num_test: int) -> Make:
    """Training rows out of ``H_train``, test rows out of ``H_test``."""

    def make(size: int, seed: int) -> Split:
        arrays, random = stored(path), np.random.default_rng(seed)
        num_train = len(arrays["y_train"])
        train = stratified_order(arrays["y_train"], random)[:size]
        test = stratified_order(arrays["y_test"], random)[:num_test] + num_train
        features = np.concatenate([arrays["H_train"], arrays["H_test"]])
        targets = np.concatenate([arrays["y_train"], arrays["y_test"]]).astype(int)
        return split(features, targets, train, test)

    return make


def unseen(path: str, num_test: int) -> Make:
    """Training and test rows out of ``H_test``, on which the network was not trained."""

    def make(size: int, seed: int) -> Split:
        arrays = stored(path)
        return first_and_last(arrays["H_test"], arrays["y_test"].astype(int), size, num_test, seed)

    return make


def clinc(size: int, seed: int) -> Split:
    """Words and pairs of words, weighted and brought to ``NUM_WORD_COLUMNS`` columns on the training rows alone."""
    queries, intents = texts()
    order = stratified_order(intents, np.random.default_rng(seed))
    train, test = order[:size], order[-4500:]
    counts = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    words = counts.fit_transform([queries[row] for row in train])
    columns = TruncatedSVD(NUM_WORD_COLUMNS, random_state=seed).fit(words)
    features = np.zeros((len(queries), NUM_WORD_COLUMNS), np.float32)
    features[train] = columns.transform(words)
    features[test] = columns.transform(counts.transform([queries[row] for row in test]))
    return split(features, intents, train, test)


def many_classes(size: int, seed: int) -> Split:
    """Normal centres of ``NUM_CLASSES`` classes and Normal rows around them."""
    random = np.random.default_rng(seed)
    centres = random.normal(size=(NUM_CLASSES, NUM_CENTRE_COLUMNS))
    labels = np.arange(size + 2 * NUM_CLASSES) % NUM_CLASSES
    features = centres[labels] + CENTRE_NOISE * random.normal(size=(len(labels), NUM_CENTRE_COLUMNS))
    return split(features, labels, np.arange(size), np.arange(size, len(labels)))


PIXELS = ("noise .3", "noise .6", "moved")
FASHION, RESNET = "fashion_features/cnn128.npz", "backbones/resnet20_cifar10_features.npz"
SETS = (
    DataSet(
        "digits", "64 pixels / 16", (80, 120, 160, 240, 400, 600, 900, 1200), from_package("digits", 597), PIXELS,
        is_table=False,
    ),
    DataSet("breast cancer", "30 columns", (60, 200, 400), from_package("breast_cancer", 169)),
    DataSet("wine", "13 columns", (60, 120), from_package("wine", 58)),
    DataSet("iris", "4 columns", (45, 100), from_package("iris", 50), is_kept_aside=True),
    DataSet("Fashion features", "128 of a CNN", (80, 240, 600, 2000), network(FASHION, 2000), is_table=False),
    DataSet(
        "ResNet-20, seen", "64, of rows that the network was trained on; test rows that it has not seen",
        (200, 1000, 4000), network(RESNET, 1000), is_table=False,
    ),
    DataSet(
        "ResNet-20, unseen", "64, of rows that the network was not trained on",
        (80, 240, 500), unseen(RESNET, 500), is_table=False,
    ),
    DataSet(
        "CLINC150", "TF-IDF of words and pairs, SVD to 128; 150 classes",
        (1500, 7500), clinc, is_table=False, is_large=True, num_seeds=5,
    ),
    DataSet("1,200 classes", "64 simulated columns", (10_000,), many_classes, is_large=True, num_seeds=3),
    DataSet("diabetes", "10 columns", (60, 150, 350), from_package("diabetes", 92)),
    DataSet("concrete", "8 columns", (60, 200, 927), uci("concrete")),
    DataSet("energy", "8 columns", (60, 200, 691), uci("energy"), is_kept_aside=True),
    DataSet("yacht", "6 columns", (40, 100, 277), uci("yacht")),
    DataSet("power", "4 columns", (60, 400, 8611), uci("power"), is_kept_aside=True),
    DataSet("wine_red", "11 columns", (60, 240, 1439), uci("wine_red")),
    DataSet("motorcycle, 20 bumps", "20 Gaussian bumps of the time", (60, 100), motorcycle),
)  # fmt: skip
