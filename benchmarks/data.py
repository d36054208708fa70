"""Features for the benchmarks: stored network features, and simulated ones of any size."""

import gzip
import json
import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Task:
    """Training rows, test rows and out-of-distribution rows of one classification task.

    Features are float32 ``[N, D]``, targets int64 ``[N]``. ``head_weight [K, D]`` and ``head_bias [K]`` are the
    network's own last layer, or None.
    """

    name: str
    train_features: Tensor
    train_targets: Tensor
    test_features: Tensor
    test_targets: Tensor
    ood_features: Tensor
    num_classes: int
    head_weight: Tensor | None = None
    head_bias: Tensor | None = None


def data_folder() -> Path:
    """The folder of public data sets: ``BLL_DATA``, or by default ``../shared/data``, next to the repository."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("BLL_DATA", beside))
    if not folder.is_dir():
        raise FileNotFoundError(
            "Expected the folder of benchmark data sets, found none. Set BLL_DATA to the folder that holds "
            "fashion_features/cnn128.npz."
        )
    return folder


@dataclass(frozen=True)
class Images:
    """Images ``[N, 1, 28, 28]``, float32, centred and scaled by one pair of numbers of the training images; labels ``[N]``."""

    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    unknown: Tensor


def fashion_images() -> Images:
    """Fashion-MNIST, 60,000 + 10,000 images of 10 classes; the 10,000 MNIST test digits are the unknown inputs."""
    folder = data_folder()

    def numbers(name: str, skip: int) -> Tensor:
        return torch.frombuffer(
            bytearray(gzip.decompress((folder / name).read_bytes())[skip:]), dtype=torch.uint8
        )

    def images(name: str) -> Tensor:
        return numbers(f"{name}-images-idx3-ubyte.gz", 16).view(-1, 1, 28, 28).float() / 255

    train, test, unknown = (
        images(name) for name in ("fashion_mnist/train", "fashion_mnist/t10k", "mnist_test/t10k")
    )
    center, scale = train.mean(), train.std()
    train_targets, test_targets = (
        numbers(f"fashion_mnist/{name}-labels-idx1-ubyte.gz", 8).long() for name in ("train", "t10k")
    )
    for one in (train, test, unknown):
        one.sub_(center).div_(scale)
    return Images((train, train_targets), (test, test_targets), unknown)


def fashion_features() -> Task:
    """Read penultimate features of a small CNN on Fashion-MNIST; MNIST digits are the unknown inputs.

    60,000 + 10,000 + 10,000 rows of 128 ReLU features, 10 classes.
    """
    with np.load(data_folder() / "fashion_features" / "cnn128.npz", allow_pickle=False) as stored:
        tensors = {name: torch.from_numpy(stored[name]) for name in stored.files}
    return Task(
        name="Fashion-MNIST features (60,000 x 128, 10 classes)",
        train_features=tensors["H_train"].float(),
        train_targets=tensors["y_train"].long(),
        test_features=tensors["H_test"].float(),
        test_targets=tensors["y_test"].long(),
        ood_features=tensors["H_mnist"].float(),
        num_classes=10,
        head_weight=tensors["head_weight"].float(),
        head_bias=tensors["head_bias"].float(),
    )


def cifar_features(num_unknown: int = 2000) -> Task:
    """Features of a ResNet-20 on a subset of CIFAR-10; MNIST digits in grey on three channels are the unknown inputs.

    4,000 training rows, on whose images the network was trained too, 1,000 test rows that it has not seen, 64 features.
    """
    from benchmarks.resnet20 import features_of, pretrained

    folder = data_folder()
    with np.load(folder / "backbones" / "resnet20_cifar10_features.npz", allow_pickle=False) as stored:
        tensors = {name: torch.from_numpy(stored[name]) for name in stored.files}
    raw = gzip.decompress((folder / "mnist_test" / "t10k-images-idx3-ubyte.gz").read_bytes())
    digits = torch.frombuffer(bytearray(raw[16:]), dtype=torch.uint8).view(-1, 1, 28, 28)[:num_unknown]
    images = torch.nn.functional.pad(digits.float() / 255, (2, 2, 2, 2)).expand(-1, 3, -1, -1)
    network = pretrained(folder)
    return Task(
        name="CIFAR-10 features of a ResNet-20 (4,000 x 64, 10 classes)",
        train_features=tensors["H_train"].float(),
        train_targets=tensors["y_train"].long(),
        test_features=tensors["H_test"].float(),
        test_targets=tensors["y_test"].long(),
        ood_features=features_of(network, images),
        num_classes=10,
        head_weight=network.linear.weight.detach(),
        head_bias=network.linear.bias.detach(),
    )


@dataclass(frozen=True)
class Queries:
    """Texts by part (train, val, test, and oos_val, oos_test without a known intent), and the intents of known ones as numbers."""

    texts: dict[str, list[str]]
    targets: dict[str, Tensor]
    num_classes: int


def clinc_queries() -> Queries:
    """The small variant of CLINC150: 7,500 training, 3,000 validation and 4,500 test queries of 150 intents, 1,000 of none."""
    stored = json.loads(
        gzip.decompress((data_folder() / "clinc150_small" / "data_small.json.gz").read_bytes())
    )
    intents = sorted({intent for _, intent in stored["train"]})
    number = {intent: i for i, intent in enumerate(intents)}
    return Queries(
        {name: [text for text, _ in rows] for name, rows in stored.items()},
        {
            name: torch.tensor([number[intent] for _, intent in stored[name]])
            for name in ("train", "val", "test")
        },
        len(intents),
    )


def tfidf_features(queries: Queries, num_features: int = 256) -> dict[str, Tensor]:
    """Truncated SVD of TF-IDF ``[N, D]`` by part: words, pairs of words and directions are those of the training queries."""
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    texts = queries.texts
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True).fit(texts["train"])
    directions = TruncatedSVD(num_features, random_state=0).fit(words.transform(texts["train"]))
    return {
        name: torch.from_numpy(directions.transform(words.transform(part))).float()
        for name, part in texts.items()
    }


def clinc_features(num_features: int = 256) -> Task:
    """Queries of 150 intents as truncated SVD of TF-IDF; queries of no intent are the unknown inputs.

    7,500 training rows, 4,500 test rows and 1,000 unknown rows.
    """
    queries = clinc_queries()
    features, targets = tfidf_features(queries, num_features), queries.targets
    return Task(
        name=f"CLINC150 queries (7,500 x {num_features}, 150 classes)",
        train_features=features["train"],
        train_targets=targets["train"],
        test_features=features["test"],
        test_targets=targets["test"],
        ood_features=features["oos_test"],
        num_classes=queries.num_classes,
    )


def without_classes(task: Task, left_out: tuple[int, ...]) -> Task:
    """The task with some of its classes as the unknown inputs: their test rows; the last layer sees none of them."""
    unknown = torch.tensor(left_out)
    train, test = (torch.isin(labels, unknown) for labels in (task.train_targets, task.test_targets))
    kept = [label for label in range(task.num_classes) if label not in left_out]
    number = torch.full((task.num_classes,), -1)
    number[kept] = torch.arange(len(kept))
    return replace(
        task,
        name=f"{task.name.split(' (')[0]}, without classes {' and '.join(map(str, left_out))}",
        train_features=task.train_features[~train],
        train_targets=number[task.train_targets[~train]],
        test_features=task.test_features[~test],
        test_targets=number[task.test_targets[~test]],
        ood_features=task.test_features[test],
        num_classes=len(kept),
        head_weight=None,
        head_bias=None,
    )


def made_up(
    num_rows: int, num_features: int, num_classes: int, *, num_test_rows: int = 0, seed: int = 0
) -> Task:
    """Simulate features like those of a ReLU network, with labels from a linear model.

    ``h = relu(A z + 0.3 e)`` with ``z`` of 32 dimensions (or D, if that is less), so that the spectrum decays like that
    of network features; labels are drawn from a softmax over ``(W h) / c``, scaled to logits of standard deviation 3.
    Unknown rows have another matrix ``A``.
    """
    generator = torch.Generator().manual_seed(seed)
    rank = min(32, num_features)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    def features(directions: Tensor, rows: int) -> Tensor:
        return (normal(rows, rank) @ directions).add_(normal(rows, num_features), alpha=0.3).relu_()

    known, unknown = (normal(rank, num_features) / rank**0.5 for _ in range(2))
    teacher = normal(num_classes, num_features)
    everything = features(known, num_rows + num_test_rows)
    sample = everything[:2000]
    scale = 3.0 / ((sample - sample.mean(0)) @ teacher.mT).std().clamp_min(1e-6)

    def labels(rows: Tensor) -> Tensor:
        # Gumbel-max trick: the argmax of logit + Gumbel noise is a draw from the softmax; in blocks, to save memory
        drawn = [
            ((part - sample.mean(0)) @ teacher.mT * scale)
            .sub_(torch.empty(len(part), num_classes).exponential_(generator=generator).log_())
            .argmax(-1)
            for part in rows.split(4096)
        ]
        return torch.cat(drawn)

    targets = labels(everything)
    return Task(
        name=f"made-up features ({num_rows:,} x {num_features:,}, {num_classes:,} classes)",
        train_features=everything[:num_rows],
        train_targets=targets[:num_rows],
        test_features=everything[num_rows:],
        test_targets=targets[num_rows:],
        ood_features=features(unknown, num_test_rows),
        num_classes=num_classes,
    )
