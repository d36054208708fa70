"""Every kind of data goes through fit, predict, evaluate, ood and report, in processes that have done nothing else."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from command_cases import all_commands, check_outcome, exit_code_of, table_frame
from processes import exit_code

ROOT = Path(__file__).resolve().parents[2]
KINDS = (("csv", "parquet", "npy", "store"), ("images", "npz", "safetensors", "function", "wine"))


@pytest.mark.slow
@pytest.mark.parametrize("kinds", KINDS, ids=", ".join)
def test_every_kind_of_data(tmp_path: Path, kinds: tuple[str, ...]) -> None:
    """One process for several kinds, as it takes as long to start as the commands take."""
    assert exit_code(all_commands, str(tmp_path), kinds) == 0
    for kind in kinds:
        check_outcome(tmp_path / kind)


def commands_of_readme(name: str) -> str:
    """The lines of README's section on the command line that are about one file, without the comparison and the service."""
    section = (ROOT / "README.md").read_text().partition("## From the command line")[2]
    block = section.partition("```bash\n")[2].partition("```")[0]
    (part,) = (part for part in block.split("\n\n") if name in part)
    return "\n".join(line for line in part.splitlines() if not line.startswith(("bll compare", "bll serve")))


@pytest.mark.slow
def test_the_program_and_readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What README says of a table, by ``bll`` itself; columns come in another order and without targets.

    What is compared with it comes from commands in this process, since the program takes seconds to start.
    """
    frame = table_frame(400).rename(columns={"buys": "outcome"})
    frame.drop(columns="customer").head(320).to_csv(tmp_path / "patients.csv", index=False)
    frame[["visits", "colour", "age"]].tail(80).to_csv(tmp_path / "new.csv", index=False)
    programs = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PATH": programs}
    done = subprocess.run(
        ["bash", "-ec", commands_of_readme("patients.yaml")],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    monkeypatch.chdir(tmp_path)
    for name, *arguments in (
        ("evaluate", "run:test", "--json"),
        ("ood", "new.csv", "-o", "ood.csv", "--json"),
    ):
        with (tmp_path / f"{name}.json").open("w") as out:
            assert exit_code_of([name, "runs/patients", *arguments], out) == 0
    assert "runs/patients/: experiment.yaml" in done.stdout and "predictions.csv: 80 rows" in done.stdout
    table, verdicts = pd.read_csv(tmp_path / "predictions.csv"), pd.read_csv(tmp_path / "ood.csv")
    assert len(table) == len(verdicts) == json.loads((tmp_path / "ood.json").read_text())["rows"] == 80
    assert (table["label"] == frame["outcome"].tail(80).to_numpy()).mean() > 0.7
    metrics = json.loads((tmp_path / "runs/patients/metrics.json").read_text())
    assert json.loads((tmp_path / "evaluate.json").read_text())["scores"] == metrics["quality"]
    numbers = json.loads((tmp_path / "patients.json").read_text())["metrics"]
    assert numbers["nll"] == pytest.approx(metrics["quality"]["Bayesian"]["NLL"], rel=1e-5)
