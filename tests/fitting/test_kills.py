"""A fit that is killed and called again ends as if nothing had happened: SIGKILL, Ctrl-C and SIGTERM, in real processes."""

import signal
from pathlib import Path
from random import Random

import pytest
import torch
from processes import exit_code
from resume_cases import Life, interrupted, live

from bll_pyro.checkpoint.part_file import read_part

NUM_STEPS = 24


def steps_of(log: Path) -> list[tuple[int, str]]:
    return [(int(number), rows) for number, rows in (line.split() for line in log.read_text().splitlines())]


def same(life: Life, other: Life) -> None:
    """The same numbers, bit for bit, and the same rows in every step, also in those that were taken twice."""
    one, two = life.load(), other.load()
    for name, value in two.posterior.latents.weights.tensors.items():
        torch.testing.assert_close(one.posterior.latents.weights.tensors[name], value, rtol=0, atol=1e-6)
    assert one.fingerprint == two.fingerprint
    assert one.trace.validation == two.trace.validation and torch.equal(one.trace.elbo, two.trace.elbo)
    if two.backbone is not None:
        states = one.backbone.state_dict(), two.backbone.state_dict()
        assert all(torch.equal(states[0][name], value) for name, value in states[1].items())
    expected = dict(steps_of(other.log))
    assert len(expected) == NUM_STEPS
    assert dict(steps_of(life.log)) == expected and set(steps_of(life.log)) == set(expected.items())


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", ["joint", "frozen"])
def test_ten_kills_at_random_steps(tmp_path: Path, kind: str, workers: int) -> None:
    """Some after a step whose state was not kept, some while a state is written; loaders draw noise, in workers too."""
    whole = Life(kind, workers, None, tmp_path / "whole")
    assert exit_code(live, whole) == 0
    random, killed = Random(workers), 0
    for number in range(10):
        life = Life(
            kind, workers, tmp_path / "run", tmp_path / "log", random.randint(1, 3), number % 3 == 2, number
        )
        code = exit_code(live, life)
        assert code in (0, -signal.SIGKILL)
        killed += code != 0
    last = Life(kind, workers, tmp_path / "run", tmp_path / "log", number=10)
    assert exit_code(live, last) == 0
    assert killed == 10 and len(steps_of(last.log)) > NUM_STEPS
    same(last, whole)


def test_a_kill_in_a_pass(tmp_path: Path) -> None:
    """One kill in the second pass of joint training."""
    whole = Life("joint", 0, None, tmp_path / "whole")
    first, last = (
        Life("joint", 0, tmp_path / "run", tmp_path / "log", kill, kill == 9, 3) for kill in (9, None)
    )
    assert [exit_code(live, each) for each in (whole, first, last)] == [0, -signal.SIGKILL, 0]
    same(last, whole)


@pytest.mark.slow
def test_ctrl_c_keeps_the_state_after_the_step_and_says_how_to_go_on(tmp_path: Path) -> None:
    whole, said = Life("joint", 0, None, tmp_path / "whole"), tmp_path / "said"
    life = Life("joint", 0, tmp_path / "run", tmp_path / "log")
    assert exit_code(interrupted, life, signal.SIGINT, 1, said) == 0
    text = said.read_text()
    assert text.startswith("KeyboardInterrupt: stopped after a step; what was done is in ")
    assert (
        str(tmp_path / "run") in text
        and "the same call of bll.fit goes on from there" in text
        and text.endswith("True")
    )
    state, notes = read_part(tmp_path / "run" / "joint.safetensors")
    assert len(state["history"]) == 5 and notes["finished"] == "False"
    for each in (whole, life):
        assert exit_code(live, each) == 0
    assert [number for number, _ in steps_of(life.log)] == list(range(6, NUM_STEPS + 1))
    assert life.load().fingerprint == whole.load().fingerprint


@pytest.mark.slow
def test_sigterm_keeps_the_state_and_ends_the_process(tmp_path: Path) -> None:
    life, said = Life("frozen", 0, tmp_path / "run", tmp_path / "log"), tmp_path / "said"
    assert exit_code(interrupted, life, signal.SIGTERM, 1, said) == -signal.SIGTERM
    assert len(read_part(tmp_path / "run" / "on-features.safetensors")[0]["history"]) == 5


@pytest.mark.slow
def test_the_second_ctrl_c_stops_at_once_and_one_without_a_checkpoint_says_how_to_keep(
    tmp_path: Path,
) -> None:
    life, said = Life("joint", 0, tmp_path / "run", tmp_path / "log"), tmp_path / "said"
    assert exit_code(interrupted, life, signal.SIGINT, 2, said) == 0
    assert said.read_text().startswith("KeyboardInterrupt: stopped; what was done is in ")
    assert [path.name for path in (tmp_path / "run").glob("*.safetensors")] == ["start.safetensors"]
    alone = Life("joint", 0, None, tmp_path / "log")
    assert exit_code(interrupted, alone, signal.SIGINT, 1, said) == 0
    text = said.read_text()
    assert text.startswith(
        "KeyboardInterrupt: stopped, and nothing was kept; bll.fit(..., checkpoint="
    ) and text.endswith("True")
