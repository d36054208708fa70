"""Cholesky factors of matrices that rounding has made indefinite, and the errors where no factor makes sense."""

import pytest
import torch

import bll_pyro as bll
from bll_pyro.gaussian.factorization import NotPositiveDefinite, cholesky

L = bll.likelihoods


def test_a_positive_definite_matrix_is_left_as_it_is() -> None:
    root = torch.tensor([[2.0, 0.0], [0.3, 1.0]], dtype=torch.float64)
    torch.testing.assert_close(cholesky(root @ root.mT, "it"), root)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rounding_is_mended_without_a_change_that_shows(dtype: torch.dtype) -> None:
    """A matrix of rank 1 whose smallest eigenvalue is negative by rounding."""
    ones = torch.ones(40, 1, dtype=dtype)
    matrix = ones @ ones.mT - torch.finfo(dtype).eps * torch.eye(40, dtype=dtype)
    tril = cholesky(matrix, "it")
    torch.testing.assert_close(tril @ tril.mT, matrix, rtol=0, atol=2e-6)


def test_errors_say_what_it_was() -> None:
    with pytest.raises(NotPositiveDefinite, match="precision: expected finite numbers, got inf or nan"):
        cholesky(torch.full((2, 2), torch.nan), "precision")
    with pytest.raises(NotPositiveDefinite, match="precision: expected a positive definite matrix"):
        cholesky(torch.diag(torch.tensor([1.0, -1.0])), "precision")


def test_no_inference_shows_a_raw_error() -> None:
    """Outputs that leave the range of the numbers: the error has a name, and says what to do."""
    random = torch.Generator().manual_seed(0)
    features = 1e4 * torch.randn(50, 2, generator=random)
    layer = bll.LastLayer(L.Poisson(), bll.priors.Normal(loc=torch.full((1, 2), 5.0)), standardize=False)
    with pytest.raises(ValueError, match="use standardize=True"):
        bll.fit(layer, (features, torch.ones(50)), inference=bll.Laplace())


def test_an_error_of_torch_gets_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """What fails in any other way in an inference is a ``ValueError`` with a remedy, too."""

    def run(*args: object, **kwargs: object) -> None:
        torch.linalg.cholesky(-torch.eye(2))

    monkeypatch.setattr(bll.Laplace, "run", run)
    with pytest.raises(NotPositiveDefinite, match="Laplace: expected matrices that can be factored"):
        bll.fit(bll.LastLayer(L.Poisson()), (torch.randn(5, 2), torch.ones(5)), inference=bll.Laplace())
