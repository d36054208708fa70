"""Extraction that goes on where it was stopped, to the same store; on several devices, with workers, in the order of the rows."""

import errno
import os
import re

import processes
import pytest
import torch
from last_bits import hang_on_memory
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from bll_pyro.features import writer
from bll_pyro.features.extraction import extract
from bll_pyro.features.store import Features
from bll_pyro.shards import shard
from bll_pyro.shards.manifest import MANIFEST

N = 43
X = torch.randn(N, 6, generator=torch.Generator().manual_seed(0))
Y = torch.arange(N)


class Net(nn.Module):
    """A network that counts rows, and stops in the middle where it is told to."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.body = nn.Linear(6, 4)
        seen = self.seen = nn.Identity()
        seen.rows, seen.stop = _Count(), _Stop()

    def forward(self, x):
        self.seen.rows.value += len(x)
        if self.seen.rows.value > self.seen.stop.after:
            self.seen.stop.act()
        return self.body(x)


class _Count:
    value = 0


class _Stop:
    after = 10**9

    def act(self):
        raise KeyboardInterrupt


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(writer, "SHARD_BYTES", 10 * (4 * 4 + 8))  # ten rows


class Loads(Dataset):
    """Items by number, in processes."""

    def __len__(self):
        return N

    def __getitem__(self, i):
        return X[i], Y[i]


FORMS = {
    "tensors": lambda: (X, Y),
    "dataset": Loads,
    "loader": lambda: DataLoader(TensorDataset(X, Y), batch_size=7),
}


def without_hashes(path):
    return re.sub('"[0-9a-f]{64}"', "", path.read_text())


@pytest.mark.parametrize("form", FORMS)
def test_a_call_goes_on_after_the_finished_shards_of_one_that_was_stopped(tmp_path, form):
    whole = extract(Net(), FORMS[form](), store=tmp_path / "whole", batch_size=7)
    assert whole.num_shards == 5 and torch.equal(whole.targets, Y)
    stopped = Net()
    stopped.seen.stop.after = 30
    with pytest.raises(KeyboardInterrupt):
        extract(stopped, FORMS[form](), store=tmp_path / "a", batch_size=7)
    (left,) = os.listdir(tmp_path / "a")
    assert left == f".{whole.key}.unfinished"
    again = Net()
    features = extract(again, FORMS[form](), store=tmp_path / "a", batch_size=7)
    assert 0 < again.seen.rows.value < N  # it did not begin anew
    torch.testing.assert_close(features[:], whole[:], rtol=1e-6, atol=1e-6)
    assert without_hashes(features.path / MANIFEST) == without_hashes(whole.path / MANIFEST)
    if not hang_on_memory(Net().body, X[:7]):
        assert features.sha256 == whole.sha256
        assert (features.path / MANIFEST).read_text() == (whole.path / MANIFEST).read_text()
    assert os.listdir(tmp_path / "a") == [whole.key]
    features.verify()


def test_a_shard_that_was_damaged_meanwhile_is_computed_again(tmp_path):
    stopped = Net()
    stopped.seen.stop.after = 35
    with pytest.raises(KeyboardInterrupt):
        extract(stopped, (X, Y), store=tmp_path, batch_size=5)
    (left,) = tmp_path.iterdir()
    spoiled = left / "shard-00001.safetensors"
    contents = bytearray(spoiled.read_bytes())
    contents[-1] ^= 1
    spoiled.write_bytes(contents)
    again = Net()
    features = extract(again, (X, Y), store=tmp_path, batch_size=5)
    assert again.seen.rows.value == N - 10
    assert features.sha256 == extract(Net(), (X, Y), store=tmp_path / "b", batch_size=5).sha256
    features.verify()


def extract_and_die(path):
    class Killed(_Stop):
        after = 30

        def act(self):
            os.kill(os.getpid(), 9)

    writer.SHARD_BYTES = 10 * (4 * 4 + 8)
    net = Net()
    net.seen.stop = Killed()
    extract(net, (X, Y), store=path, batch_size=7)


def test_a_killed_process_loses_no_finished_shard(tmp_path):
    assert processes.exit_code(extract_and_die, tmp_path / "a") == -9
    again = Net()
    features = extract(again, (X, Y), store=tmp_path / "a", batch_size=7)
    assert again.seen.rows.value < N
    assert features.sha256 == extract(Net(), (X, Y), store=tmp_path / "b", batch_size=7).sha256


def test_a_full_disk_leaves_what_is_finished(tmp_path, monkeypatch):
    real, calls = shard.tensorfile.write_tensors, []

    def full(path, tensors):
        calls.append(path)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(path, tensors)

    monkeypatch.setattr(shard.tensorfile, "write_tensors", full)
    with pytest.raises(OSError, match="No space left"):
        extract(Net(), (X, Y), store=tmp_path, batch_size=7)
    again = Net()
    features = extract(again, (X, Y), store=tmp_path, batch_size=7)
    assert again.seen.rows.value < N and len(Features.open(features.path)) == N


def test_rows_in_a_random_order_begin_anew(tmp_path):
    stopped = Net()
    stopped.seen.stop.after = 35
    loader = DataLoader(TensorDataset(X, Y), batch_size=7, shuffle=True)
    with pytest.raises(KeyboardInterrupt):
        extract(stopped, loader, store=tmp_path)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("devices", [["cpu"], ["cpu", "cpu"], ["cpu", torch.device("cpu"), "cpu"]])
def test_several_devices_give_the_rows_in_order(tmp_path, devices):
    net, one = Net(), extract(Net(), (X, Y), batch_size=4)
    before = [parameter.clone() for parameter in net.parameters()]
    features = extract(net, (X, Y), store=tmp_path, batch_size=4, devices=devices)
    assert torch.equal(features.tensor(), one.tensor()) and torch.equal(features.targets, Y)
    assert net.training and all(map(torch.equal, before, net.parameters()))


def test_devices_that_are_wrong():
    with pytest.raises(ValueError, match="device or devices, got both"):
        extract(Net(), X, device="cpu", devices=["cpu"])
    with pytest.raises(ValueError, match="at least one of devices, got none"):
        extract(Net(), X, devices=[])


def test_an_error_on_one_of_several_devices_is_that_of_the_call(tmp_path):
    class Bad(Net):
        def forward(self, x):
            out = super().forward(x)
            return torch.where((x == X[13]).all(1, keepdim=True), torch.nan, out)

    with pytest.raises(ValueError, match="the first in row 13;"):
        extract(Bad(), (X, Y), store=tmp_path, batch_size=4, devices=["cpu", "cpu"])
    assert os.listdir(tmp_path) == []


@pytest.mark.slow
def test_workers_change_nothing():
    one = extract(Net(), Loads(), batch_size=5)
    assert torch.equal(extract(Net(), Loads(), batch_size=5, num_workers=2).tensor(), one.tensor())
