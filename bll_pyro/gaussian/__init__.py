"""Gaussians in closed form: over the weights, and the Gaussians over the outputs that they imply."""

from bll_pyro.gaussian.centred import CentredDiagonal
from bll_pyro.gaussian.coupled import OutputCoupled, noise_points
from bll_pyro.gaussian.kronecker import Kronecker
from bll_pyro.gaussian.latent_distribution import LatentDistribution
from bll_pyro.gaussian.latents import LatentGaussian, flatten
from bll_pyro.gaussian.mixture import OutputMixture
from bll_pyro.gaussian.outputs import OutputDraws, OutputGaussian, Outputs
from bll_pyro.gaussian.points import normal_grid, normal_points
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
    "Kronecker",
    "LatentDistribution",
    "LatentGaussian",
    "LowRank",
    "MatrixNormal",
    "OutputCoupled",
    "OutputDraws",
    "OutputGaussian",
    "OutputMixture",
    "Outputs",
    "WeightGaussian",
    "flatten",
    "noise_points",
    "normal_grid",
    "normal_points",
]
