"""Work on blocks of rows without Ray: each row once, in whatever blocks it comes; what is wrong is named; the watchdog."""

import json
import pickle
import subprocess
import sys
import time
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray_cases as cases
import torch

import bll_pyro as bll
from bll_pyro.distributed.on_ray import passing
from bll_pyro.distributed.on_ray.columns import RowColumns
from bll_pyro.distributed.on_ray.extraction import Extraction
from bll_pyro.distributed.on_ray.left_out import LEFT_OUT, rows_left_out
from bll_pyro.distributed.on_ray.passing import parts_of_key
from bll_pyro.distributed.on_ray.watchdog import DEATH, TIME, note_end
from bll_pyro.distributed.on_ray.work import Assignment, BlockWorker, part_name
from bll_pyro.distributed.on_ray.workers import Workers
from bll_pyro.shards.parts import remove_part
from bll_pyro.shards.place import place_of

COLUMNS = RowColumns.of("inputs", row_id="row_id", targets="targets")


@pytest.fixture(autouse=True)
def no_ray(monkeypatch):
    """What is given to an actor is there."""
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(get=lambda given: given))


@pytest.fixture
def store(tmp_path):
    return place_of(tmp_path / "store")


def worker(place, columns=COLUMNS, left_out=(), retries=3) -> BlockWorker:
    work = Extraction(place, "key", cases.Network(), None, "cpu")
    finished = tuple(parts_of_key(place, "key").values())
    return BlockWorker(
        [Assignment(work, columns, Workers(batch_size=10, retries=retries), finished, left_out)]
    )


def block(start: int, stop: int, step: int = 1, texts: bool = False) -> dict[str, np.ndarray]:
    rows = {name: values[start:stop][::step] for name, values in cases.columns().items()}
    return rows | ({"row_id": np.array([f"r{each}" for each in rows["row_id"]], object)} if texts else {})


def passed(actor: BlockWorker, given: dict[str, np.ndarray]) -> str:
    row = actor(given)
    assert row["num_rows"] == [len(given["inputs"])]
    if row["error"][0]:
        raise pickle.loads(row["error"][0])
    return row["part"][0]


def expected(tmp_path, stop: int, texts: bool = False) -> bll.Features:
    rows = block(0, stop, texts=texts)
    features = cases.Network()(torch.from_numpy(rows["inputs"])).detach()
    bll.Features.writer(tmp_path / "alone").write(
        "one", features, torch.from_numpy(rows["targets"]), row_ids=rows["row_id"]
    )
    return bll.Features.commit(tmp_path / "alone")


@pytest.mark.parametrize("texts", [False, True])
def test_rows_come_once_in_whatever_blocks(tmp_path, store, texts):
    first = worker(store)
    names = [passed(first, block(0, 30, texts=texts)), passed(first, block(30, 50, -1, texts))]
    assert passed(first, block(0, 30, texts=texts)) == names[0]  # as after a retry: nothing is computed
    files = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "store").iterdir()}
    second = worker(store)  # of a call that goes on, with other blocks
    assert passed(second, block(5, 25, texts=texts)) == ""
    assert passed(second, block(40, 90, texts=texts)) not in names
    assert {name: (tmp_path / "store" / name).stat().st_mtime_ns for name in files} == files
    made, whole = bll.Features.commit(tmp_path / "store", num_rows=90), expected(tmp_path, 90, texts)
    assert made.num_shards == 3
    order = torch.from_numpy(np.argsort(np.asarray(made.row_ids)))
    torch.testing.assert_close(
        made[:][order], whole[:][torch.from_numpy(np.argsort(np.asarray(whole.row_ids)))]
    )


