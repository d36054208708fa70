"""Fits and predictions of a store that is read ahead: those of the same rows in memory, without all rows ever being there."""

from itertools import pairwise

import pandas as pd
import pytest
import torch

import bll_pyro as bll
from bll_pyro.features import passes
from bll_pyro.inference.exact import raw_sums

N, D = 4500, 5
X = torch.randn(N, D, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 2, 3, 0.5, 1]) + 3
NOISE = torch.randn(N, generator=torch.Generator().manual_seed(1))
VALUES = X @ torch.tensor([1.0, -1, 0.5, 2, 0]) + 0.5 * NOISE
CLASSES = (X[:, :3] * torch.tensor([1.0, 0.5, 0.3]) + NOISE[:, None] * 0.1).argmax(1)


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    """Pieces of a fraction of the rows, and never all of them at once."""
    monkeypatch.setattr(passes, "PIECE_BYTES", 1000 * D * 4)
    monkeypatch.setattr(raw_sums, "BLOCK_NUMBERS", 500 * D)
    real = bll.Features.tensor

    def tensor(self):
        return real(self) if self.read == "mmap" else pytest.fail("all rows are joined")

    monkeypatch.setattr(bll.Features, "tensor", tensor)


def streamed(path, targets, x=X, weight=None):
    writer = bll.Features.writer(path)
    for k, (start, stop) in enumerate(pairwise([0, 1400, 1401, 2900, N])):
        rows = slice(start, stop)
        writer.write(f"p{k}", x[rows], targets[rows], row_ids=range(start, stop))
    store = bll.Features.commit(path, num_rows=N, read="ahead")
    return store if weight is None else bll.Data(store, sample_weight=weight)


LIKELIHOODS = {"Gaussian": bll.likelihoods.Gaussian(), "Categorical": bll.likelihoods.Categorical(3)}
CASES = {
    "Exact": ("Gaussian", bll.Exact(), 1e-5),
    "Laplace Kronecker": ("Categorical", bll.Laplace(), 1e-4),
    "Laplace Full": ("Categorical", bll.Laplace(curvature=bll.curvatures.Full()), 1e-4),
}


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_a_fit_is_that_of_the_rows_in_memory(tmp_path, case, weighted):
    name, inference, tolerance = CASES[case]
    targets = VALUES if name == "Gaussian" else CLASSES
    layer = bll.LastLayer(LIKELIHOODS[name])
    weight = (torch.arange(N) % 3).float() if weighted else None
    whole = bll.Features.from_tensors(X, targets)
    whole = whole if weight is None else bll.Data(whole, sample_weight=weight)
    expected = bll.fit(layer, whole, inference=inference, calibration=None)
    found = bll.fit(
        layer, streamed(tmp_path / "f", targets, weight=weight), inference=inference, calibration=None
    )
    ours, theirs = (fit.predict(X[:200]) for fit in (found, expected))
    shown = [torch.tensor(each.to_pandas().to_numpy(dtype=float)) for each in (ours, theirs)]
    torch.testing.assert_close(*shown, rtol=tolerance, atol=tolerance)
    assert found.log_evidence == pytest.approx(expected.log_evidence, rel=1e-5)


def test_exact_reads_the_store_once(tmp_path, monkeypatch):
    store, read = streamed(tmp_path / "f", VALUES), []
    real = passes.read_ahead
    monkeypatch.setattr(
        "bll_pyro.features.store.read_ahead", lambda rows, size: (read.append(size), real(rows, size))[1]
    )
    bll.fit(bll.LastLayer(LIKELIHOODS["Gaussian"]), store, inference=bll.Exact())
    assert len(read) == 1


def test_svi_goes_to_the_same_optimum_and_again_to_the_same_numbers(tmp_path):
    layer = bll.LastLayer(LIKELIHOODS["Categorical"])
    inference = bll.SVI(num_epochs=8, batch_size=128)
    store = streamed(tmp_path / "f", CLASSES)
    found, again = (bll.fit(layer, store, inference=inference) for _ in range(2))
    expected = bll.fit(layer, bll.Features.from_tensors(X, CLASSES), inference=inference)
    assert found.elbo == again.elbo
    assert found.elbo == pytest.approx(
        expected.elbo, rel=2e-3
    )  # two orders of the batches differ by about 1e-3
    assert found.recalibration == again.recalibration


