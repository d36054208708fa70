"""The Student-t prior: like Normal near its centre, with heavier tails."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor

from bll_pyro.checks import is_number, positive_or_none
from bll_pyro.gaussian.strata import stratified_square
from bll_pyro.priors.base import IS_DEVIATION, ScaleMixturePrior, Shape, centre, check_loc, expand

MAX_NEWTON_STEPS = 50


@dataclass(frozen=True, eq=False)
class StudentT(ScaleMixturePrior):
    """Independent Student-t weights: ``weight[k, d] ~ StudentT(df, loc[k, d], scale * sqrt((df - 2) / df))``.

    Parameters
    ----------
    df
        Degrees of freedom, more than 2 so that there is a standard deviation; the fewer, the heavier the tails. For
        heavier tails still, such as Cauchy's, use ``Distribution`` or ``Horseshoe``.
    scale
        Standard deviation of each weight, so that numbers mean the same in every prior (the t's own scale parameter
        is smaller); None (default) learns it as ``tau``.
    loc
        Centre ``[K, D]`` of the weights, on the scale of the standardised features; None is 0.
    """

    df: float = 4.0
    scale: float | None = None
    loc: Tensor | None = None

    def __post_init__(self) -> None:
        if not is_number(self.df, above=2.0):
            raise ValueError(
                f"StudentT(df=...): expected a number above 2, where a standard deviation exists, got {self.df!r}; "
                "for heavier tails use Horseshoe() or Distribution(pyro.distributions.StudentT(df, 0.0, scale))"
            )
        positive_or_none(self.scale, "scale", "StudentT", IS_DEVIATION)
        check_loc(self.loc, "StudentT")

    @property
    def _ratio(self) -> float:
        """The t's own scale parameter for a standard deviation of 1."""
        return math.sqrt((self.df - 2) / self.df)

    def learned_start(self, shape: Shape) -> dict[str, Tensor]:
        """One ``tau`` for the layer; starts at 1."""
        return {} if self.scale is not None else {"tau": torch.ones(())}

    def distribution(self, shape: Shape, tau: Tensor | None = None, **_: Tensor) -> dist.StudentT:
        """Student-t with batch shape ``[..., K, D]``."""
        scale = (
            torch.as_tensor(self.scale, dtype=torch.get_default_dtype())
            if tau is None
            else tau[..., None, None]
        )
        loc, width = expand(centre(self.loc, scale), shape), expand(scale * self._ratio, shape)
        return dist.StudentT(torch.full_like(width, self.df), loc, width, validate_args=False)

    def log_prob_of_square(
        self, square: Float[Tensor, "*S K D"], tau: Tensor | None = None, **_: Tensor
    ) -> Float[Tensor, "*S K D"]:
        """``log t(df)`` at squared distances from the centre."""
        width = (
            torch.as_tensor(self.scale, dtype=torch.get_default_dtype()).to(square) if tau is None else tau
        ) * self._ratio
        half = 0.5 * (self.df + 1)
        constant = math.lgamma(half) - math.lgamma(0.5 * self.df) - 0.5 * math.log(self.df * math.pi)
        return constant - width.log() - half * torch.log1p(square / (self.df * width.square()))

    def learned_update(
        self, loc: Float[Tensor, "*S K D"], scale: Float[Tensor, "*S K D"]
    ) -> dict[str, Tensor]:
        """The maximiser of ``expected_log_prob`` in ``tau``, by Newton's method.

        With ``a = square / (df ratio^2)`` and ``q = a / (a + tau^2)`` the slope in ``log tau`` vanishes where
        ``(df + 1) mean(q) = 1``. The objective is concave in ``log tau``, so there is one solution; ``q < a / tau^2``
        bounds it from above, and from there Newton's method on ``log((df + 1) mean(q))`` comes down to it.
        """
        if self.scale is not None:
            return {}
        squares = stratified_square(loc - centre(self.loc, loc), scale)
        a = (squares / (self.df * self._ratio**2)).clamp_min(torch.finfo(squares.dtype).tiny)
        log_tau = 0.5 * ((self.df + 1) * a.mean()).log()
        for _ in range(MAX_NEWTON_STEPS):
            q = a / (a + (2 * log_tau).exp())
            mean = q.mean()
            step = 0.5 * ((self.df + 1) * mean).log() * mean / (q * (1 - q)).mean()
            log_tau = log_tau + step.clamp(-1, 1)
            if float(step.abs()) < 1e-5:
                break
        return {"tau": log_tau.exp()}
