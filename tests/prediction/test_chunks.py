"""Rows are integrated over in chunks: of what size changes nothing, and memory is bounded however many outputs there are."""

import pytest
import torch

import bll_pyro as bll
from bll_pyro.gaussian import OutputGaussian
from bll_pyro.prediction import base
from bll_pyro.prediction import integration as module
from bll_pyro.prediction.classes import ClassPrediction, predict_classes
from bll_pyro.scope import generator


def outputs(num_rows: int, num_outputs: int) -> OutputGaussian:
    random = generator(0)
    loc = torch.randn(num_rows, num_outputs, generator=random)
    return OutputGaussian(loc, 0.5 + torch.rand(num_rows, num_outputs, generator=random))


@pytest.mark.parametrize(
    ("num_rows", "num_outputs", "num_points", "largest"),
    [
        (1000, 10, 256, 3 * 2**19 // 2560),  # what a cache holds
        (40, 3_100, 256, 16),  # fewer rows than this are slow
        (40, 21_000, 512, 2**27 // (21_000 * 512)),  # memory
        (3, 21_000, 2**14, 1),  # never less than a row
        (0, 10, 256, 0),
    ],
)
def test_chunks_hold_every_row_once_and_no_more_than_is_allowed(
    num_rows: int, num_outputs: int, num_points: int, largest: int
) -> None:
    given = OutputGaussian(torch.zeros(num_rows, 1).expand(num_rows, num_outputs))
    chunks = list(bll.QuasiMonteCarlo(num_points).chunks(given))
    sizes = [len(range(num_rows)[chunk]) for chunk in chunks]
    assert [row for chunk in chunks for row in range(num_rows)[chunk]] == list(range(num_rows))
    assert max(sizes, default=0) <= largest
    assert not sizes or len(sizes) == -(-num_rows // largest)
    assert not sizes or max(sizes) - min(sizes) < len(sizes)  # about the same in each


def test_blocks_hold_every_row_once() -> None:
    given = OutputGaussian(torch.zeros(5000, 1).expand(5000, 2000))
    blocks = list(bll.QuasiMonteCarlo().blocks(given))
    assert [row for block in blocks for row in range(5000)[block]] == list(range(5000))
    assert max(len(range(5000)[block]) for block in blocks) == 2**21 // 2000


@pytest.mark.parametrize("mixed", [False, True])
def test_their_size_changes_nothing(mixed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    given = outputs(50, 5)
    if mixed:
        given = OutputGaussian(given.loc, given.scale, mixing=torch.randn(5, 5, generator=generator(1)))
    one = predict_classes(given, bll.likelihoods.Categorical(5), {}, bll.QuasiMonteCarlo(64))
    monkeypatch.setitem(module.CHUNK_NUMBERS, "cpu", 7 * 5 * 64)
    monkeypatch.setattr(module, "BLOCK_NUMBERS", 20 * 5)
    monkeypatch.setattr(module, "FEW_ROWS", 1)
    other = predict_classes(given, bll.likelihoods.Categorical(5), {}, bll.QuasiMonteCarlo(64))
    for name in ("probs", "total", "epistemic", "error"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("num_parts", [1, 2, 7])
def test_predictions_of_many_batches_are_joined_in_order(
    num_parts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "JOINED_AT_ONCE", 2)
    given = outputs(3 * num_parts, 4)
    whole = predict_classes(given, bll.likelihoods.Categorical(4), {}, bll.QuasiMonteCarlo(16))
    parts = (
        predict_classes(given.rows(slice(start, start + 3)), whole.likelihood, {}, bll.QuasiMonteCarlo(16))
        for start in range(0, 3 * num_parts, 3)
    )
    found = base.gathered(parts, 3 * num_parts)
    assert isinstance(found, ClassPrediction)
    torch.testing.assert_close(found.probs, whole.probs)
    torch.testing.assert_close(found.epistemic, whole.epistemic, rtol=1e-5, atol=1e-6)
