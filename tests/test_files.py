"""Paths as the user means them, one writer at a time over threads and processes, and readers beside them."""

import threading
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path

import processes
import pytest
import torch
from saving_cases import FEATURES, VALUES, Slow, extract_all, load_often, save_often, small_fit
from torch import nn

import bll_pyro as bll
from bll_pyro import tensorfile
from bll_pyro.files import LOCK, SCRATCH, only_writer, scratch_folder, user_path


def workers(kind: str, number: int) -> Executor:
    return ThreadPoolExecutor(number) if kind == "threads" else processes.pool(number)


KINDS = ["threads", pytest.param("processes", marks=pytest.mark.slow)]


@pytest.mark.parametrize("kind", KINDS)
def test_savers_and_readers_of_one_folder(tmp_path: Path, kind: str) -> None:
    """Six savers and two readers as threads, three savers and a reader as processes."""
    target = tmp_path / "model"
    savers, readers, times = (6, 2, 8) if kind == "threads" else (3, 1, 20)
    small_fit(9).save(target)
    with workers(kind, savers + readers) as pool:
        saves = [pool.submit(save_often, target, seed, times) for seed in range(savers)]
        loads = [pool.submit(load_often, target, 2 * times) for _ in range(readers)]
        assert [one.result() for one in saves + loads] == [times] * savers + [2 * times] * readers
    load_often(target, 1)
    assert len(list(target.iterdir())) == 3  # manifest, posterior, backbone


@pytest.mark.parametrize("kind", KINDS)
def test_many_extract_to_one_store(tmp_path: Path, kind: str) -> None:
    """The backbone runs once; all get its features, and a reader beside them finds all or nothing."""
    store, log, number = tmp_path / "store", tmp_path / "log", 8 if kind == "threads" else 4
    with workers(kind, number) as pool:
        found = [pool.submit(extract_all, store, log) for _ in range(number)]
        while not all(one.done() for one in found):
            for path in store.glob("[!.]*"):
                bll.Features.open(path).verify()
    expected = (FEATURES.sum(1, keepdim=True) * 0.5 + 1.0).expand(-1, 2)
    for one in found:
        torch.testing.assert_close(torch.tensor(one.result()), expected)
    assert log.read_text() == "pass\n"
    assert [path.name for path in store.iterdir()] == [
        bll.extract(Slow(log), FEATURES, store=store).path.name
    ]


def test_what_a_killed_extraction_left_goes_with_the_next(tmp_path: Path) -> None:
    key = bll.extract(nn.Linear(3, 2), FEATURES, store=tmp_path / "other")  # another network: another key
    backbone = Slow(tmp_path / "log")
    name = bll.extract(backbone, FEATURES, store=tmp_path / "first").path.name
    store = tmp_path / "store"
    left, others = store / f".{name}{SCRATCH}1", store / f".{key.path.name}{SCRATCH}1"
    for folder in (left, others):
        folder.mkdir(parents=True)
        (folder / "shard-00000.safetensors").write_text("cut")
    bll.extract(backbone, FEATURES, store=store)
    assert {path.name for path in store.iterdir()} == {name, others.name}


def test_a_writer_waits_for_another_and_leaves_no_lock(tmp_path: Path) -> None:
    order, inside = [], threading.Event()

    def second() -> None:
        inside.wait()
        with only_writer(tmp_path):
            order.append("second")

    thread = threading.Thread(target=second)
    thread.start()
    with only_writer(tmp_path):
        inside.set()
        thread.join(0.1)
        order.append("first")
        assert (tmp_path / LOCK).exists()
    thread.join()
    assert order == ["first", "second"]
    assert not list(tmp_path.iterdir())


def test_folders_made_for_a_block_that_failed_go_unless_something_is_in_them(tmp_path: Path) -> None:
    for file in (None, tmp_path / "a" / "mine"):

        def fail(file: Path | None = file) -> None:
            with only_writer(tmp_path / "a" / "b" / "c"):
                if file is not None:
                    file.touch()
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            fail()
        assert not (tmp_path / "a" / "b").exists()
        assert (tmp_path / "a").exists() == (file is not None)
    with only_writer(tmp_path / "d" / "e"):
        pass
    assert (tmp_path / "d" / "e").is_dir()


