"""Whitened coordinates, against precisions that are written out."""

import pickle

import pytest
import torch
from torch import Tensor

from bll_pyro.gaussian.information import DiagonalInformation, Information, SoftmaxInformation
from bll_pyro.inference.nuts import whitening as module
from bll_pyro.inference.nuts.whitening import (
    BlockWhitening,
    JointWhitening,
    ProductWhitening,
    Whitening,
    whitening,
)
from bll_pyro.scope import generator

NUM_ROWS, NUM_OUTPUTS, NUM_COLUMNS = 25, 3, 4
RANDOM = generator(0)
DESIGN = torch.randn(NUM_ROWS, NUM_COLUMNS, generator=RANDOM, dtype=torch.float64)
PRIOR = 0.5 + torch.rand(NUM_OUTPUTS, NUM_COLUMNS, generator=RANDOM, dtype=torch.float64)
PROBS = torch.randn(NUM_ROWS, NUM_OUTPUTS, generator=RANDOM, dtype=torch.float64).softmax(-1)
SOFTMAX = torch.diag_embed(PROBS) - PROBS[:, :, None] * PROBS[:, None]
SIZE = NUM_OUTPUTS * NUM_COLUMNS
SIZES = {
    JointWhitening: {},
    BlockWhitening: {"MAX_JOINT": 0},
    ProductWhitening: {"MAX_JOINT": 0, "MAX_BLOCK_NUMBERS": 0},
}


def make(
    kind: type[Whitening],
    information: Information,
    prior: Tensor,
    independent: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> Whitening:
    for name, value in SIZES[kind].items():
        monkeypatch.setattr(module, name, value)
    halves = [
        (DESIGN[:10], part(information, slice(0, 10))),
        (DESIGN[10:], part(information, slice(10, None))),
    ]
    found = whitening(halves, prior, independent)
    assert type(found) is kind
    return found


def part(information: Information, rows: slice) -> Information:
    if isinstance(information, SoftmaxInformation):
        return SoftmaxInformation(information.probs[rows], information.factor)
    assert isinstance(information, DiagonalInformation)
    return DiagonalInformation(information.values[rows])


def matrix(found: Whitening) -> Tensor:
    """R ``[K P, K P]``, column by column."""
    return torch.stack([found.apply(unit).flatten() for unit in torch.eye(SIZE, dtype=torch.float64)], 1)


def precision(values: Tensor, prior: Tensor) -> Tensor:
    return torch.einsum("nkl,np,nq->kplq", values, DESIGN, DESIGN).reshape(SIZE, SIZE) + torch.diag(
        prior.flatten()
    )


@pytest.mark.parametrize("kind", SIZES)
def test_the_parts_agree(kind: type[Whitening], monkeypatch: pytest.MonkeyPatch) -> None:
    """``back`` is the transpose of ``apply``; determinant, variance and Newton step are those of the same matrix."""
    found = make(kind, SoftmaxInformation(PROBS), PRIOR, False, monkeypatch)
    root, slope = (
        matrix(found),
        torch.randn(NUM_OUTPUTS, NUM_COLUMNS, generator=generator(1), dtype=torch.float64),
    )
    torch.testing.assert_close(found.back(slope), root.mT @ slope.flatten())
    assert found.log_det == pytest.approx(float(torch.linalg.slogdet(root).logabsdet))
    torch.testing.assert_close(found.variance().flatten(), (root @ root.mT).diagonal())
    torch.testing.assert_close(found.covariance_times(slope).flatten(), root @ root.mT @ slope.flatten())
    for other in (pickle.loads(pickle.dumps(found)), found.to(torch.empty(0, dtype=torch.float64))):
        assert torch.equal(matrix(other), root)


def test_joint_is_the_whole_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    root = matrix(make(JointWhitening, SoftmaxInformation(PROBS, 0.5), PRIOR, False, monkeypatch))
    torch.testing.assert_close(root @ root.mT, torch.linalg.inv(precision(0.5 * SOFTMAX, PRIOR)))


def test_joint_takes_a_prior_with_correlations(monkeypatch: pytest.MonkeyPatch) -> None:
    factor = torch.randn(SIZE, SIZE, generator=generator(2), dtype=torch.float64)
    dense = factor @ factor.mT + torch.eye(SIZE, dtype=torch.float64)
    prior = dense.view(NUM_OUTPUTS, NUM_COLUMNS, NUM_OUTPUTS, NUM_COLUMNS)
    root = matrix(make(JointWhitening, SoftmaxInformation(PROBS), prior, False, monkeypatch))
    expected = torch.linalg.inv(precision(SOFTMAX, torch.zeros_like(PRIOR)) + dense)
    torch.testing.assert_close(root @ root.mT, expected)


def test_blocks_are_exact_for_independent_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    values = torch.rand(NUM_ROWS, NUM_OUTPUTS, generator=generator(3), dtype=torch.float64)
    root = matrix(make(BlockWhitening, DiagonalInformation(values), PRIOR, True, monkeypatch))
    expected = torch.linalg.inv(precision(torch.diag_embed(values), PRIOR))
    torch.testing.assert_close(root @ root.mT, expected)


@pytest.mark.parametrize("kind", [BlockWhitening, ProductWhitening])
def test_all_outputs_moved_alike_have_the_priors_variance(
    kind: type[Whitening], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A softmax says nothing of them, and only axes that know this direction whiten it."""
    prior = torch.full_like(PRIOR, 2.0)
    root = matrix(make(kind, SoftmaxInformation(PROBS), prior, False, monkeypatch))
    for column in range(NUM_COLUMNS):
        move = torch.zeros(NUM_OUTPUTS, NUM_COLUMNS, dtype=torch.float64)
        move[:, column] = NUM_OUTPUTS**-0.5
        assert float((root.mT @ move.flatten()).square().sum()) == pytest.approx(1 / 2.0, rel=1e-9)


def test_product_axes_are_exact_for_equal_information(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Gaussian likelihood with one noise scale and an isotropic prior."""
    values, prior = torch.full((NUM_ROWS, NUM_OUTPUTS), 3.0, dtype=torch.float64), torch.full_like(PRIOR, 0.5)
    root = matrix(make(ProductWhitening, DiagonalInformation(values), prior, True, monkeypatch))
    torch.testing.assert_close(root @ root.mT, torch.linalg.inv(precision(torch.diag_embed(values), prior)))
