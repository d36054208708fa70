"""Small fits of every kind of target, with rows to report on."""

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import nn

import bll_pyro as bll

NUM_TRAIN, NUM_ROWS = 100, 300
HOSTILE = '<script>alert("x")</script> & <b>bold</b>'


@dataclass(frozen=True)
class Case:
    """A fit, its training rows, and others."""

    fit: bll.Fit
    train: Any
    held_out: Any
    test: Any


@cache
def case(kind: str) -> Case:
    """A fit of this kind of target, made once in a process."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(NUM_ROWS, 4, generator=generator)
    noise = torch.randn(NUM_ROWS, 3, generator=generator)
    signal = x[:, 0] + 0.5 * x[:, 1] + 0.4 * noise[:, 0]
    likelihoods = bll.likelihoods
    targets, likelihood = {
        "classes": lambda: (torch.bucketize(signal, torch.tensor([-0.5, 0.5])), likelihoods.Categorical(3)),
        "ordinal": lambda: (torch.bucketize(signal, torch.tensor([-0.5, 0.5])), likelihoods.Ordinal(3)),
        "binary": lambda: ((signal > 0).long(), likelihoods.Bernoulli()),
        "multilabel": lambda: (
            (torch.stack([signal, x[:, 2]], 1) + noise[:, :2] > 0).long(),
            likelihoods.Bernoulli(),
        ),
        "values": lambda: (10 + 5 * signal, likelihoods.Gaussian()),
        "robust values": lambda: (10 + 5 * signal, likelihoods.StudentT(df=4.0)),
        "several values": lambda: (torch.stack([signal, x[:, 3] + noise[:, 1]], 1), likelihoods.Gaussian()),
        "uneven noise": lambda: (
            signal + x[:, 2].abs() * noise[:, 2],
            likelihoods.HeteroscedasticGaussian(),
        ),
        "counts": lambda: (torch.poisson(signal.exp(), generator=generator), likelihoods.Poisson()),
        "spread counts": lambda: (
            torch.poisson(signal.exp(), generator=generator),
            likelihoods.NegativeBinomial(),
        ),
    }[kind]()
    parts = (slice(0, NUM_TRAIN), slice(NUM_TRAIN, 2 * NUM_TRAIN), slice(2 * NUM_TRAIN, NUM_ROWS))
    train, held_out, test = ((x[part], targets[part]) for part in parts)
    return Case(bll.fit(bll.LastLayer(likelihood), train), train, held_out, test)


def images(num_rows: int = 10_000) -> Case:
    """A fit of small images, all of them to report on."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(num_rows, 3, 12, 12, generator=generator)
    y = (x[:, 0].mean((1, 2)) > x[:, 1].mean((1, 2))).long()
    torch.manual_seed(0)
    network = nn.Sequential(nn.AvgPool2d(6), nn.Flatten())
    train, held_out = (x[:200], y[:200]), (x[200:400], y[200:400])
    fit = bll.fit(bll.LastLayer(bll.likelihoods.Categorical(2)), train, network)
    return Case(fit, train, held_out, (x, y))
