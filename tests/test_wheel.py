"""The wheel holds the whole package: built, installed into an empty folder without dependencies, and run there."""

import json
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"

IMPORTS = """
import importlib, pkgutil, sys
from pathlib import Path

import bll_pyro as bll

assert Path(sys.argv[1]) in Path(bll.__file__).parents, bll.__file__
for module in pkgutil.walk_packages(bll.__path__, "bll_pyro."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
"""


def run(*command: str | Path, cwd: Path, **variables: str) -> str:
    """What a command prints; what it says is the message of a failure."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | variables
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def python_blocks() -> str:
    """All Python blocks of README.md as one script, each line where it stands there, so that errors point to it."""
    lines, inside = [], False
    for line in README.read_text().splitlines():
        inside = (line == "```python") if line.startswith("```") else inside
        lines.append(line if inside and not line.startswith("```") else "")
    return "\n".join(lines)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder into which the wheel is installed."""
    folder = tmp_path_factory.mktemp("wheel")
    uv = (sys.executable, "-m", "uv")
    # the build backend of this environment: nothing is fetched. The wheel is made from the source distribution
    build = (sys.executable, "-m", "hatchling", "build", "-d", folder / "dist")
    run(*build, "-t", "sdist", cwd=ROOT)
    (source,) = (folder / "dist").glob("*.tar.gz")
    with tarfile.open(source) as archive:
        archive.extractall(folder, filter="data")
    run(*build, "-t", "wheel", cwd=folder / source.name.removesuffix(".tar.gz"))
    (wheel,) = (folder / "dist").glob("*.whl")
    run(
        *uv,
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--target",
        folder / "place",
        wheel,
        cwd=folder,
    )
    return folder / "place"


@pytest.mark.slow
def test_the_wheel_holds_every_file(place: Path) -> None:
    packaged = {str(path.relative_to(place)) for path in (place / "bll_pyro").rglob("*") if path.is_file()}
    listed = run(
        "git", "ls-files", "--cached", "--others", "--exclude-standard", "bll_pyro", cwd=ROOT
    ).split()
    assert {name for name in packaged if "__pycache__" not in name} == set(listed)
    (metadata,) = place.glob("bll_pyro-*.dist-info")
    version = re.search(r'__version__ = "(.+)"', (ROOT / "bll_pyro/__init__.py").read_text())[1]
    assert metadata.name == f"bll_pyro-{version}.dist-info" and (place / "bll_pyro/py.typed").is_file()


@pytest.mark.slow
def test_the_readme_runs_from_the_wheel(place: Path, tmp_path: Path) -> None:
    """Outside of the checkout, after every module was imported; the wheel is first on the path, before the editable install."""
    script = tmp_path / "readme.py"
    script.write_text(python_blocks() + IMPORTS)
    assert script.read_text().count("import bll_pyro as bll") == 3  # scikit-learn, networks, and the check
    said = run(sys.executable, script, place, cwd=tmp_path, PYTHONPATH=str(place))
    accuracy = float(re.search(r"accuracy ([\d.]+)", said)[1])
    known, unknown = (float(value) for value in re.findall(r"epistemic ([\d.]+) nats", said))
    auroc = float(re.search(r"AUROC of unknown digits ([\d.]+)", said)[1])
    assert accuracy > 0.93 and auroc > 0.8 and unknown > 2 * known
    assert "bias[7]" in said
    assert (tmp_path / "model" / "manifest.json").is_file()


@pytest.mark.slow
def test_the_demo_runs_from_the_wheel(place: Path, tmp_path: Path) -> None:
    run(sys.executable, place / "bin" / "bll", "demo", "--quick", cwd=tmp_path, PYTHONPATH=str(place))
    heads = json.loads((tmp_path / "runs" / "demo" / "metrics.json").read_text())["heads"]
    assert heads["bayesian_joint"]["accuracy"] > 0.3  # of eight classes, with few rows and epochs