def test_rows_that_are_not_finite_are_named(tmp_path):
    store = streamed(tmp_path / "f", VALUES)
    shard = tmp_path / "f" / "p3.safetensors"
    contents = bytearray(shard.read_bytes())
    # row 3000 is number 100 of the last shard; features come first in the file
    start = (
        8
        + int.from_bytes(contents[:8], "little")
        + contents[8 + int.from_bytes(contents[:8], "little") :].find(X[3000].numpy().tobytes())
    )
    contents[start : start + 4] = torch.tensor([torch.nan]).numpy().tobytes()
    shard.write_bytes(contents)
    for inference in (bll.Exact(), bll.SVI()):
        with pytest.raises(ValueError, match="the first in row 3000, with the id 3000;"):
            bll.fit(bll.LastLayer(LIKELIHOODS["Gaussian"]), store, inference=inference)


def test_a_share_to_keep_is_refused(tmp_path):
    store = streamed(tmp_path / "f", CLASSES)
    with pytest.raises(ValueError, match=r"got a store that is read ahead; fit data=store.between"):
        bll.fit(bll.LastLayer(LIKELIHOODS["Categorical"]), store, calibration=0.1)


# ---- scoring


@pytest.mark.unchecked
def test_predictions_are_written_part_by_part(tmp_path):
    fit = bll.fit(bll.LastLayer(LIKELIHOODS["Categorical"]), (X, CLASSES), inference=bll.Laplace())
    store = streamed(tmp_path / "f", CLASSES)
    names = bll.predict_store(fit, store, tmp_path / "p", rows_per_part=2000)
    assert names == ["part-00000.parquet", "part-00001.parquet", "part-00002.parquet"]
    found = pd.read_parquet(tmp_path / "p" / names[0])
    expected = fit.predict(X[:2000]).to_pandas()
    assert list(found.row_id) == list(range(2000))
    pd.testing.assert_frame_equal(found.drop(columns="row_id"), expected, rtol=1e-5, atol=1e-6)
    total = [pd.read_parquet(tmp_path / "p" / name).row_id for name in names]
    assert list(pd.concat(total)) == list(range(N))
    # what is there is not computed again
    (tmp_path / "p" / names[1]).unlink()
    times = {name: (tmp_path / "p" / name).stat().st_mtime_ns for name in (names[0], names[2])}
    assert bll.predict_store(fit, store, tmp_path / "p", rows_per_part=2000) == names
    assert times == {name: (tmp_path / "p" / name).stat().st_mtime_ns for name in times}
    assert (tmp_path / "p" / names[1]).exists()
    other = bll.fit(
        bll.LastLayer(LIKELIHOODS["Categorical"]), (X[:99], CLASSES[:99]), inference=bll.Laplace()
    )
    with pytest.raises(ValueError, match=r"got some of another \(fit differ\)"):
        bll.predict_store(other, store, tmp_path / "p", rows_per_part=2000)
    with pytest.raises(ValueError, match="expected a new folder, got one with"):
        bll.predict_store(fit, store, tmp_path / "f")
    with pytest.raises(ValueError, match="a fit on features and a store of them, got Tensor"):
        bll.predict_store(fit, X, tmp_path / "q")
    columns = ["epistemic", "label"]
    with pytest.raises(
        ValueError, match=r"columns: expected a list of some of label, confidence, p0, .*got 'total_'"
    ):
        bll.predict_store(fit, store, tmp_path / "few", columns=[*columns, "total_"])
    assert not (tmp_path / "few").exists() or not list((tmp_path / "few").iterdir())
    (name,) = bll.predict_store(fit, store.between(0, 100), tmp_path / "few", columns=columns)
    few = pd.read_parquet(tmp_path / "few" / name)
    assert list(few) == ["row_id", *columns]
    pd.testing.assert_frame_equal(few[columns], expected[columns][:100], rtol=1e-5, atol=1e-6)