def test_the_same_rows_get_the_same_name():
    assert part_name(range(3, 6)) == part_name(torch.tensor([3, 4, 5])) != part_name(range(3, 7))
    texts = np.array(["a", "bc"], object)
    assert part_name(texts) != part_name(np.array(["ab", "c"], object))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows.pop("row_id"), "expected columns 'row_id', got inputs, targets"),
        (lambda rows: rows["row_id"].__setitem__(3, 1007), "expected each id once, got 1007 twice"),
        (lambda rows: rows["inputs"].__setitem__((4, 1), np.nan), "with the ids 1004;"),
        (
            lambda rows: rows["targets"].__setitem__(5, np.inf),
            "1 rows without a finite number in 'targets', with the ids 1005;",
        ),
        (lambda rows: rows.update(targets=np.array(list("abcdefghij"))), "expected targets that are numbers"),
        (lambda rows: rows.update(row_id=rows["row_id"] + 0.5), "row_ids: expected one whole number"),
        (
            lambda rows: rows.update(inputs=np.array([np.ones(3)] * 9 + [np.ones(2)], object)),
            "expected one shape in all rows of 'inputs'",
        ),
        (lambda rows: rows.update(inputs=np.array([None] * 10)), "got gaps"),
        (lambda rows: rows.update(inputs=np.ones((10, 3), np.float32)), "expected inputs that it can run on"),
    ],
    ids=["column", "double", "features", "targets", "labels", "ids", "widths", "gaps", "network"],
)
def test_what_is_wrong_is_named_and_what_is_there_stays(tmp_path, store, change, message):
    rows = {name: values.copy() for name, values in block(0, 10).items()}
    change(rows)
    actor = worker(store)
    passed(actor, block(10, 20))
    with pytest.raises(ValueError, match=message):
        passed(actor, rows)
    passed(actor, block(0, 10))
    assert len(bll.Features.commit(tmp_path / "store", num_rows=20)) == 20


def test_parts_of_another_kind_or_key_are_refused(store):
    passed(worker(store), block(0, 10))
    with pytest.raises(
        ValueError, match="expected ids of the kind that the folder has, such as 1000, got 'r"
    ):
        passed(worker(store), block(0, 10, texts=True))
    with pytest.raises(ValueError, match=r"expected parts of the key other\.\.\., got key\.\.\. in part-"):
        parts_of_key(store, "other")


def test_a_part_that_was_cut_is_made_again(tmp_path, store):
    name = passed(worker(store), block(0, 10))
    file = tmp_path / "store" / f"{name}.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-4])
    assert passed(worker(store), block(0, 10)) == name
    assert file.read_bytes() == whole


def test_batches_that_ended_their_worker_are_left_out(tmp_path, store):
    name = part_name(range(1000, 1030))
    for batch, why, times in (("0", DEATH, 2), ("10", DEATH, 1), ("20", TIME, 1)):
        ids = list(range(1000 + int(batch), 1010 + int(batch)))
        for _ in range(times):
            note_end(str(store), {"part": name, "batch": batch, "row_ids": ids}, why)
    assert passed(worker(store, retries=1), block(0, 30)) == name  # tried again once
    made = parts_of_key(store, "key")[name]
    assert (made.first_id, made.last_id) == (1010, 1019)
    left_out = rows_left_out(store, retries=1)
    assert left_out == [*range(1000, 1010), *range(1020, 1030)]
    assert json.loads((tmp_path / "store" / LEFT_OUT).read_text()) == {"row_ids": left_out}
    assert rows_left_out(store, retries=1) == left_out
    # a call that goes on leaves them out too
    assert passed(worker(store, left_out=tuple(left_out)), block(0, 30)) == name
    assert passed(worker(store, left_out=tuple(left_out)), block(0, 20)) == ""


# ---- the driver, with workers in this process


@pytest.fixture
def blocks(monkeypatch) -> list[dict[str, np.ndarray]]:
    """The blocks that come, each to an actor of its own."""
    found: list[dict[str, np.ndarray]] = []

    @contextmanager
    def in_this_process(dataset, actor, given, workers):
        rows = (actor([given])(each) for each in dataset)
        yield ({name: values[0] for name, values in row.items()} for row in rows)

    monkeypatch.setattr(passing, "dataset_of", lambda data, rows, columns: found)
    monkeypatch.setattr(passing, "through_actors", in_this_process)
    return found


def passed_all(store, **options: Any) -> bll.distributed.RowsReport:
    work = Extraction(store, "key", cases.Network(), None, "cpu")
    return passing.pass_rows(None, None, COLUMNS, work, Workers(batch_size=10, **options))


