"""A Gaussian over weights that is diagonal once the rows are centred: the exact posterior with a bias."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from bll_pyro.gaussian.outputs import OutputGaussian
from bll_pyro.gaussian.weights import LOG_TWO_PI, WeightGaussian, standard_normals


@dataclass(frozen=True, eq=False)
class CentredDiagonal(WeightGaussian):
    """Independent outputs; of output k, with ``beta = b + shift'w`` the bias at the centre of the rows,

    ``cov(w, beta) = S (I + z z')^-1 S`` with ``S = diag(scale_k)`` and ``z = direction_k``.

    So ``f = w'(h - shift) + beta``: the rows' centre is taken out before anything is squared, and what is left is a
    diagonal with one direction of more precision (the prior of b, which is about 0 and not about the centre).

    Parameters
    ----------
    scale, direction
        ``[K, P]``; the last column belongs to the bias.
    shift
        Centre of the features, ``[P - 1]``.
    """

    scale: Float[Tensor, "K P"]
    direction: Float[Tensor, "K P"]
    shift: Float[Tensor, " P-1"]

    def outputs(self, design: Float[Tensor, "N P"]) -> OutputGaussian:
        centred = torch.cat([design[:, :-1] - design[:, -1:] * self.shift, design[:, -1:]], -1)
        spread = centred.square() @ self.scale.square().mT
        known = (centred @ (self.scale * self.direction).mT).square() / (1 + self._length)
        variance = (spread - known).clamp_min(torch.finfo(spread.dtype).tiny)
        # loc is of (w, b), which takes the rows as they are
        return OutputGaussian(design @ self.loc.mT, variance.sqrt())

    def marginal_scale(self) -> Float[Tensor, "K P"]:
        eye = torch.eye(self.loc.shape[1], dtype=self.loc.dtype, device=self.loc.device)
        scale = self.outputs(eye).scale
        assert scale is not None
        return scale.mT.contiguous()

    def rsample(self, num_draws: int, generator: torch.Generator | None = None) -> Float[Tensor, "S K P"]:
        noise = standard_normals((num_draws, *self.loc.shape), self.loc, generator)
        along = (noise * self.direction).sum(-1, keepdim=True)
        root = (1 + self._length[:, None]).sqrt()
        # (I + z z')^(-1/2) = I - z z' / (r (r + 1)) with r = sqrt(1 + z'z)
        moved = self.scale * (noise - self.direction * along / (root * (root + 1)))
        bias = moved[..., -1:] - (moved[..., :-1] * self.shift).sum(-1, keepdim=True)
        return self.loc + torch.cat([moved[..., :-1], bias], -1)

    def log_prob(self, values: Float[Tensor, "S K P"]) -> Float[Tensor, " S"]:
        return self.log_prob_by_output(values).sum(-1)

    def log_prob_by_output(self, values: Float[Tensor, "*S K P"]) -> Float[Tensor, "*S K"]:
        """Log density ``[S, K]`` of each output's weights in ``values [S, K, P]``, in nats."""
        moved = values - self.loc
        beta = moved[..., -1:] + (moved[..., :-1] * self.shift).sum(-1, keepdim=True)
        whitened = torch.cat([moved[..., :-1], beta], -1) / self.scale
        square = whitened.square().sum(-1) + (whitened * self.direction).sum(-1).square()
        return -0.5 * (square + self._log_det() + self.loc.shape[1] * LOG_TWO_PI)

    def _log_det_scale(self) -> Float[Tensor, ""]:
        return 0.5 * self._log_det().sum()

    @property
    def _length(self) -> Float[Tensor, " K"]:
        return self.direction.square().sum(-1)

    def _log_det(self) -> Float[Tensor, " K"]:
        return 2 * self.scale.log().sum(-1) - self._length.log1p()
