"""Coordinates in which the posterior of the weights is nearly a standard normal: ``A = m + R z``, with ``R R' = P^-1``.

P is the precision of a Gaussian approximation, ``sum_n L_n (x) h_n h_n' + prior``. Each gradient of a chain multiplies
by R and by R', so these products must cost no more than the log likelihood of the rows.

================ ========================================= ==========================
whitening        approximation of P                        numbers, and flops, of R
================ ========================================= ==========================
JointWhitening   none                                      ``(K P)^2``
BlockWhitening   block diagonal in the output axes         ``K P^2``
ProductWhitening diagonal in output axes (x) column axes   ``K^2 + P^2``
================ ========================================= ==========================

Output axes are the eigenvectors of the mean information of the outputs. For a softmax one of them adds the same to all
outputs. The likelihood does not depend on this direction, so its precision is the prior's, which a block diagonal
precision in the outputs themselves would overestimate by orders of magnitude.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from bll_pyro.curvatures import Full
from bll_pyro.curvatures.full import as_matrix
from bll_pyro.gaussian.factorization import cholesky
from bll_pyro.gaussian.information import Information
from bll_pyro.gaussian.precision import diagonal, inverse_root

MAX_JOINT = 3072  # largest K P of a joint root: its 40 MB in float32 are read faster than 10,000 rows
MAX_BLOCK_NUMBERS = 2**25  # largest K P^2 of block roots

Informed = Iterable[tuple[Tensor, Information]]  # design [B, P] and information of blocks of rows


@dataclass(frozen=True, eq=False)
class Whitening(ABC):
    """A linear map R from standard normals ``z [K P]`` to deviations of the weights ``[K, P]``."""

    @abstractmethod
    def apply(self, z: Tensor) -> Tensor:
        """``R z`` as ``[K, P]``; differentiable."""

    @property
    @abstractmethod
    def log_det(self) -> float:
        """``log |R|``."""

    @abstractmethod
    def variance(self) -> Tensor:
        """Marginal variances of the weights, the diagonal of ``R R'``, as ``[K, P]``."""

    @abstractmethod
    def back(self, gradient: Tensor) -> Tensor:
        """``R' g`` as ``[K P]``: the gradient in z of a function with gradient ``g [K, P]`` in the weights."""

    def covariance_times(self, gradient: Tensor) -> Tensor:
        """``R R' g`` for ``g [K, P]``: a Newton step."""
        return self.apply(self.back(gradient))

    def to(self, like: Tensor) -> Self:
        """The same map in the dtype and on the device of a tensor."""
        return type(self)(**{f.name: getattr(self, f.name).to(like).contiguous() for f in fields(self)})

    def __getstate__(self) -> dict[str, Any]:
        """Pickle tensors as arrays, which joblib shares between processes instead of copying them."""
        return {f.name: getattr(self, f.name).cpu().numpy() for f in fields(self)}

    def __setstate__(self, state: dict[str, np.ndarray]) -> None:
        for name, value in state.items():
            object.__setattr__(self, name, torch.from_numpy(value))


@dataclass(frozen=True, eq=False)
class JointWhitening(Whitening):
    """``R [K, P, K P]``, upper triangular as a matrix ``[K P, K P]``."""

    root: Tensor

    def apply(self, z: Tensor) -> Tensor:
        return (self.root.flatten(0, 1) @ z).view(self.root.shape[:2])

    @property
    def log_det(self) -> float:
        return float(self.root.flatten(0, 1).diagonal().log().sum())

    def variance(self) -> Tensor:
        return self.root.square().sum(-1)

    def back(self, gradient: Tensor) -> Tensor:
        return self.root.flatten(0, 1).mT @ gradient.reshape(-1)


