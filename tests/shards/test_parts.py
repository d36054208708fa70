"""Parts of a store by many writers: the same store whoever writes what and how often; what is wrong is named, and nothing lost."""

import errno
import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import processes
import pytest
import torch

from bll_pyro.features.store import Features
from bll_pyro.shards import shard
from bll_pyro.shards.manifest import MANIFEST

N, D = 24, 3
X = torch.randn(N, D, generator=torch.Generator().manual_seed(0))
Y = torch.arange(N) % 5
CUTS = {"one": [0, N], "three": [0, 5, 16, N], "each row": list(range(N + 1))}


def write(path, cuts, order=None, ids=None, x=X, y=Y, key="k"):
    """Write the rows between cuts as parts, in some order, each by a writer of its own."""
    spans = list(pairwise(cuts))
    for k in range(len(spans)) if order is None else order:
        rows = slice(*spans[k])
        Features.writer(path, key=key).write(
            f"p{k}",
            x[rows],
            None if y is None else y[rows],
            row_ids=range(N)[rows] if ids is None else ids[rows],
        )


@pytest.fixture(params=["folder", "memory"])
def where(request, tmp_path):
    return tmp_path / "f" if request.param == "folder" else f"memory://{tmp_path}/f"


@pytest.mark.parametrize("cuts", CUTS.values(), ids=CUTS)
def test_rows_come_in_the_order_of_their_ids(where, cuts):
    write(where, cuts, order=list(reversed(range(len(cuts) - 1))))
    features = Features.commit(where, num_rows=N)
    assert torch.equal(features.tensor(), X) and torch.equal(features.targets, Y)
    assert features.row_ids == range(N) and features.key == "k"
    assert features.num_shards == len(cuts) - 1
    features.verify()


def test_the_hash_of_a_store_is_that_of_its_rows(tmp_path):
    """By cuts, order, writers that try twice, and order of the rows in a part; one number that differs changes it."""
    hashes, manifests = set(), set()
    for name, cuts in CUTS.items():
        write(tmp_path / name, cuts)
        hashes.add(Features.commit(tmp_path / name).sha256)
    for name, order in {"twice": [2, 0, 2, 1, 0], "turned": [1, 0, 2]}.items():
        write(tmp_path / name, CUTS["three"], order)
        hashes.add(Features.commit(tmp_path / name).sha256)
        manifests.add((tmp_path / name / MANIFEST).read_text())
    assert len(hashes) == 1 and len(manifests) == 1
    mixed = torch.randperm(N, generator=torch.Generator().manual_seed(1))
    Features.writer(tmp_path / "mixed", key="k").write("a", X[mixed], Y[mixed], row_ids=mixed)
    features = Features.commit(tmp_path / "mixed")
    assert features.sha256 in hashes and torch.equal(features.tensor(), X)
    other = X.clone()
    other[7, 1] += 1e-6
    write(tmp_path / "other", CUTS["one"], x=other)
    assert Features.commit(tmp_path / "other").sha256 not in hashes
    write(tmp_path / "ids", CUTS["one"], ids=range(1, N + 1))
    assert Features.commit(tmp_path / "ids").sha256 not in hashes


@pytest.mark.parametrize("kind", ["numbers", "texts"])
def test_ids_are_numbers_or_texts(where, kind):
    numbers = torch.randperm(1000, generator=torch.Generator().manual_seed(2))[:N]
    ids = numbers if kind == "numbers" else [f"bild-{k:04d}-ä" for k in numbers.tolist()]
    write(where, CUTS["three"], ids=ids)
    features = Features.commit(where, row_ids=ids)
    order = numbers.argsort()
    # parts whose ids overlap stay as they are, ordered by their first id; in a part rows are in the order of ids
    found = [str(each) if kind == "texts" else int(each) for each in features.row_ids]
    wanted = {int(n) if kind == "numbers" else ids[i]: X[i] for i, n in enumerate(numbers)}
    assert sorted(found) == sorted(wanted) and found != [ids[i] for i in order]
    assert all(torch.equal(features[i], wanted[each]) for i, each in enumerate(found))
    middle = features.between(3, 9)
    assert list(middle.row_ids) == list(features.row_ids[3:9]) and torch.equal(middle[:], features[3:9])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_types(where, dtype):
    write(where, CUTS["three"], x=X.to(dtype), y=None)
    features = Features.commit(where)
    assert features.dtype == dtype and features.targets is None
    assert torch.equal(features.tensor(), X.to(dtype))


def write_some(path, numbers):
    for k in numbers:
        Features.writer(path).write(f"p{k}", X[k : k + 1], Y[k : k + 1], row_ids=range(k, k + 1))


def test_many_processes_write_one_store(tmp_path):
    write_some(tmp_path / "one", range(N))
    with processes.pool(2) as pool:  # two of the rows are written by both
        jobs = [pool.submit(write_some, tmp_path / "two", span) for span in (range(13), range(11, N))]
        for job in jobs:
            job.result()
    one, two = (Features.commit(tmp_path / name, num_rows=N) for name in ("one", "two"))
    assert one.sha256 == two.sha256
    assert (one.path / MANIFEST).read_text() == (two.path / MANIFEST).read_text()


