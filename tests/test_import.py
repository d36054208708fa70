"""What an import loads: nothing at first, and no heavy library for a first fit and its predictions."""

import subprocess
import sys

import pytest

from benchmarks.first_fit import CASES, NEVER
from benchmarks.fresh_process import measure
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


EVERY_DAY = ("SVI, few rows, classes", "SVI, many rows, classes")


@pytest.mark.parametrize(
    "case", [case if case in EVERY_DAY else pytest.param(case, marks=pytest.mark.slow) for case in CASES]
)
def test_a_frozen_fit_and_its_predictions_import_no_heavy_library(case: str) -> None:
    """Above all not torch's compiler, which ``torch.optim.Optimizer`` imports: it costs more than a hundred fits."""
    outcome = measure("benchmarks.first_fit:first_and_later", {"case": case}, time_limit=600.0)
    assert outcome.failure is None
    assert outcome.value["imported"] == []


def test_the_search_for_heavy_libraries_finds_one() -> None:
    """The first optimizer of class ``torch.optim.Optimizer`` imports the compiler: if it no longer does, ours can go."""
    code = (
        "import sys, torch, pyro; torch.optim.Adam([torch.ones(1)]); "
        "print(*(name for name in sys.argv[1:] if name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code, *NEVER], check=True, capture_output=True, text=True)
    assert "torch._dynamo" in done.stdout.split()
