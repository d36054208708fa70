"""Real values with outliers."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import constraints

from bll_pyro.checks import is_number
from bll_pyro.gaussian import Outputs
from bll_pyro.likelihoods.base import Likelihood, TargetShape, scale_site
from bll_pyro.likelihoods.special import student_t_cdf
from bll_pyro.likelihoods.targets import check_varying, float_targets


class StudentTValues(dist.StudentT):
    """Pyro's Student-t, with its distribution function."""

    def cdf(self, value: Float[Tensor, " *#S"]) -> Float[Tensor, " *#S"]:
        """Distribution function, by SciPy: torch has none."""
        whitened = (value - self.loc) / self.scale
        if torch.compiler.is_compiling():  # a graph has torch's arithmetic only
            return student_t_cdf(whitened, self.df)
        from scipy.special import stdtr

        probs = stdtr(self.df.expand(whitened.shape).cpu().numpy(), whitened.cpu().numpy())
        return torch.as_tensor(probs, dtype=whitened.dtype, device=whitened.device)


class AboveTwo(dist.TransformedDistribution):
    """A positive distribution plus 2; torch takes the support of a shifted distribution to be the whole line."""

    support = constraints.greater_than(2.0)


@dataclass(frozen=True, eq=False)
class StudentT(Likelihood):
    """Robust regression: ``y[t] ~ StudentT(df[t], f[t], noise_scale[t])``.

    Parameters
    ----------
    df
        Degrees of freedom: a number > 2 (so that there is a variance), or None (default), learned as site ``df`` with
        the prior ``2 + Gamma(2, 0.1)`` (Juarez and Steel 2010, shifted).
    noise_scale
        A positive number in the user's units, a Pyro distribution (prior on the standardised scale), or None for
        ``HalfNormal(1)``. The noise's standard deviation is ``noise_scale * sqrt(df / (df - 2))``.
    """

    df: float | None = None
    noise_scale: float | dist.Distribution | None = None
    real_valued: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.df is not None and not is_number(self.df, above=2.0):
            raise ValueError(f"StudentT(df=...): expected a number > 2 or None, got {self.df!r}")
        value = self.noise_scale
        known = is_number(value)
        if not (known or value is None or isinstance(value, torch.distributions.Distribution)):
            raise ValueError(
                "StudentT(noise_scale=...): expected a positive number, a Pyro distribution or None, "
                f"got {value!r}"
            )

    def check_targets(self, targets: Tensor) -> Float[Tensor, "N T"]:
        """Finite real numbers ``[N, T]``."""
        return float_targets(targets, "StudentT")

    def check_training(self, targets: Float[Tensor, "N T"]) -> None:
        """Noise that is learned needs targets that vary."""
        if "noise_scale" in self.sites((targets.shape[1],)):
            check_varying(targets, "StudentT", "drop them, or declare StudentT(noise_scale=number)")

    def sites(self, target_shape: TargetShape) -> dict[str, dist.Distribution]:
        """``df [T]`` and ``noise_scale [T]``, unless they are given."""
        num_targets = math.prod(target_shape)
        sites: dict[str, dist.Distribution] = {}
        if self.df is None:
            gamma = dist.Gamma(torch.full((num_targets,), 2.0), torch.full((num_targets,), 0.1))
            sites["df"] = AboveTwo(gamma, [dist.transforms.AffineTransform(2.0, 1.0)]).to_event(1)
        if not isinstance(self.noise_scale, (int, float)):
            sites["noise_scale"] = scale_site(self.noise_scale, num_targets)
        return sites

    def in_units(self, scale: Float[Tensor, " T"]) -> Self:
        """A given noise scale is in the user's units: divide it by the scale of the targets."""
        if not isinstance(self.noise_scale, (int, float)):
            return self
        if len(scale) > 1 and not bool(torch.allclose(scale, scale[:1])):
            raise ValueError(
                "StudentT(noise_scale=number): expected one target, or standardize=False, since each target has a scale "
                f"of its own; got {len(scale)} targets"
            )
        return replace(self, noise_scale=float(self.noise_scale / scale[0]))

    def distribution(
        self,
        outputs: Float[Tensor, "*#S N T"],
        df: Tensor | None = None,
        noise_scale: Tensor | None = None,
        **_: Tensor,
    ) -> dist.Distribution:
        """Independent Student-t over the T targets of a row."""
        freedom, scale = self._given(outputs, df, noise_scale)
        return StudentTValues(freedom, outputs, scale, validate_args=False).to_event(1)

    def log_prob(
        self,
        outputs: Float[Tensor, "*#S N T"],
        targets: Float[Tensor, "N T"],
        df: Tensor | None = None,
        noise_scale: Tensor | None = None,
        **_: Tensor,
    ) -> Float[Tensor, "*#S N"]:
        """``sum_t c(df, scale) - (df + 1)/2 log(1 + ((y - f)/scale)^2 / df)``; c once, where torch computes it for every output."""
        freedom, scale = self._given(outputs, df, noise_scale)
        constant = torch.lgamma((freedom + 1) / 2) - torch.lgamma(freedom / 2)
        constant = constant - 0.5 * (math.pi * freedom).log() - scale.log()
        square = ((targets - outputs) / scale).square() / freedom
        return (constant - (freedom + 1) / 2 * square.log1p()).sum(-1)

    def with_noise_times(
        self, factor: float, outputs: Outputs, noise: dict[str, Tensor]
    ) -> tuple[Likelihood, Outputs, dict[str, Tensor]]:
        """The given noise scale, or draws of it; the degrees of freedom stay."""
        likelihood: Likelihood = self
        if isinstance(self.noise_scale, (int, float)):
            likelihood = replace(self, noise_scale=self.noise_scale * factor)
        return likelihood, outputs, {k: v * factor if k == "noise_scale" else v for k, v in noise.items()}

    def output_curvature(
        self,
        outputs: Float[Tensor, "*S N T"],
        df: Tensor | None = None,
        noise_scale: Tensor | None = None,
        **_: Tensor,
    ) -> Float[Tensor, "*S N T"]:
        """``(df + 1) / ((df + 3) noise_scale^2)``, the Fisher information of the location."""
        freedom, scale = self._given(outputs, df, noise_scale)
        return ((freedom + 1) / ((freedom + 3) * scale.square())).expand_as(outputs)

    def _given(self, like: Tensor, df: Tensor | None, noise_scale: Tensor | None) -> tuple[Tensor, Tensor]:
        """Degrees of freedom and scale, those that are learned or those that were declared."""
        freedom = like.new_tensor(self.df) if df is None else df
        return freedom, like.new_tensor(self.noise_scale) if noise_scale is None else noise_scale
