"""Savers, readers and extractors that run in processes of their own, for tests/test_writers.py."""

from pathlib import Path

import torch
from torch import nn

import bll_pyro as bll

GENERATOR = torch.Generator().manual_seed(0)
FEATURES = torch.randn(40, 3, generator=GENERATOR)
VALUES = FEATURES.sum(1) + 0.1 * torch.randn(40, generator=GENERATOR)


def small_fit(seed: int) -> bll.Fit:
    """A fit that is known by its seed and by the bias of its backbone."""
    backbone = nn.Linear(3, 3)
    nn.init.constant_(backbone.bias, seed)
    layer = bll.LastLayer(bll.likelihoods.Gaussian(), bll.priors.Normal(1.0))
    return bll.fit(layer, (FEATURES, VALUES), backbone, bll.Exact(), seed=seed)


def save_often(folder: Path, seed: int, times: int) -> int:
    fit = small_fit(seed)
    for _ in range(times):
        fit.save(folder)
    return times


def load_often(folder: Path, times: int) -> int:
    """Every load gives one whole fit: seed and backbone belong together."""
    for _ in range(times):
        fit = bll.load(folder, backbone=nn.Linear(3, 3))
        assert isinstance(fit.backbone, nn.Linear) and bool((fit.backbone.bias == fit.seed).all())
    return times


class Slow(nn.Linear):
    """A backbone that writes a line for each of its passes."""

    def __init__(self, log: Path) -> None:
        super().__init__(3, 2)
        self.log = [log]  # in a list of no plain data: the key does not depend on it
        nn.init.constant_(self.weight, 0.5)
        nn.init.constant_(self.bias, 1.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with self.log[0].open("a") as file:
            file.write("pass\n")
        return super().forward(x)


def extract_all(store: Path, log: Path) -> list[list[float]]:
    return bll.extract(Slow(log), FEATURES, store=store, batch_size=64).tensor().tolist()
