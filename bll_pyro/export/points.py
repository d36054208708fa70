"""Outputs with the points of their integration as tensors, so that a graph holds the points and not how they are made."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from bll_pyro.gaussian import OutputCoupled, OutputDraws, OutputGaussian, Outputs, noise_points, normal_points
from bll_pyro.posterior import Posterior

NUMBERS_AT_ONCE = 2**15  # points x outputs of a row
MOST_PARTS = 16  # each is a dozen operations of the graph


@dataclass(frozen=True)
class AtPoints(OutputGaussian):
    """Gaussian outputs whose draws are at given standard normals ``points [S, noise_dim]``."""

    points: Float[Tensor, "S _"] = field(kw_only=True)  # as many as the compact form takes

    def draws(self, num_points: int, seed: int = 0) -> Float[Tensor, "S N K"]:
        """The outputs at the points; ``num_points`` and ``seed`` are those of the points."""
        return self.loc[None] if self.noise_dim == 0 else self.compact().at(self.points[:, None, :])


@dataclass(frozen=True)
class Points:
    """Standard normals of an integration: of the outputs ``[S, R]``, and of noise that moves them ``[S, U]``."""

    outputs: Tensor
    noise: Tensor

    @classmethod
    def of(cls, posterior: Posterior, num_points: int, seed: int) -> Points:
        """The points at which :func:`bll_pyro.prediction.predict` would draw the outputs of a posterior."""
        like = posterior.frame.center
        with torch.no_grad():
            outputs = posterior.outputs(like[None])
        given = outputs.given if isinstance(outputs, OutputCoupled) else outputs
        width = given.compact().noise_dim if isinstance(given, OutputGaussian) else 0
        moving = outputs.shift.shape[-1] if isinstance(outputs, OutputCoupled) else 0
        return cls(
            normal_points(num_points, width, seed).to(like),
            noise_points(num_points, moving, posterior.num_outputs, seed).to(like),
        )

    def on(self, outputs: Outputs) -> Outputs:
        """The same outputs, drawn at these points."""
        if isinstance(outputs, OutputCoupled):
            given: Any = self.on(outputs.given)
            return OutputDraws(outputs.moved(given.draws(0), self.noise))
        if isinstance(outputs, OutputGaussian):
            parts = {part.name: getattr(outputs, part.name) for part in fields(outputs)}
            return AtPoints(**parts, points=self.outputs)
        return outputs


def drawn(outputs: Outputs, num_points: int) -> list[Float[Tensor, "_ N K"]]:
    """The draws of outputs, of many outputs some at a time, so that a row's numbers stay in the cache of a core."""
    size = max(NUMBERS_AT_ONCE // outputs.mean.shape[1], -(-num_points // MOST_PARTS))
    if isinstance(outputs, AtPoints) and outputs.noise_dim:
        compact = outputs.compact()
        return [compact.at(points[:, None, :]) for points in outputs.points.split(size)]
    return list(outputs.draws(num_points).split(size))
