"""Real values whose noise is correlated between the targets of a row."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np
import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import constraints

from bll_pyro.checks import positive
from bll_pyro.gaussian import OutputGaussian, Outputs
from bll_pyro.gaussian.information import DenseInformation
from bll_pyro.likelihoods.base import Likelihood, TargetShape, scale_site
from bll_pyro.likelihoods.gaussian_noise import GaussianNoise

SYMMETRY_TOLERANCE = 1e-6  # of the largest number
MIN_ROOM = 8  # distance of a correlation from -1 and 1, in units of rounding


class OnUnitInterval(dist.TransformedDistribution):
    """A distribution on (0, 1), stretched to (-1, 1); torch takes the support of a transformed one to be the whole line."""

    support = constraints.interval(-1.0, 1.0)


@dataclass(frozen=True, eq=False)
class MultivariateGaussian(GaussianNoise):
    """Several real-valued targets with correlated noise: ``y ~ MultivariateNormal(f, covariance)``.

    A covariance that is not known is ``diag(noise_scale) R diag(noise_scale)`` with correlations R under the LKJ prior
    ``p(R) ~ det(R)^(concentration - 1)``. R is given by its partial correlations (of targets i and j given those before
    j), which are independent under that prior (Lewandowski, Kurowicka and Joe 2009): site ``partial_correlation``, one
    for each pair. Of two targets it is the correlation; :meth:`noise_covariance` turns draws into matrices.

    Targets whose noise is independent have :class:`Gaussian`, with a noise scale for each.

    Parameters
    ----------
    covariance
        Known covariance ``[T, T]`` of the noise, in the user's units; None (default) learns it.
    noise_scale
        Prior of the standard deviations, on the scale of the standardised targets; None (default) is ``HalfNormal(1)``.
    concentration
        Of the LKJ prior: 1 (default) makes all correlation matrices equally likely, larger values favour small ones.

    Raises
    ------
    ValueError
        For a covariance that is not square, symmetric and positive definite, and for other than positive numbers.
    """

    covariance: Sequence[Sequence[float]] | np.ndarray | Tensor | None = None
    noise_scale: dist.Distribution | None = None
    concentration: float = 1.0
    independent_targets: ClassVar[bool] = False
    pair_sites: ClassVar[tuple[str, ...]] = ("partial_correlation",)

    def __post_init__(self) -> None:
        if self.covariance is not None:
            object.__setattr__(self, "covariance", checked_covariance(self.covariance))
        positive(self.concentration, "concentration", "MultivariateGaussian")
        if self.noise_scale is None:
            return
        if not isinstance(self.noise_scale, torch.distributions.Distribution):
            raise ValueError(
                "MultivariateGaussian(noise_scale=...): expected a Pyro distribution or None, got "
                f"{self.noise_scale!r}; known noise is covariance=[[...], ...], variances on its diagonal"
            )
        if self.covariance is not None:
            raise ValueError(
                "MultivariateGaussian(covariance=..., noise_scale=...): expected a known covariance or a prior of it, got "
                "both; drop one of the two"
            )

    @property
    def known_covariance(self) -> Float[Tensor, "T T"] | None:
        """Known covariance ``[T, T]`` in float64, None where it is learned."""
        return None if self.covariance is None else torch.as_tensor(self.covariance, dtype=torch.float64)

    def num_outputs(self, target_shape: TargetShape) -> int:
        """One output for each target."""
        num_targets, known = super().num_outputs(target_shape), self.known_covariance
        if known is not None and len(known) != num_targets:
            raise ValueError(
                f"MultivariateGaussian(covariance=...): expected a matrix [{num_targets}, {num_targets}] for {num_targets} "
                f"targets, got {list(known.shape)}"
            )
        return num_targets

    def sites(self, target_shape: TargetShape) -> dict[str, dist.Distribution]:
        """``noise_scale [T]`` and, for two targets or more, ``partial_correlation [T (T - 1) / 2]``, unless known."""
        if self.covariance is not None:
            return {}
        num_targets = math.prod(target_shape)
        sites = {"noise_scale": scale_site(self.noise_scale, num_targets)}
        if num_targets > 1:
            given = torch.tril_indices(num_targets, num_targets, -1)[1]  # how many targets come before
            shape = self.concentration + (num_targets - 2 - given) / 2
            stretched = OnUnitInterval(dist.Beta(shape, shape), [dist.transforms.AffineTransform(-1.0, 2.0)])
            sites["partial_correlation"] = stretched.to_event(1)
        return sites

    def in_units(self, scale: Float[Tensor, " T"]) -> Self:
        """A known covariance is given in the user's units: divide it by the scales of its two targets."""
        known = self.known_covariance
        return self if known is None else replace(self, covariance=known / torch.outer(scale, scale).double())

    def scale(
        self, outputs: Float[Tensor, "*#S N T"], noise_scale: Tensor | None = None, **_: Tensor
    ) -> Tensor:
        """Root of the diagonal of the covariance."""
        known = self.known_covariance
        if known is not None:
            return known.diagonal().sqrt().to(outputs)
        assert noise_scale is not None
        return noise_scale

    def noise_covariance(
        self, outputs: Float[Tensor, "*#S N T"], **noise: Tensor
    ) -> Float[Tensor, "... T T"]:
        """Covariance ``[..., T, T]`` of the noise, given or at ``noise_scale [..., T]`` and ``partial_correlation``.

        On the scale of the standardised targets, in the precision and on the device of ``outputs``.
        """
        tril = self._tril(outputs, **noise)
        return tril @ tril.mT

    def distribution(self, outputs: Float[Tensor, "*#S N T"], **noise: Tensor) -> dist.Distribution:
        """Multivariate Normal over the T targets of a row."""
        return dist.MultivariateNormal(outputs, scale_tril=self._tril(outputs, **noise), validate_args=False)

    def expected_log_prob(
        self,
        outputs: OutputGaussian,
        targets: Float[Tensor, "N T"],
        generator: torch.Generator | None = None,
        **noise: Tensor,
    ) -> Float[Tensor, "*S N"]:
        """In closed form: ``log p(y | mean) - tr(precision Cov(f)) / 2``."""
        precision = self._precision(outputs.mean, **noise)
        mean = outputs.mean.expand(*precision.shape[:-3], *outputs.mean.shape)  # noise may have leading axes
        if outputs.tied:
            lost = (outputs.covariance * precision).sum((-2, -1))
        else:
            lost = (outputs.variance * precision.diagonal(dim1=-2, dim2=-1)).sum(-1)
        return self.log_prob(mean, targets, **noise) - 0.5 * lost

    def with_noise_times(
        self, factor: float, outputs: Outputs, noise: dict[str, Tensor]
    ) -> tuple[Likelihood, Outputs, dict[str, Tensor]]:
        """The known covariance, or draws of the scales; correlations stay."""
        known = self.known_covariance
        likelihood = self if known is None else replace(self, covariance=known * factor**2)
        return likelihood, outputs, {k: v * factor if k == "noise_scale" else v for k, v in noise.items()}

    def expected_derivatives(
        self, draws: Float[Tensor, "S N T"], targets: Float[Tensor, "N T"], **noise: Tensor
    ) -> tuple[Float[Tensor, "N T"], Float[Tensor, "N T T"]]:
        """``E[precision (y - f)]`` and ``E[precision]``."""
        precision = self._precision(draws, **noise)
        gradient = (precision @ (targets - draws)[..., None]).squeeze(-1).mean(0)
        mean = precision.mean((0, 1)) if precision.dim() == 4 else precision
        return gradient, mean.expand(len(gradient), *mean.shape)

    def output_curvature(self, outputs: Float[Tensor, "*S N T"], **noise: Tensor) -> Float[Tensor, "*S N T"]:
        """Diagonal of the precision of the noise."""
        return self._precision(outputs, **noise).diagonal(dim1=-2, dim2=-1).expand_as(outputs)

    def information(self, outputs: Float[Tensor, "N T"], **noise: Tensor) -> DenseInformation:
        """The precision of the noise, the same for all rows; its memory is shared."""
        precision = self._precision(outputs, **noise)
        return DenseInformation(precision.expand(len(outputs), *precision.shape))

    def _precision(self, outputs: Float[Tensor, "*#S N T"], **noise: Tensor) -> Float[Tensor, "... T T"]:
        return torch.cholesky_inverse(self._tril(outputs, **noise))

    def _tril(
        self,
        outputs: Float[Tensor, "*#S N T"],
        noise_scale: Tensor | None = None,
        partial_correlation: Tensor | None = None,
        **_: Tensor,
    ) -> Float[Tensor, "... T T"]:
        """Cholesky factor ``[..., T, T]`` of the covariance."""
        known = self.known_covariance
        if known is not None:
            return torch.linalg.cholesky(known).to(outputs)
        assert noise_scale is not None
        if partial_correlation is None:
            return torch.diag_embed(noise_scale)
        return noise_scale[..., None] * correlation_factor(partial_correlation)


