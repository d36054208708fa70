"""Stores of features: what is written is what is read, from disk without loading it, whole or not at all."""

import json
import os
from pathlib import Path

import numpy as np
import processes
import pytest
import torch

from bll_pyro.features.store import Features
from bll_pyro.features.writer import MemoryWriter, ShardWriter
from bll_pyro.shards.manifest import MANIFEST, manifest_hash

N, D = 20, 3
X = torch.randn(N, D, generator=torch.Generator().manual_seed(0))
Y = torch.arange(N)
ROW = D * 4 + 8

needs_proc = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="no /proc to read peak memory from"
)


def write(path, features=X, targets=Y, shard_rows=N, batch=6, key="k"):
    with ShardWriter(path, len(features), key=key, shard_bytes=ROW * shard_rows) as writer:
        for start in range(0, len(features), batch):
            rows = slice(start, start + batch)
            writer.append(features[rows], None if targets is None else targets[rows])
        return writer.close()


@pytest.fixture(params=["memory", "one shard", "three shards", "a shard for each row"])
def features(request, tmp_path):
    if request.param == "memory":
        return Features.from_tensors(X, Y)
    rows = {"one shard": N, "three shards": 7, "a shard for each row": 1}[request.param]
    return write(tmp_path / "f", shard_rows=rows)


def test_what_is_written_is_what_is_read(features):
    assert (features.num_rows, features.num_features, features.dtype) == (N, D, torch.float32)
    assert len(features) == N
    assert torch.equal(features.tensor(), X)
    assert torch.equal(features.targets, Y)
    batches = list(features.batches(8))
    assert [len(x) for x, _ in batches] == [8, 8, 4]
    assert torch.equal(torch.cat([x for x, _ in batches]), X)
    assert torch.equal(torch.cat([y for _, y in batches]), Y)
    features.verify()


INDICES = [
    0,
    -1,
    np.int64(13),
    slice(None),
    slice(5, 16),
    slice(16, 5),
    slice(3, 4),
    slice(-4, None),
    slice(0, 100),
    slice(1, 18, 5),
    slice(None, None, -1),
    [3, 3, 19, 0, -20],
    [],
    np.array([7, 6]),
    torch.tensor([14, 0, 6, 7]),
    torch.arange(N) % 3 == 0,
    range(4, 9),
]


@pytest.mark.parametrize("index", INDICES, ids=str)
def test_indexing_is_that_of_an_array(features, index):
    expected = X.numpy()[list(index) if isinstance(index, range | list) and len(index) else index]
    if isinstance(index, list) and not index:
        expected = X.numpy()[:0]
    assert np.array_equal(features[index].numpy(), expected)


@pytest.mark.parametrize(
    "index", [N, -N - 1, [0, N], torch.zeros(3, dtype=torch.bool), [0.5], [[0, 1]]], ids=str
)
@pytest.mark.unchecked
def test_wrong_indices(features, index):
    with pytest.raises(IndexError, match="expected"):
        features[index]


def test_shards_and_keys(tmp_path):
    features = write(tmp_path / "f", shard_rows=7)
    assert features.num_shards == 3
    assert (features.key, features.path) == ("k", tmp_path / "f")
    assert sorted(os.listdir(tmp_path / "f"))[1:] == [f"shard-0000{i}.safetensors" for i in range(3)]
    assert os.listdir(tmp_path) == ["f"]
    manifest = json.loads((tmp_path / "f" / MANIFEST).read_text())
    assert [shard["num_rows"] for shard in manifest["shards"]] == [7, 7, 6]
    assert "Features([20, 3], torch.float32, with targets, at " in repr(features)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("targets", [None, Y, torch.rand(N, 2), torch.arange(N) > 3])
def test_types_of_features_and_targets(tmp_path, dtype, targets):
    features = write(tmp_path / "f", X.to(dtype), targets, shard_rows=5)
    assert torch.equal(features.tensor(), X.to(dtype))
    assert (targets is None and features.targets is None) or torch.equal(features.targets, targets)


def test_one_shard_is_mapped_and_not_copied(tmp_path):
    features = write(tmp_path / "f")
    assert features.tensor().data_ptr() == features[0:1].data_ptr() == features.tensor().data_ptr()
    assert features[4:9].data_ptr() == features.tensor()[4:].data_ptr()
    features.tensor()[0, 0] = 17  # a private mapping: the file does not change
    assert torch.equal(Features.open(tmp_path / "f").tensor(), X)


def peak():
    """Peak memory of this process, MiB."""
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024


ROWS, WIDTH = 100_000, 256  # 102 MB


def read_some_then_all(path):
    import safetensors  # noqa: F401

    before = peak()
    features = Features.open(path)
    features[99_000:99_100].sum(), features[torch.tensor([5, 60_000])].sum()
    sliced = peak() - before
    sum(float(x.sum()) for x, _ in features.batches(1000))
    return features.num_shards, sliced, peak() - before


