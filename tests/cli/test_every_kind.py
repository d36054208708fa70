"""Every kind of data goes through fit, predict, evaluate, ood and diagnose."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from command_cases import all_commands, check_outcome, table_frame, write_data
from processes import exit_code

ROOT = Path(__file__).resolve().parents[2]
KINDS = ("csv", "parquet", "npz", "images", "function", "wine")


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_data(tmp_path: Path, kind: str) -> None:
    assert exit_code(all_commands, str(tmp_path), kind) == 0
    check_outcome(tmp_path)


@pytest.mark.slow
def test_the_real_command(tmp_path: Path) -> None:
    """From a table to predictions of other rows, with columns in another order and without targets."""
    write_data(tmp_path, "csv")
    new = table_frame(300).iloc[240:][["visits", "colour", "customer", "age"]]
    new.to_parquet(tmp_path / "new.parquet")

    def bll(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "bll_pyro", *arguments]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )

    assert bll("fit", "e.yaml", "-o", "run", "--no-tree").returncode == 0
    done = bll("predict", "run", "new.parquet", "-o", "p.csv")
    assert done.returncode == 0 and done.stdout.startswith("p.csv: 60 rows") and done.stderr == ""
    lines = (tmp_path / "p.csv").read_text().splitlines()
    assert len(lines) == 61 and lines[1].startswith("c0240,")
    wrong = bll("predict", "run", "none.csv", "-o", "q.csv")
    assert wrong.returncode == 2 and "does not exist" in wrong.stderr and "Traceback" not in wrong.stderr
