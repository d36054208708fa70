"""Formulas of what large jobs take: sizes of files are those of files that are written."""

from pathlib import Path

import pytest
import torch

import bll_pyro as bll
from benchmarks.capacity_formulas import Constants, bytes_in_words, duration, store_bytes, works

CONSTANTS = Constants(*[1.0] * 9)


def written(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*.safetensors"))


@pytest.mark.parametrize(("num_features", "num_classes"), [(200, 150), (100, 300)])
@pytest.mark.filterwarnings("ignore::bll_pyro.FitWarning")
def test_saved_fits_are_as_large_as_the_formulas_say(
    tmp_path: Path, num_features: int, num_classes: int
) -> None:
    random = torch.Generator().manual_seed(0)
    x = torch.randn(600, num_features, generator=random)
    labels = torch.arange(600) % num_classes
    work = {each.name.split(",")[0]: each for each in works(CONSTANTS, 600, num_features, num_classes)}
    categorical = bll.likelihoods.Categorical(num_classes)
    for name, likelihood, y, inference in (
        ("Exact", bll.likelihoods.Gaussian(), x[:, 0], bll.Exact()),
        ("SVI", categorical, labels, bll.SVI(num_epochs=1)),
        ("Laplace", categorical, labels, bll.Laplace()),
    ):
        fit = bll.fit(
            bll.LastLayer(likelihood, bll.priors.Normal(0.1)), (x, y), inference=inference, calibration=None
        )
        fit.save(tmp_path / name)
        assert written(tmp_path / name) == pytest.approx(work[name].storage, rel=0.05)


def test_a_store_is_as_large_as_its_formula_says(tmp_path: Path) -> None:
    x, y = torch.randn(5000, 64).half(), torch.zeros(5000, dtype=torch.int64)
    bll.Features.writer(tmp_path / "s").write("part", x, y, row_ids=range(1, 10_000, 2))
    bll.Features.commit(tmp_path / "s", num_rows=5000)
    assert written(tmp_path / "s") == pytest.approx(store_bytes(5000, 64), rel=0.01)


def test_numbers_have_units_of_their_size() -> None:
    assert [duration(7), duration(300), duration(86_400 * 3), duration(1e9)] == [
        "7 s",
        "5 min",
        "3 days",
        "31.7 years",
    ]
    assert [bytes_in_words(12), bytes_in_words(2.5e9), bytes_in_words(8e12)] == ["12 B", "2.5 GB", "8 TB"]
