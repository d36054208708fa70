"""The table of guides that the tests of the family run over; a new one enters by one line."""

import re
from functools import partial

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from bll_pyro import guides


def independent(
    features: Tensor,
    targets: Tensor | None,
    num_rows: int | None,
    *,
    num_outputs: int,
    num_features: int,
) -> None:
    """A guide function of the user's, written for a layer with weight and bias and nothing else."""
    for name, shape in (("weight", (num_outputs, num_features)), ("bias", (num_outputs,))):
        loc = pyro.param(f"{name}.loc", torch.zeros(shape))
        scale = pyro.param(f"{name}.scale", torch.full(shape, 0.2), constraint=constraints.positive)
        pyro.sample(name, dist.Normal(loc, scale).to_event(len(shape)))


def guides_for(num_outputs: int, num_features: int) -> dict[str, guides.Guide]:
    """One or more of each class; the function is for layers of this shape."""
    return {
        "MAP": guides.MAP(),
        "diagonal": guides.Diagonal(),
        "plain diagonal": guides.Diagonal(principal_axes=False),
        "block-diagonal": guides.BlockDiagonal(),
        "low-rank": guides.LowRank(rank=2),
        "plain low-rank": guides.LowRank(rank=3, principal_axes=False),
        "matrix-normal": guides.MatrixNormal(),
        "full-rank": guides.FullRank(),
        "flow": guides.Flow(),
        "spline flow": guides.Flow(num_layers=1, layer=guides.Spline(num_bins=4)),
        "custom class": guides.Custom("AutoNormal"),
        "custom options": guides.Custom(pyro.infer.autoguide.AutoLowRankMultivariateNormal, {"rank": 2}),
        "custom messenger": guides.Custom("AutoNormalMessenger"),
        "custom function": guides.Custom(
            partial(independent, num_outputs=num_outputs, num_features=num_features)
        ),
    }


def name_of(value: object) -> str:
    """Its text without addresses in memory, which differ between the processes that share the tests."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))