def test_finished_parts_are_known_and_damaged_ones_are_not(tmp_path):
    path = tmp_path / "f"
    write(path, CUTS["three"])
    writer = Features.writer(path, key="k")
    assert set(writer.finished()) == {"p0", "p1", "p2"}
    assert Features.writer(path, key="another").finished() == {}
    contents = bytearray((path / "p1.safetensors").read_bytes())
    contents[-1] ^= 1
    (path / "p1.safetensors").write_bytes(contents)
    (path / "p2.part.json").write_text("{")  # cut as it was written
    assert set(writer.finished()) == {"p0", "p1"} and set(writer.finished(verify=True)) == {"p0"}
    with pytest.raises(
        ValueError, match="expected 24 rows, got 16, without the rows 16 to 23; write the parts"
    ):
        Features.commit(path, num_rows=N)
    with pytest.raises(ValueError, match="a finished store, got 3 parts that wait"):
        Features.open(path)
    write(path, CUTS["three"], order=[1, 2])
    Features.commit(path, num_rows=N).verify()


# ---- what is wrong is named, and what is finished stays


def wrong_key(path):
    write(path, [0, 5])
    Features.writer(path, key="other").write("b", X[5:], Y[5:], row_ids=range(5, N))


def wrong_form(path):
    write(path, [0, 5])
    Features.writer(path, key="k").write("b", X[5:].half(), Y[5:], row_ids=range(5, N))


def double_rows(path):
    write(path, [0, 5, N])
    Features.writer(path, key="k").write("again", X[3:6], Y[3:6], row_ids=range(3, 6))


def cut_shard(path):
    write(path, [0, 5, N])
    (path / "p1.safetensors").write_bytes((path / "p1.safetensors").read_bytes()[:100])


def missing_shard(path):
    write(path, [0, 5, N])
    (path / "p0.safetensors").unlink()


WRONG = {
    "no parts": (lambda path: path.mkdir(), "parts to make a store of, got none"),
    "another key": (wrong_key, "parts of one key, k, got other in b.safetensors"),
    "another form": (wrong_form, "parts of one form.*float16.*in b.safetensors"),
    "double": (double_rows, "each row once, got the id 3 in p0.safetensors and again.safetensors"),
    "cut": (cut_shard, "bytes in p1.safetensors, got 100"),
    "missing": (missing_shard, "bytes in p0.safetensors, got None"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_commit_that_would_be_wrong_says_why(tmp_path, case):
    make, message = WRONG[case]
    path = tmp_path / "f"
    make(path)
    before = sorted(each.name for each in path.iterdir())
    with pytest.raises(ValueError, match=message):
        Features.commit(path)
    assert sorted(each.name for each in path.iterdir()) == before


def test_rows_that_are_missing_or_too_many_are_named_by_id(tmp_path):
    ids = [f"r{k:02d}" for k in range(N)]
    write(tmp_path / "f", [0, 5, N], ids=ids)
    with pytest.raises(ValueError, match=r"of 24 ids, got 1 missing \('z'\) and 1 others \('r03'\)"):
        Features.commit(tmp_path / "f", row_ids=[*ids[:3], *ids[4:], "z"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((X, Y[:-1], range(N)), "rows were lost between extraction and targets"),
        ((X, Y, range(N - 1)), "one text for each of 24 rows"),
        ((X, Y, [0, *range(N - 1)]), "each id once, got 0 twice"),
        ((X, Y, torch.rand(N)), "one whole number or one text"),
        ((X.long(), Y, range(N)), r"floats of shape \[n, D\]"),
        (
            (X.clone().index_fill_(0, torch.tensor([4, 9]), torch.nan), Y, range(100, 100 + N)),
            "2 rows.*104, 109;",
        ),
    ],
)
def test_rows_that_are_refused(tmp_path, arguments, message):
    features, targets, ids = arguments
    with pytest.raises(ValueError, match=message):
        Features.writer(tmp_path / "f").write("a", features, targets, row_ids=ids)
    assert not (tmp_path / "f").exists()


def test_a_name_that_is_no_file_name_is_refused(tmp_path):
    with pytest.raises(ValueError, match="part: expected a name"):
        Features.writer(tmp_path / "f").write("../a", X, row_ids=range(N))


def test_a_full_disk_leaves_the_finished_parts(tmp_path, monkeypatch):
    path = tmp_path / "f"
    write(path, CUTS["three"], order=[0, 1])

    def full(file: Path, *_) -> str:
        file.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(shard.tensorfile, "write_tensors", full)
        with pytest.raises(OSError, match="No space left"):
            write(path, CUTS["three"], order=[2])
    assert set(Features.writer(path, key="k").finished(verify=True)) == {"p0", "p1"}
    assert not [each for each in path.iterdir() if "p2" in each.name]
    write(path, CUTS["three"], order=[2])
    assert torch.equal(Features.commit(path, num_rows=N).tensor(), X)


def test_a_finished_store_takes_no_more_and_is_committed_once(tmp_path):
    write(tmp_path / "f", CUTS["three"])
    first = Features.commit(tmp_path / "f")
    with pytest.raises(ValueError, match="a store that is not finished"):
        write(tmp_path / "f", [0, 5])
    assert Features.commit(tmp_path / "f").sha256 == first.sha256
    names = {each.name for each in (tmp_path / "f").iterdir()}
    assert names == {MANIFEST, "p0.safetensors", "p1.safetensors", "p2.safetensors"}
    assert np.isin(
        ["rows_sha256", "row_ids"], list(json.loads((tmp_path / "f" / MANIFEST).read_text()))
    ).all()
