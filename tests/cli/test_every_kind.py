"""Every kind of data goes through fit, predict, evaluate, ood and report, in processes that have done nothing else."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from command_cases import all_commands, chain, check_outcome, table_frame, write_data
from processes import exit_code

ROOT = Path(__file__).resolve().parents[2]
KINDS = (("parquet", "npy", "store", "images"), ("npz", "safetensors", "function", "wine"))


@pytest.mark.slow
@pytest.mark.parametrize("kinds", KINDS, ids=", ".join)
def test_every_kind_of_data(tmp_path: Path, kinds: tuple[str, ...]) -> None:
    """One process for several kinds, as it takes as long to start as the commands take."""
    assert exit_code(all_commands, str(tmp_path), kinds) == 0
    for kind in kinds:
        check_outcome(tmp_path / kind)


@pytest.mark.slow
def test_the_real_command(tmp_path: Path) -> None:
    """Every command of a table in an interpreter of its own; columns in another order and without targets are predicted."""
    command = str(Path(sys.executable).with_name("bll"))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    _, given = write_data(tmp_path, "csv")
    new = table_frame(300).iloc[240:][["visits", "colour", "customer", "age"]]
    new.to_parquet(tmp_path / "new.parquet")
    for arguments in (*chain(given), ["predict", "run", "new.parquet", "-o", "new.csv"]):
        done = subprocess.run(
            [command, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert done.stderr == "" or arguments[0] in ("fit", "evaluate", "report")
        (tmp_path / f"{arguments[0]}.txt").write_text(done.stdout)
    check_outcome(tmp_path)
    assert (tmp_path / "predict.txt").read_text().startswith("new.csv: 60 rows")
    lines = (tmp_path / "new.csv").read_text().splitlines()
    assert len(lines) == 61 and lines[1].startswith("c0240,")
