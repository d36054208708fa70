"""The precision of a Gaussian over weights, in the smallest form that holds it, and expectations of quadratic forms.

============================= ========================== ===============================
form                          shape                      of
============================= ========================== ===============================
diagonal                      ``[K, P]``                 independent weights
a block for each output       ``[K, P, P]``              independent outputs
joint                         ``[K, P, K, P]``           everything else
============================= ========================== ===============================
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from bll_pyro.gaussian.centred import CentredDiagonal
from bll_pyro.gaussian.weights import (
    BlockDiagonal,
    Delta,
    Dense,
    Diagonal,
    LowRank,
    MatrixNormal,
    WeightGaussian,
)


def num_precision_numbers(weights: WeightGaussian) -> int:
    """How many numbers :func:`precision` returns."""
    num_outputs, num_columns = weights.loc.shape
    if independent_weights(weights):
        return num_outputs * num_columns
    blocks = num_outputs if independent_outputs(weights) else num_outputs**2
    return blocks * num_columns**2


def independent_weights(weights: WeightGaussian) -> bool:
    """Whether the covariance is diagonal."""
    return isinstance(weights, Diagonal) and weights.mixing is None


def independent_outputs(weights: WeightGaussian) -> bool:
    """Whether the weights of different outputs are independent."""
    return (
        len(weights.loc) == 1
        or independent_weights(weights)
        or isinstance(weights, (BlockDiagonal, CentredDiagonal))
    )


def precision_dim(weights: WeightGaussian) -> int:
    """Number of axes of :func:`precision`: 2, 3 or 4."""
    return 2 if independent_weights(weights) else 3 if independent_outputs(weights) else 4


def precision(weights: WeightGaussian) -> Float[Tensor, "K P ..."]:
    """Inverse covariance, in float64.

    The slope of a Gaussian's log density is linear: at ``loc + e_i`` it is minus column i of the precision, for every
    kind of covariance. Outputs that are independent are stepped together.
    """
    weights = weights_in_double(weights)
    if isinstance(weights, Delta):
        raise ValueError(
            "a point estimate (MAP) has no precision; use a guide with a covariance, e.g. Diagonal()"
        )
    if isinstance(weights, Diagonal) and weights.mixing is None:
        return weights.scale.square().reciprocal()
    num_outputs, num_columns = weights.loc.shape
    eye = torch.eye(num_columns, dtype=torch.float64, device=weights.loc.device)
    if independent_outputs(weights):
        steps = eye[:, None, :].expand(num_columns, num_outputs, num_columns)
        blocks = _columns(weights, steps).transpose(0, 1)
        return (blocks + blocks.mT) / 2
    rows = []
    for output in range(num_outputs):
        steps = weights.loc.new_zeros(num_columns, num_outputs, num_columns)
        steps[:, output] = eye
        rows.append(_columns(weights, steps))
    joint = torch.stack(rows)
    return (joint + joint.permute(2, 3, 0, 1)) / 2


def _columns(weights: WeightGaussian, steps: Float[Tensor, "P K P"]) -> Float[Tensor, "P K P"]:
    with torch.enable_grad():
        point = (weights.loc + steps).detach().requires_grad_()
        (gradient,) = torch.autograd.grad(weights.log_prob(point).sum(), point)
    return -gradient


def quadratic(matrix: Float[Tensor, "K P ..."], vectors: Float[Tensor, "*S K P"]) -> Float[Tensor, " *S"]:
    """``v' M v`` for ``v [..., K, P]`` and a precision in any of the forms."""
    return (vectors * times(matrix, vectors)).sum((-2, -1))


def times(matrix: Float[Tensor, "K P ..."], vectors: Float[Tensor, "*S K P"]) -> Float[Tensor, "*S K P"]:
    """``M v`` for ``v [..., K, P]`` and a precision in any of the forms."""
    if matrix.dim() == 2:
        return matrix * vectors
    if matrix.dim() == 3:
        return torch.einsum("kpq,...kq->...kp", matrix, vectors)
    return torch.einsum("kplq,...lq->...kp", matrix, vectors)