def correlation_factor(partial: Float[Tensor, "*S Q"]) -> Float[Tensor, "*S T T"]:
    """Cholesky factor ``[..., T, T]`` of the correlations with partial correlations ``[..., T (T - 1) / 2]``.

    With ``p_ij`` (by rows, below the diagonal) that of targets i and j given those before j, row i of the factor is
    ``L_ij = p_ij prod_{m < j} sqrt(1 - p_im^2)``, ``p_ii = 1``.
    """
    num_pairs = partial.shape[-1]
    size = (1 + math.isqrt(1 + 8 * num_pairs)) // 2
    room = MIN_ROOM * torch.finfo(partial.dtype).eps
    partial = partial.clamp(-1 + room, 1 - room)  # the factor stays invertible
    row, column = torch.tril_indices(size, size, -1, device=partial.device)
    place = torch.full(
        (size, size), num_pairs, device=partial.device
    )  # entries without a correlation point to the zero at the end
    place[row, column] = torch.arange(num_pairs, device=partial.device)
    matrix = torch.cat([partial, torch.zeros_like(partial[..., :1])], -1)[..., place]
    left = (1 - matrix.square()).sqrt().cumprod(-1)
    before = torch.cat([torch.ones_like(left[..., :1]), left[..., :-1]], -1)
    return (matrix + torch.eye(size, dtype=partial.dtype, device=partial.device)) * before


