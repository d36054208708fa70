"""What an import loads: nothing at first, and no heavy library for a first fit and its predictions."""

import subprocess
import sys

import pytest

from benchmarks.first_fit import CASES
from benchmarks.import_time import LATER

PROGRAM = """
import sys
import bll_pyro as bll
first = set(sys.modules)
bll.fit, bll.LastLayer, bll.SVI, bll.likelihoods, bll.priors, bll.guides
print("torch" in first, *(name for name in sys.argv[1:] if name in sys.modules))
"""


def test_heavy_libraries_load_when_they_are_first_used() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM, *LATER], check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["False"]


FITS = """
import sys
import torch
import bll_pyro as bll
from benchmarks.first_fit import CASES, NEVER, first_and_later

def heavy():
    return [name for name in NEVER if name in sys.modules]

at_first = set(heavy())
for case in CASES:
    work = first_and_later(case, num_later=0)
    work()
    print(case, *(name for name in heavy() if name not in at_first), sep="; ")
import polars
rows = polars.DataFrame({"a": [0.0, 1.0, 2.0], "b": [1.0, 0.0, 1.0]})
made = bll.fit(bll.LastLayer(bll.likelihoods.Gaussian()), (rows, rows["a"]), inference=bll.Exact())
made.predict(rows).to_frame()
print("a frame of polars", *heavy(), sep="; ")
torch.optim.Adam([torch.ones(1)])
print("Adam", *heavy(), sep="; ")
"""


@pytest.fixture(scope="module")
def imported() -> dict[str, list[str]]:
    """Heavy libraries that are there after each case of a fit and its predictions, and in the end after an optimizer of torch.

    One process for all: what one case imports, the later ones have, too, so that nothing is missed.
    """
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FITS], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return {case: names for case, *names in (line.split("; ") for line in done.stdout.splitlines())}


def test_frozen_fits_and_their_predictions_import_no_heavy_library(imported: dict[str, list[str]]) -> None:
    """Above all not torch's compiler, which ``torch.optim.Optimizer`` imports: it costs more than a hundred fits."""
    assert {case: imported[case] for case in CASES} == {case: [] for case in CASES}


def test_a_frame_imports_narwhals_and_no_other_library_of_frames(imported: dict[str, list[str]]) -> None:
    assert imported["a frame of polars"] == ["narwhals", "polars"]


def test_the_search_for_heavy_libraries_finds_one(imported: dict[str, list[str]]) -> None:
    """The first optimizer of class ``torch.optim.Optimizer`` imports the compiler: if it no longer does, ours can go."""
    assert "torch._dynamo" in imported["Adam"]
