"""Every example runs, in its small form; its own assertions hold."""

import os
import runpy
from pathlib import Path

import pytest

from bll_pyro.scope import isolated

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("[0-9]*.py"))


def test_examples_are_numbered() -> None:
    assert [path.name[:2] for path in EXAMPLES] == [f"{i + 1:02d}" for i in range(len(EXAMPLES))]


@pytest.mark.parametrize("path", EXAMPLES, ids=[path.stem for path in EXAMPLES])
@pytest.mark.filterwarnings(
    "default::bll_pyro.FitWarning",  # of short training
    "ignore:.isinstance.treespec, LeafSpec:FutureWarning",  # Lightning 2.6 asks torch 2.15 in the old way
    "ignore:The .*dataloader.* does not have many workers",  # Lightning, where there are more cores
)
def test_example(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """As a script, in the process of the tests: an interpreter with torch takes longer to start than an example to run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", [str(path), "--small"])
    with isolated():  # scripts seed torch, which a test must not
        runpy.run_path(str(path), run_name="__main__")
    assert capsys.readouterr().out
    assert os.listdir(tmp_path) == []