def test_many_writers_that_fail_in_a_folder_they_made(tmp_path: Path) -> None:
    """A folder may go while another waits for the lock in it."""

    def fail(_: int) -> None:
        with only_writer(tmp_path / "a" / "b"):
            assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == [LOCK]
            raise ZeroDivisionError

    with ThreadPoolExecutor(8) as pool:
        for failed in [pool.submit(fail, i) for i in range(200)]:
            assert type(failed.exception()) is ZeroDivisionError
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_scratch_folders_go_with_what_is_in_them(tmp_path: Path) -> None:
    def fail() -> None:
        with scratch_folder(tmp_path) as folder, scratch_folder(tmp_path) as other:
            (folder / "x").touch()
            assert folder != other and other.is_dir()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_neither_store_nor_detector(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit = small_fit(0).head
    detector = bll.ood.Detector(bll.ood.Mahalanobis()).calibrate(
        fit, FEATURES + 0.1, train=(FEATURES, VALUES)
    )

    def cut(path: Path, *_: object) -> None:
        path.write_text("cut")
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(tensorfile, "write_tensors", cut)
        with pytest.raises(OSError, match="disk full"):
            bll.extract(nn.Linear(3, 2), FEATURES, store=tmp_path / "a" / "store")
        with pytest.raises(OSError, match="disk full"):
            detector.save(tmp_path / "b" / "detector")
    assert not list(tmp_path.iterdir())
    detector.save(tmp_path / "b" / "detector")
    before = (tmp_path / "b" / "detector").read_bytes()
    monkeypatch.setattr(tensorfile, "write_tensors", cut)
    with pytest.raises(OSError, match="disk full"):
        detector.save(tmp_path / "b" / "detector")
    assert [path.read_bytes() for path in (tmp_path / "b").iterdir()] == [before]


def test_a_file_where_a_folder_should_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "x").touch()
    for path in (tmp_path / "x", tmp_path / "x" / "y" / "z"):
        for write in (small_fit(0).save, lambda path: bll.extract(nn.Linear(3, 2), FEATURES, store=path)):
            with pytest.raises(ValueError, match=r"expected a folder, got the file .*x; choose another path"):
                write(path)
    with pytest.raises(ValueError, match=r"expected a folder, got the file .*x; choose another path"):
        bll.fit(bll.LastLayer(bll.likelihoods.Gaussian()), (FEATURES, FEATURES[:, 0]), store=tmp_path / "x")


def test_paths_are_of_the_moment_of_the_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``~`` is the home folder, and what is relative does not move with the present folder."""
    for name in ("home", "first", "second"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "first")
    assert user_path("~/m") == tmp_path / "home" / "m"
    small_fit(1).save("~/m")
    assert bll.load("~/m", head_only=True).seed == 1 and (tmp_path / "home" / "m").is_dir()
    backbone, log = Slow(tmp_path / "log"), tmp_path / "log"
    layer = bll.LastLayer(bll.likelihoods.Gaussian(), bll.priors.Normal(1.0))
    fit = bll.fit(layer, (FEATURES, FEATURES[:, 0]), backbone, bll.Exact(), store="store")
    stored = bll.extract(backbone, FEATURES, store="store")
    monkeypatch.chdir(tmp_path / "second")
    fit.predict(FEATURES)
    stored.verify()
    assert not list((tmp_path / "second").iterdir())
    assert log.read_text() == "pass\n"
    monkeypatch.chdir(tmp_path / "first" / "store")
    relative = bll.Features.open(stored.path.name)
    monkeypatch.chdir(tmp_path)
    relative.verify()
    detector = bll.ood.Detector(bll.ood.Mahalanobis()).calibrate(
        small_fit(1).head, FEATURES + 0.1, train=(FEATURES, VALUES)
    )
    detector.save("~/detector")
    assert type(detector).load("~/detector").fingerprint == detector.fingerprint
    assert sorted(path.name for path in (tmp_path / "home").iterdir()) == ["detector", "m"]
    with pytest.raises(ValueError, match="add a file name"):
        detector.save("~/m")
    with pytest.raises(ValueError, match=r"home folder of a user .* write the path in full"):
        bll.load("~nobody-of-this-name/m")
