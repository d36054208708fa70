"""A fit on ranks is that of one process; ranks that disagree, fail or are killed stop all, with an error that names the rank."""

import signal
from concurrent.futures import wait
from typing import Any

import pytest
import ranks_cases as cases
import torch
from processes import CLEAN, pool

import bll_pyro as bll

pytestmark = pytest.mark.slow
ROUNDING = {torch.float64: 1e-9, torch.float32: 2e-5}  # of sums in another order, over the steps of a fit


@pytest.fixture(scope="module")
def made() -> dict[Any, Any]:
    """What was made so far: reports of 2 and of 4 ranks, and the fits of one process."""
    return {}


@pytest.fixture(params=[2, 4])
def reports(
    request: pytest.FixtureRequest, made: dict[Any, Any], tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, Any]]:
    """What each of 2 and of 4 ranks says; they run once."""
    size = request.param
    if size not in made:
        port, folder = cases.free_port(), str(tmp_path_factory.mktemp("outputs"))
        with pool(size) as processes:
            futures = [processes.submit(cases.report, rank, size, port, folder) for rank in range(size)]
            wait(futures)
            made[size] = [future.result() for future in futures]
    return made[size]


def of_one(made: dict[Any, Any], name: str) -> dict[str, Any]:
    if name not in made:
        made[name] = cases.described(name)
    return made[name]


def close(got: Any, expected: Any, tolerance: float) -> bool:
    """Whether numbers agree, relative to the largest of them."""
    got, expected = (torch.as_tensor(value, dtype=torch.float64) for value in (got, expected))
    return bool((got - expected).abs().max() <= tolerance * expected.abs().max().clamp_min(1e-3))


@pytest.mark.parametrize(
    ("reports", "name"),
    [(2, name) for name in cases.CASES] + [(4, name) for name in cases.FOUR],
    indirect=["reports"],
)
def test_fits_are_those_of_one_process(name, reports, made):
    expected, dtype = of_one(made, name), cases.CASES[name][4]
    for got in (report[name] for report in reports):
        assert got["fingerprint"] == reports[0][name]["fingerprint"]  # the same on all ranks, bit for bit
        assert got["num_rows"] == expected["num_rows"] == cases.CASES[name][2]
        assert got["classes"] == expected["classes"]
        assert got["trace"].converged == expected["trace"].converged
        tolerance = {"exact": 1e-10, "exact with weights": 1e-10, "kronecker": 1e-6}.get(
            name, ROUNDING[dtype]
        )
        for part in ("mean", "total", "elbo", "final", "log_evidence", "validation"):
            assert (got[part] is None) == (expected[part] is None)
            if got[part] is not None and len(torch.as_tensor(got[part]).reshape(-1)):
                assert close(got[part], expected[part], tolerance), part
        assert got["temperature"] == expected["temperature"]


def test_ranks_take_the_rows_of_a_store(reports):
    expected = cases.of_store()
    for got in (report["store"] for report in reports):
        assert got["num_rows"] == expected["num_rows"] == cases.FEW
        assert close(got["mean"], expected["mean"], 1e-10)
        assert close(got["log_evidence"], expected["log_evidence"], 1e-10)


@pytest.mark.parametrize("name", ["svi", "svi of values"])
def test_metrics_count_each_row_once(name, reports):
    for report in reports:
        assert close(report["scores"][name], cases.scores(name), 1e-5 if name == "svi" else 1e-9)


@pytest.mark.parametrize("kind", ["diagonal", "point"])
def test_outputs_that_are_shared(kind, reports):
    expected = cases.shared_outputs(kind)
    parts = [report["outputs"][kind] for report in reports]
    assert sum(part["num_own"] for part in parts) == cases.CLASSES
    for got in parts:
        for name in ("probs", "total", "aleatoric", "log_prob", "elbo", "prior_scale"):
            assert close(got[name], expected[name], 1e-4), name
        assert torch.equal(got["label"][:, 0], expected["label"][:, 0])
        assert torch.equal(got["probs"], parts[0]["probs"])


def test_what_ranks_sum_and_gather(reports):
    size = len(reports)
    for rank, report in enumerate(reports):
        total, rows, shown = report["parts"]
        assert total == size * (size - 1) / 2
        assert rows == [number for length in range(size) for number in range(length)]
        assert shown == f"Ranks(rank {rank} of {size})"


@pytest.mark.parametrize(("reports", "name"), [(2, name) for name in cases.WRONG], indirect=["reports"])
def test_ranks_that_differ_stop_on_all(name, reports):
    kinds, messages = zip(*(report["refused"][name] for report in reports), strict=True)
    if name.startswith("rank 1 failed"):
        assert kinds == ("RankError", "ValueError")
        assert name in messages[0]
        return
    assert kinds == ("ValueError", "ValueError")
    assert messages[0] == messages[1]
    assert name in messages[0] and "rank 1" in messages[0].replace("ranks 0 and 1", "rank 1")


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("killed", "rank 1 has ended"),
        ("failed", "rank 1 failed: KeyError"),
        ("hung", "rank 1 has ended, or hangs"),
    ],
)
def test_a_lost_rank_stops_the_others(how, said):
    size, port, answers = 3, cases.free_port(), CLEAN.SimpleQueue()
    processes = [
        CLEAN.Process(target=cases.lost, args=(rank, size, port, how, answers)) for rank in range(size)
    ]
    for process in processes:
        process.start()
    for rank in (0, 2):
        processes[rank].join()
    if how != "failed":
        processes[1].kill()
    processes[1].join()
    found = {}
    while not answers.empty():
        rank, *found[rank] = answers.get()
    assert set(found) == ({0, 1, 2} if how == "failed" else {0, 2})
    for rank in (0, 2):
        kind, text, seconds = found[rank]
        assert kind == "RankError"
        assert said in text
        assert seconds < 50  # and not the time-out of 60 seconds
    if how == "killed":
        assert processes[1].exitcode == -signal.SIGKILL


def test_ranks_need_a_process_group(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ValueError, match="torchrun --nproc-per-node"):
        bll.distributed.Ranks()
    monkeypatch.setattr(torch.distributed, "is_gloo_available", lambda: False)
    with pytest.raises(RuntimeError, match="gloo"):
        bll.distributed.Ranks()