def expected_quadratic(
    matrix: Float[Tensor, "K P ..."], weights: WeightGaussian, center: Float[Tensor, "K P"]
) -> Float[Tensor, ""]:
    """``E[(A - center)' M (A - center)]`` for A distributed as ``weights``, in closed form and differentiable in it."""
    return quadratic(matrix, weights.loc - center) + _trace(matrix, weights)


def _trace(matrix: Float[Tensor, "K P ..."], weights: WeightGaussian) -> Float[Tensor, ""]:
    """``tr(M cov(A))``: only the parts of the covariance that M touches are looked at."""
    if matrix.dim() == 2:
        return (matrix * weights.marginal_scale().square()).sum()
    match weights:
        case Delta():
            return matrix.new_zeros(())
        case Diagonal(mixing=None):
            return (diagonal(matrix) * weights.scale.square()).sum()
        case LowRank():
            common = quadratic(matrix, weights.factor.permute(2, 0, 1)).sum()
            return (diagonal(matrix) * weights.scale.square()).sum() + common
        case Dense():
            return quadratic(matrix, weights.factor.permute(2, 0, 1)).sum()
        case BlockDiagonal():
            return torch.einsum("kpq,kpr,kqr->", _blocks(matrix), weights.tril, weights.tril)
        case MatrixNormal():
            columns = weights.column_tril @ weights.column_tril.mT
            rows = weights.row_tril @ weights.row_tril.mT
            if matrix.dim() == 3:
                return torch.einsum("kpq,pq,k->", matrix, columns, rows.diagonal())
            return torch.einsum("kplq,pq,kl->", matrix, columns, rows)
    raise TypeError(
        f"expected a Gaussian of a guide of this library, got {type(weights).__name__}; use another guide"
    )


def diagonal(matrix: Float[Tensor, "K P ..."]) -> Float[Tensor, "K P"]:
    """Diagonal ``[K, P]`` of a precision in any of the forms."""
    if matrix.dim() == 2:
        return matrix
    if matrix.dim() == 3:
        return matrix.diagonal(dim1=-2, dim2=-1)
    num_outputs, num_columns = matrix.shape[:2]
    return matrix.reshape(num_outputs * num_columns, -1).diagonal().view(num_outputs, num_columns)


def _blocks(matrix: Float[Tensor, "K P ..."]) -> Float[Tensor, "K P P"]:
    return matrix if matrix.dim() == 3 else torch.einsum("kpkq->kpq", matrix)


def weights_in_double(weights: WeightGaussian) -> WeightGaussian:
    """The same Gaussian in float64."""
    return type(weights)(**{name: value.double() for name, value in weights.tensors.items()})


def covariance_times(weights: WeightGaussian, vectors: Float[Tensor, "K P"]) -> Float[Tensor, "K P"]:
    """``cov(A) v`` for ``v [K, P]``: how far a slope ``v`` of the log likelihood moves the mean."""
    match weights:
        case Diagonal(mixing=None):
            return weights.scale.square() * vectors
        case BlockDiagonal():
            return (weights.tril @ (weights.tril.mT @ vectors[..., None])).squeeze(-1)
        case Dense():
            return weights.factor @ torch.einsum("kpr,kp->r", weights.factor, vectors)
    raise TypeError(f"expected a diagonal, block-diagonal or full covariance, got {type(weights).__name__}")


def inverse_root(tril: Tensor) -> Tensor:
    """Upper triangular R with ``R R' = (L L')^-1``, for lower triangular L ``[..., n, n]``."""
    eye = torch.eye(tril.shape[-1], dtype=tril.dtype, device=tril.device)
    return torch.linalg.solve_triangular(tril, eye.expand_as(tril), upper=False).mT.contiguous()
