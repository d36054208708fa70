"""Format 1: fits that version 0.1.0 saved load and predict as they did, and the same fits made anew agree with them.

``record.py`` compares bit for bit, on one machine. Here a tolerance allows for the rounding of other processors.
"""

from pathlib import Path

import numpy as np
import pytest
import record
from cases import CASES, SAVED

import bll_pyro as bll

FOLDER = Path(__file__).parent
ROUNDING = 1e-4  # of the largest number of its kind
STEPS = 5e-3  # the same, after a few hundred steps that each carry rounding on
LAST_ROUNDS = (
    0.1  # the same, where the last rounds on all rows, which 0.1.0 did not have, bring the fit to the optimum
)
SETTLED = ("defaults", "joint")
CHAOTIC = ("NUTS", "NUTS, horseshoe")  # a trajectory doubles its rounding again and again


@pytest.fixture(scope="module")
def recorded() -> dict[str, np.ndarray]:
    with np.load(FOLDER / "recorded.npz") as file:
        return dict(file)


def agree(found: dict[str, np.ndarray], recorded: dict[str, np.ndarray], case: str, tolerance: float) -> None:
    for name, value in found.items():
        expected = recorded[f"{case}/{name}"].astype(float)
        size = np.abs(expected).max()
        np.testing.assert_allclose(
            value.astype(float), expected, rtol=0, atol=tolerance * size + 1e-7, err_msg=f"{case}/{name}"
        )


@pytest.mark.parametrize("case", SAVED)
def test_saved_fits_load_and_predict(case: str, recorded: dict[str, np.ndarray], tmp_path: Path) -> None:
    fit = bll.load(FOLDER / "fits" / record.folder_name(case))
    assert record.posterior_hash(fit) == str(recorded[f"{case}/hash"])
    agree(record.results(fit, CASES[case]), recorded, case, ROUNDING)
    fit.save(tmp_path)
    assert record.posterior_hash(bll.load(tmp_path)) == str(recorded[f"{case}/hash"])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # short fits say that they are short
@pytest.mark.parametrize("case", [name for name in CASES if name not in CHAOTIC])
def test_fits_are_those_of_format_1(case: str, recorded: dict[str, np.ndarray]) -> None:
    found = record.results(CASES[case].fit(), CASES[case])
    agree(found, recorded, case, LAST_ROUNDS if case in SETTLED else STEPS)