def test_a_call_goes_on_and_deletes_what_no_block_has_named(tmp_path, store, blocks, monkeypatch):
    blocks += [block(0, 30), block(30, 60)]
    passed(worker(store), block(0, 30))

    def lost() -> None:
        """A worker wrote a part and died; its rows came to others in other blocks."""
        Extraction(store, "key", cases.Network(), None, "cpu").write(
            "part-lost", range(1030, 1040), [torch.zeros(10, 4)], torch.zeros(10)
        )

    class Losing(list):
        def __iter__(self):
            yield from super().__iter__()
            lost()

    monkeypatch.setattr(passing, "dataset_of", lambda data, rows, columns: Losing(blocks))
    report = passed_all(store)
    assert (report.num_rows, report.num_done, report.num_skipped) == (60, 30, 30)
    assert len(bll.Features.commit(tmp_path / "store", num_rows=60)) == 60


def test_an_id_in_two_rows_is_found(store, blocks):
    blocks += [block(0, 30), block(20, 50)]
    with pytest.raises(ValueError, match="expected each row once, got the id 1020 in part-"):
        passed_all(store)
    for name in passing.parts_of_key(store, "key"):
        remove_part(store, name, f"{name}.safetensors")
    blocks[1] = block(0, 30)  # the same rows again: one part
    with pytest.raises(ValueError, match="60 rows, got 30 of different ids; an id occurs in several rows"):
        passed_all(store)
    blocks[:] = [block(0, 20)]
    with pytest.raises(
        ValueError, match="20 rows, got 30 of different ids; the folder has rows of other data"
    ):
        passed_all(store)


def test_an_error_of_a_worker_is_raised_as_it_is(store, blocks):
    bad = {name: values.copy() for name, values in block(30, 60).items()}
    bad["inputs"][4, 1] = np.nan
    blocks += [block(0, 30), bad]
    with pytest.raises(ValueError, match="with the ids 1034;"):
        passed_all(store)
    assert len(passing.parts_of_key(store, "key")) == 1
    blocks[1] = block(30, 60)
    assert passed_all(store).num_skipped == 30


WATCHED = """
import os, re, sys, time
from bll_pyro.distributed.on_ray.watchdog import Watchdog
dog = Watchdog(sys.argv[1], float(sys.argv[2]))
with dog.watching("part", "0", [1, 2]):
    pass
with dog.watching("part", "5", [3, "four"]):
    re.match(r"(a+)+$", "a" * 60 + "b") if sys.argv[3] == "hangs" else os._exit(3)
"""


@pytest.mark.parametrize(("how", "code", "why"), [("hangs", -9, TIME), ("ends", 3, DEATH)])
def test_the_watchdog_notes_the_batch(tmp_path, how, code, why):
    """A batch that hangs holds the interpreter all the while."""
    seconds = "0.5" if how == "hangs" else "600"
    done = subprocess.run([sys.executable, "-c", WATCHED, str(tmp_path), seconds, how], check=False)
    assert done.returncode == code
    file, end = tmp_path / "part.left-out.json", time.monotonic() + 60
    while not file.exists():  # who died is noted afterwards
        assert time.monotonic() < end
        time.sleep(0.05)
    found: dict[str, Any] = json.loads(file.read_text())
    assert found == {"5": {"row_ids": [3, "four"], TIME: 0, DEATH: 0} | {why: 1}}


def test_without_ray_one_line_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    calls = {
        "extract": lambda: bll.distributed.extract("rows.parquet", None, tmp_path / "s"),
        "statistics": lambda: bll.distributed.statistics("rows.parquet"),
    }
    for name, call in calls.items():
        with pytest.raises(
            ModuleNotFoundError, match=rf'^distributed\.{name}: .* pip install "bll-pyro\[ray\]"$'
        ):
            call()


@pytest.mark.unchecked
def test_declarations_are_checked():
    for wrong in (
        {"timeout": 0.0},
        {"batch_size": 0},
        {"num_actors": 0},
        {"retries": -1},
        {"num_cpus": -1.0},
    ):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Workers(**wrong)
    with pytest.raises(TypeError, match=r"expected a torch\.nn\.Module or None, got str"):
        bll.distributed.extract("rows.parquet", "net", "store")
