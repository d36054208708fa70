"""Data whose inputs are others each time that they are read: noticed, said once, and not stored."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

import bll_pyro as bll
from bll_pyro.features.data import read

N = 40
X = torch.randn(N, 3, 4, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0, 0] > 0).long()
LAYER = bll.LastLayer(bll.likelihoods.Categorical(2), bll.priors.Normal(1.0))
ONE_PASS = "fitted to the features of one pass"


class Images(Dataset[Any]):
    """Items, changed at random by one of the generators that transforms draw from."""

    def __init__(self, source: str = "torch") -> None:
        self.source = source

    def __len__(self) -> int:
        return N

    def flips(self) -> bool:
        drawn = {
            "torch": lambda: float(torch.rand(())),
            "numpy": lambda: float(np.random.rand()),
            "python": random.random,
            "own": lambda: float(np.random.default_rng().random()),
            "nobody": lambda: 1.0,
        }
        return drawn[self.source]() < 0.5

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        return (X[number].flip(-1) if self.flips() else X[number]), Y[number]


class Stream(IterableDataset[Any]):
    """Items that can be read once."""

    def __init__(self) -> None:
        self.rows = iter(zip(X, Y))
        self.num_read = 0

    def __len__(self) -> int:
        return N

    def __iter__(self) -> Any:
        for row in self.rows:
            self.num_read += 1
            yield row


@pytest.mark.parametrize("form", ["dataset", "loader", "beside"])
@pytest.mark.parametrize(("source", "varies"), [("torch", 1), ("numpy", 1), ("python", 1), ("nobody", 0)])
def test_random_inputs_are_noticed(source: str, varies: int, form: str) -> None:
    forms: dict[str, Any] = {
        "dataset": Images(source),
        "loader": DataLoader(Images(source), 8, shuffle=True),
        "beside": (Images(source), Y),
    }
    assert read(forms[form], need_targets=True).varies() is bool(varies)


def test_arrays_and_streams_are_left_alone() -> None:
    stream = Stream()
    assert not read((X, Y), need_targets=True).varies()
    assert not read(DataLoader(stream, 8), need_targets=False).varies()
    assert stream.num_read == 0


def test_a_frozen_fit_says_it_and_stores_nothing(tmp_path: Path) -> None:
    with pytest.warns(RuntimeWarning, match="other inputs each time .*the store is left alone") as said:
        fit = bll.fit(LAYER, Images(), nn.Flatten(), store=tmp_path)
    assert len(said) == 1 and not list(tmp_path.iterdir())
    assert [ONE_PASS in note for note in fit.trace.notes] == [True]
    assert fit.num_rows == N
    plain = bll.fit(LAYER, Images("nobody"), nn.Flatten(), store=tmp_path)
    assert list(tmp_path.iterdir()) and not plain.trace.notes


def test_joint_training_may_augment() -> None:
    svi = bll.SVI(backbone_learning_rate=1e-2, num_epochs=1, final_stage=False)
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 4))
    fit = bll.fit(LAYER, Images(), net, svi, calibration=0.2)
    assert not [note for note in fit.trace.notes if ONE_PASS in note]


def test_features_of_a_loader_that_shuffles_and_has_no_targets_have_no_order() -> None:
    class Inputs(Images):
        def __getitem__(self, number: int) -> Any:
            return X[number]

    with pytest.warns(RuntimeWarning, match="expected rows in an order that is known.*shuffle=False"):
        bll.extract(nn.Flatten(), DataLoader(Inputs(), 8, shuffle=True))
    assert bll.extract(nn.Flatten(), DataLoader(Images("nobody"), 8, shuffle=True)).num_rows == N
    assert bll.extract(nn.Flatten(), DataLoader(Inputs(), 8)).num_rows == N
