"""Gaussians in closed form: over the weights, and the Gaussians over the outputs that they imply."""

from bll_pyro.gaussian.centred import CentredDiagonal
from bll_pyro.gaussian.latents import LatentGaussian
from bll_pyro.gaussian.mixture import OutputMixture
from bll_pyro.gaussian.outputs import OutputDraws, OutputGaussian, Outputs
from bll_pyro.gaussian.points import normal_points
from bll_pyro.gaussian.weights import (
    BlockDiagonal,
    Delta,
    Dense,
    Diagonal,
    LowRank,
    MatrixNormal,
    WeightGaussian,
)

__all__ = [
    "BlockDiagonal",
    "CentredDiagonal",
    "Delta",
    "Dense",
    "Diagonal",
    "LatentGaussian",
    "LowRank",
    "MatrixNormal",
    "OutputDraws",
    "OutputGaussian",
    "OutputMixture",
    "Outputs",
    "WeightGaussian",
    "normal_points",
]
