"""Cholesky factors of matrices that are positive definite on paper, and by rounding only nearly so."""

from __future__ import annotations

import torch
from torch import Tensor

SHARES = (
    1e-14,
    1e-12,
    1e-10,
    1e-8,
    1e-6,
)  # of each diagonal element, added in turn; float32 begins at its rounding


class NotPositiveDefinite(ValueError):
    """A precision or covariance without a Cholesky factor: its numbers are not finite, or far from positive definite."""


def cholesky(matrix: Tensor, what: str) -> Tensor:
    """Lower Cholesky factor ``[..., n, n]``.

    Where rounding makes the matrix indefinite its diagonal grows by the smallest share that helps, at most by 1e-6: standard
    deviations then change by less than that.

    Parameters
    ----------
    matrix
        Symmetric, ``[..., n, n]``.
    what
        What the matrix is, for the message.

    Raises
    ------
    NotPositiveDefinite
        If there is no factor even so.
    """
    tril, failed = torch.linalg.cholesky_ex(matrix)
    if torch.compiler.is_compiling() or not bool(
        failed.any()
    ):  # a traced program does not depend on its numbers
        return tril
    if not bool(torch.isfinite(matrix).all()):
        raise NotPositiveDefinite(
            f"{what}: expected finite numbers, got inf or nan: the outputs have left the range in which the likelihood can be "
            "computed; use standardize=True, a smaller prior scale such as priors.Normal(scale=1.0), or targets in other units"
        )
    for share in SHARES:
        if share < torch.finfo(matrix.dtype).eps:
            continue
        more = share * matrix.diagonal(dim1=-2, dim2=-1).abs()
        tril, failed = torch.linalg.cholesky_ex(matrix + torch.diag_embed(more))
        if not bool(failed.any()):
            return tril
    raise NotPositiveDefinite(
        f"{what}: expected a positive definite matrix, got one that is not, by far more than rounding; use standardize=True, "
        "a smaller prior scale such as priors.Normal(scale=1.0), or features in double precision"
    )
