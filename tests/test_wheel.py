"""The wheel holds the whole package: built, installed into an empty folder without dependencies, and run there."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

PROGRAM = """
import importlib, pkgutil, sys
from pathlib import Path

import numpy as np
import bll_pyro as bll

folder = Path(sys.argv[1])
assert folder in Path(bll.__file__).parents, bll.__file__
for module in pkgutil.walk_packages(bll.__path__, "bll_pyro."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
x = np.random.default_rng(0).normal(size=(40, 3))
fit = bll.fit(bll.LastLayer(bll.likelihoods.Gaussian()), (x, x[:, 0]), inference=bll.Exact())
fit.save(folder / "fit")
print(float(abs(bll.load(folder / "fit").predict(x).mean - x[:, 0]).max()))
"""


def run(*command: str | Path, cwd: Path, **variables: str) -> str:
    """What a command prints; what it says is the message of a failure."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | variables
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.slow
def test_the_wheel_works_outside_of_the_checkout(tmp_path: Path) -> None:
    uv = (sys.executable, "-m", "uv")
    # the build backend of this environment: nothing is fetched
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path / "dist", cwd=ROOT)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    place = tmp_path / "place"
    run(*uv, "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", place, wheel, cwd=tmp_path)
    packaged = {str(path.relative_to(place)) for path in (place / "bll_pyro").rglob("*") if path.is_file()}
    listed = run(
        "git", "ls-files", "--cached", "--others", "--exclude-standard", "bll_pyro", cwd=ROOT
    ).split()
    assert {name for name in packaged if "__pycache__" not in name} == set(listed)
    # first on the path, before the editable install of this environment
    printed = run(sys.executable, "-c", PROGRAM, place, cwd=tmp_path, PYTHONPATH=str(place))
    assert float(printed) < 1e-3