def checked_covariance(value: Any) -> tuple[tuple[float, ...], ...]:
    """A covariance as rows of numbers, once it is square, symmetric and positive definite."""
    owner = "MultivariateGaussian(covariance=...)"
    try:
        matrix = torch.as_tensor(value, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{owner}: expected a square matrix of numbers, got {value!r}") from error
    if matrix.dim() != 2 or matrix.shape[0] != matrix.shape[1] or not len(matrix):
        raise ValueError(
            f"{owner}: expected a square matrix [T, T] for T targets, got shape {list(matrix.shape)}; independent noise is "
            "Gaussian(noise_scale=(...)), standard deviations"
        )
    if not bool(torch.isfinite(matrix).all()):
        raise ValueError(f"{owner}: expected finite numbers, got {matrix.tolist()}")
    gap = float((matrix - matrix.mT).abs().max())
    if gap > SYMMETRY_TOLERANCE * float(matrix.abs().max()):
        raise ValueError(
            f"{owner}: expected a symmetric matrix, got entries that differ by {gap:g} from their mirror images; "
            "use (C + C.T) / 2"
        )
    matrix = (matrix + matrix.mT) / 2
    if int(torch.linalg.cholesky_ex(matrix).info):
        smallest = float(torch.linalg.eigvalsh(matrix)[0])
        raise ValueError(
            f"{owner}: expected a positive definite matrix, got one whose smallest eigenvalue is {smallest:.3g}; add to its "
            "diagonal, or drop targets that are sums of others"
        )
    return tuple(tuple(row) for row in matrix.tolist())