@needs_proc
@pytest.mark.slow
def test_opening_and_slicing_reads_only_what_is_used(tmp_path):
    with ShardWriter(tmp_path / "f", ROWS, shard_bytes=WIDTH * 4 * ROWS // 4) as writer:
        for _ in range(20):
            writer.append(torch.zeros(ROWS // 20, WIDTH), None)
        writer.close()
    num_shards, sliced, whole = processes.in_a_process(read_some_then_all, tmp_path / "f")
    assert num_shards == 4
    assert sliced < 20
    assert whole > 80  # the measure does see memory


def write_in_shards(path):
    import safetensors.torch  # noqa: F401

    batch = torch.ones(1000, WIDTH)
    before = peak()
    with ShardWriter(path, ROWS, shard_bytes=WIDTH * 4 * ROWS // 10) as writer:
        for _ in range(ROWS // 1000):
            writer.append(batch, None)
        writer.close()
    return peak() - before


@needs_proc
@pytest.mark.slow
def test_writing_holds_one_shard_in_memory(tmp_path):
    # 102 MB in shards of 10 MB; an allocator beside other work keeps more than alone
    assert processes.in_a_process(write_in_shards, tmp_path / "f") < 90


# ---- interrupted and wrong writes


def test_an_interrupt_leaves_nothing(tmp_path):
    def interrupted():
        with ShardWriter(tmp_path / "f", N, shard_bytes=ROW * 5) as writer:
            writer.append(X[:12], Y[:12])
            assert len(list(tmp_path.glob(".f.partial-*/shard-*.safetensors"))) == 2  # it was well under way
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert os.listdir(tmp_path) == []


def write_and_die(path):
    with ShardWriter(path, 20, shard_bytes=60) as writer:
        writer.append(torch.zeros(10, 3), None)
        os.kill(os.getpid(), 9)


def test_a_killed_process_leaves_no_store_and_the_earlier_one_whole(tmp_path):
    write(tmp_path / "earlier")
    assert processes.exit_code(write_and_die, tmp_path / "new") == -9
    assert not (tmp_path / "new").exists()
    assert list(tmp_path.glob(".new.partial-*"))  # it had begun
    Features.open(tmp_path / "earlier").verify()
    assert torch.equal(write(tmp_path / "new").tensor(), X)  # what is left over is not in the way


def write_batches(path, num_rows, batches, shard_rows=N):
    with ShardWriter(path, num_rows, shard_bytes=ROW * shard_rows) as writer:
        for batch in batches:
            writer.append(*batch)
        writer.close()


def keep_batches(num_rows, batches):
    memory = MemoryWriter(num_rows)
    for batch in batches:
        memory.append(*batch)
    memory.close()


@pytest.mark.parametrize("num_rows", [N - 1, N + 1])
def test_another_number_of_rows_than_promised(tmp_path, num_rows):
    with pytest.raises(ValueError, match=rf"expected {num_rows} rows, got"):
        write_batches(tmp_path / "f", num_rows, [(X, Y)])
    with pytest.raises(ValueError, match=rf"expected {num_rows} rows, got"):
        keep_batches(num_rows, [(X, Y)])
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "second", [(X[:5, :2], Y[:5]), (X[:5].double(), Y[:5]), (X[:5], None), (X[:5], Y[:5].int())]
)
def test_batches_of_another_form(tmp_path, second):
    batches = [(X[:10], Y[:10]), second, (X[15:], Y[15:])]
    with pytest.raises(ValueError, match=r"in the first batch|with every batch or with none"):
        keep_batches(N, batches)
    with pytest.raises(ValueError, match=r"in the first batch|with every batch or with none"):
        write_batches(tmp_path / "f", N, batches)
    with pytest.raises(ValueError, match="expected rows of one form"):  # where a new shard begins
        write_batches(tmp_path / "f", N, batches, shard_rows=10)
    assert os.listdir(tmp_path) == []


def test_an_existing_folder_is_not_overwritten(tmp_path):
    write(tmp_path / "f")
    with pytest.raises(ValueError, match="expected a new folder"):
        write(tmp_path / "f", X + 1)
    assert torch.equal(Features.open(tmp_path / "f").tensor(), X)


def test_the_slower_of_two_writers_takes_the_store_of_the_faster_one(tmp_path):
    def race(path, key):
        with ShardWriter(path, N, key=key) as slow:
            slow.append(X, Y)
            write(path, key="k")
            return slow.close()

    assert torch.equal(race(tmp_path / "f", "k").tensor(), X)
    with pytest.raises(OSError, match=r"not empty|exists"):
        race(tmp_path / "g", "other")
    assert sorted(os.listdir(tmp_path)) == ["f", "g"]


# ---- damaged stores


def change_manifest(path, **changes):
    manifest = json.loads((path / MANIFEST).read_text()) | changes
    manifest["sha256"] = manifest_hash(manifest)
    (path / MANIFEST).write_text(json.dumps(manifest))


def shards_of(path):
    return json.loads((path / MANIFEST).read_text())["shards"]


def cut(path: Path, num_bytes: int):
    path.write_bytes(path.read_bytes()[:num_bytes])


def flip(path: Path, place: int):
    contents = bytearray(path.read_bytes())
    contents[place] ^= 1
    path.write_bytes(contents)


SHARD = "shard-00001.safetensors"
DAMAGES = {
    "folder missing": (lambda p: p.rename(p.with_name("gone")), "no such folder"),
    "manifest missing": (lambda p: (p / MANIFEST).unlink(), "got none"),
    "manifest empty": (lambda p: cut(p / MANIFEST, 0), "cannot be read"),
    "manifest cut": (lambda p: cut(p / MANIFEST, 200), "cannot be read"),
    "manifest binary": (lambda p: (p / MANIFEST).write_bytes(b"\xff\xfe\x00"), "cannot be read"),
    "manifest altered": (
        lambda p: (p / MANIFEST).write_text(
            (p / MANIFEST).read_text().replace('"num_rows": 20', '"num_rows": 21')
        ),
        "altered",
    ),
    "another file": (lambda p: (p / MANIFEST).write_text("[]"), "another kind of file"),
    "newer version": (lambda p: change_manifest(p, version=99), "version 1 or 2, got 99; use the version"),
    "shard named twice": (lambda p: change_manifest(p, shards=2 * shards_of(p)), "each shard once"),
    "shard left out": (lambda p: change_manifest(p, shards=shards_of(p)[1:]), "20 rows in all shards"),
    "shard missing": (lambda p: (p / SHARD).unlink(), f"a shard {SHARD}, got no such file"),
    "shard cut": (lambda p: cut(p / SHARD, 100), f"bytes in shard {SHARD}, got 100"),
    "shard header altered": (lambda p: flip(p / SHARD, 3), "readable shard|shape and dtype"),
    "shard of other shape": (lambda p: change_manifest(p, num_features=4), "of shape and dtype"),
    "shard of other dtype": (lambda p: change_manifest(p, dtype="torch.float64"), "of shape and dtype"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_seen_on_opening(tmp_path, damage):
    write(tmp_path / "f", shard_rows=7)
    spoil, message = DAMAGES[damage]
    spoil(tmp_path / "f")
    with pytest.raises(ValueError, match=message):
        Features.open(tmp_path / "f")


def test_a_store_of_version_one_is_read_for_ever():
    """It was written by version 0.1.0: 20 rows in shards of 8, with targets."""
    for read in ("mmap", "ahead"):
        features = Features.open(Path(__file__).parent.parent / "format1" / "features", read=read)
        assert torch.equal(features.tensor(), torch.arange(60.0).reshape(20, 3))
        assert torch.equal(features.targets, torch.arange(20) % 4)
        assert (features.key, features.num_shards, features.sha256) == ("k", 3, None)
        assert features.row_ids == range(20) and features.feature_names == ("a", "b", "c")
        assert torch.equal(features.between(7, 18)[[0, 1, 10]], features[[7, 8, 17]])
        features.verify()


def test_altered_contents_are_seen_by_verify(tmp_path):
    features = write(tmp_path / "f", shard_rows=7)
    features.verify()
    flip(tmp_path / "f" / SHARD, -1)
    with pytest.raises(ValueError, match=f"a shard {SHARD} with sha256.*extract the features again"):
        Features.open(tmp_path / "f").verify()


@pytest.mark.parametrize(
    "features", [torch.zeros(3), torch.zeros(3, 2, dtype=torch.int64), torch.zeros(0, 2)]
)
def test_tensors_that_are_no_features(features):
    with pytest.raises(ValueError, match=r"floats of shape \[N, D\]"):
        Features.from_tensors(features)


@pytest.mark.parametrize("targets", [torch.zeros(N - 1), torch.tensor(3)])
def test_targets_that_do_not_fit(targets):
    with pytest.raises(ValueError, match="one entry for each of 20 rows"):
        Features.from_tensors(X, targets)


def test_rows_between_two_numbers():
    x, y = torch.arange(20.0).reshape(10, 2), torch.arange(10)
    store = Features([(x[:3], y[:3]), (x[3:4], y[3:4]), (x[4:], y[4:])])
    for start, stop in ((0, 10), (2, 5), (3, 4), (9, 10)):
        for features in (store.between(start, stop), store.with_targets(y).between(start, stop)):
            assert torch.equal(features.tensor(), x[start:stop])
            assert torch.equal(features.targets, y[start:stop])
    assert store.with_targets(None).between(1, 3).targets is None
    for start, stop in ((-1, 2), (3, 3), (0, 11)):
        with pytest.raises(ValueError, match="between"):
            store.between(start, stop)
