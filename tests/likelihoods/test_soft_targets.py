"""Mixup and label smoothing make targets that nobody observed: refused, by name, wherever they come from."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from timm.data import FastCollateMixup, Mixup
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset, default_collate
from torchvision.transforms import v2

import bll_pyro as bll

N, K = 24, 3
X = torch.rand(N, 1, 4, 4, generator=torch.Generator().manual_seed(0))
Y = torch.arange(N) % K
CLASSES = bll.LastLayer(bll.likelihoods.Categorical(K), bll.priors.Normal(1.0))
SOFT = "(?s)Categorical: expected labels.*mixup, CutMix and label smoothing.*no bound"
JOINT = bll.SVI(backbone_learning_rate=1e-2, num_epochs=1)


def smooth(labels: Tensor, share: float = 0.1) -> Tensor:
    return functional.one_hot(labels, K) * (1 - share) + share / K


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("svi", [None, JOINT])
def test_smoothed_labels(dtype: torch.dtype, svi: Any) -> None:
    with pytest.raises(ValueError, match=SOFT):
        bll.fit(CLASSES, (X, smooth(Y).to(dtype)), nn.Flatten(), svi)


MIXED: dict[str, Callable[[], Any]] = {
    "timm": lambda: lambda rows: Mixup(num_classes=K)(*default_collate(rows)),
    "timm, smoothing alone": lambda: (
        lambda rows: Mixup(prob=0.0, label_smoothing=0.1, num_classes=K)(*default_collate(rows))
    ),
    "torchvision": lambda: lambda rows: v2.CutMix(num_classes=K)(*default_collate(rows)),
}


@pytest.mark.parametrize("kind", MIXED)
@pytest.mark.parametrize("svi", [None, JOINT])
def test_mixed_batches_of_a_loader(kind: str, svi: Any) -> None:
    """Also where the collate function takes an even number of rows, and where it makes one-hot rows of a single row."""
    with torch.random.fork_rng():
        loader = DataLoader(TensorDataset(X, Y), 8, shuffle=True, collate_fn=MIXED[kind]())
        with pytest.raises(ValueError, match=r"(?s)Categorical: expected labels.*mixup"):
            bll.fit(CLASSES, loader, nn.Flatten(), svi)


def test_timm_collates_mixed_images() -> None:
    rows = [((255 * x.expand(3, 4, 4)).byte().numpy(), int(y)) for x, y in zip(X, Y)]
    loader: DataLoader[Any] = DataLoader(rows, 8, collate_fn=FastCollateMixup(num_classes=K))  # type: ignore[arg-type]
    with torch.random.fork_rng(), pytest.raises(ValueError, match=SOFT):
        bll.fit(CLASSES, loader, nn.Flatten(), JOINT)


def test_several_labels_a_row() -> None:
    with pytest.raises(
        ValueError, match=r"Bernoulli: expected labels 0 or 1, got .*label smoothing and mixup"
    ):
        bll.fit(bll.LastLayer(bll.likelihoods.Bernoulli()), (X.flatten(1), smooth(Y)))
    with pytest.raises(ValueError, match=r"Bernoulli: expected labels 0 or 1, got .*Categorical"):
        bll.fit(bll.LastLayer(bll.likelihoods.Bernoulli()), (X.flatten(1), Y))


def test_one_hot_rows_are_told_how_to_become_labels() -> None:
    for targets in (functional.one_hot(Y, K), functional.one_hot(Y, K).double()):
        with pytest.raises(ValueError, match="argmax"):
            bll.fit(CLASSES, (X.flatten(1), targets))