@dataclass(frozen=True, eq=False)
class BlockWhitening(Whitening):
    """Output axes ``Q [K, K]`` and a triangular ``R_k [P, P]`` for each: ``A = Q [R_1 z_1; R_2 z_2; ...]``."""

    axes: Tensor
    roots: Tensor

    def apply(self, z: Tensor) -> Tensor:
        return self.axes @ (self.roots @ z.view(len(self.axes), -1, 1)).squeeze(-1)

    @property
    def log_det(self) -> float:
        return float(self.roots.diagonal(dim1=-2, dim2=-1).log().sum())

    def variance(self) -> Tensor:
        return self.axes.square() @ self.roots.square().sum(-1)

    def back(self, gradient: Tensor) -> Tensor:
        return (self.roots.mT @ (self.axes.mT @ gradient)[..., None]).flatten()


@dataclass(frozen=True, eq=False)
class ProductWhitening(Whitening):
    """Output axes ``Q [K, K]``, column axes ``V [P, P]`` and scales ``s [K, P]``: ``A = Q (s * Z) V'``."""

    axes: Tensor
    columns: Tensor
    scale: Tensor

    def apply(self, z: Tensor) -> Tensor:
        return self.axes @ (self.scale * z.view_as(self.scale)) @ self.columns.mT

    @property
    def log_det(self) -> float:
        return float(self.scale.log().sum())

    def variance(self) -> Tensor:
        return self.axes.square() @ self.scale.square() @ self.columns.square().mT

    def back(self, gradient: Tensor) -> Tensor:
        return (self.scale * (self.axes.mT @ gradient @ self.columns)).flatten()


@torch.no_grad()
def whitening(informed: Informed, prior: Tensor, is_independent: bool) -> Whitening:
    """Sum the information of all rows, add the prior's precision, and factor, in float64.

    Parameters
    ----------
    informed
        All rows; read more than once.
    prior
        Precision ``[K, P]``, ``[K, P, P]`` or ``[K, P, K, P]``; only a :class:`JointWhitening` uses more than its diagonal.
    is_independent
        Whether the information of each row is diagonal.
    """
    num_outputs, num_columns = prior.shape[:2]
    like = prior.double()
    if num_outputs * num_columns <= MAX_JOINT:
        sums = Full().zeros(num_outputs, num_columns, False, like)
        for design, information in informed:
            Full().add(sums, design, information)
        (total,) = sums
        joint = (total + as_matrix(like)).reshape(num_outputs * num_columns, -1)
        tril = cholesky(joint, "precision of the weights")
        return JointWhitening(inverse_root(tril).view(num_outputs, num_columns, -1))
    total = like.new_zeros(num_outputs, num_outputs)
    for _, information in informed:
        total += information.sum()
    identity = torch.eye(num_outputs, dtype=like.dtype, device=like.device)
    axes = identity if is_independent else torch.linalg.eigh(total).eigenvectors
    prior_diagonal = axes.square().mT @ diagonal(like)  # in the output axes
    if num_outputs * num_columns**2 <= MAX_BLOCK_NUMBERS:
        return BlockWhitening(axes, block_roots(informed, axes, prior_diagonal))
    gram, weight = like.new_zeros(num_columns, num_columns), 0.0
    for design, information in informed:
        trace = information.trace()
        gram += (design * trace[:, None]).mT @ design
        weight += float(trace.sum())
    values, columns = torch.linalg.eigh(gram / weight)
    level = (axes.mT @ total @ axes).diagonal().clamp_min(0)
    precision = level[:, None] * values.clamp_min(0) + prior_diagonal @ columns.square()
    return ProductWhitening(axes, columns, precision.rsqrt())


def block_roots(informed: Informed, axes: Tensor, prior: Tensor) -> Tensor:
    """``R_k`` with ``R_k R_k' = (sum_n (q_k' L_n q_k) h_n h_n' + prior_k)^-1``, ``[K, P, P]``."""
    blocks = torch.diag_embed(prior)
    for design, information in informed:
        for index in range(len(blocks)):
            axis = axes[:, index].to(design)
            blocks[index] += (design * information.inner(torch.outer(axis, axis))[:, None]).mT @ design
    return inverse_root(cholesky(blocks, "precision of the weights"))
