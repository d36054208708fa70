"""Saving and loading: damage is named. That what comes back is what went in is in test_contract.py, for everything."""

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import processes
import pytest
import torch
from torch import nn

import bll_pyro as bll
from bll_pyro import archive
from bll_pyro.files import LOCK, SCRATCH

GENERATOR = torch.Generator().manual_seed(0)
FEATURES = torch.randn(60, 4, generator=GENERATOR)
LABELS = (FEATURES[:, 0] > 0).long() + (FEATURES[:, 1] > 0.5).long()
VALUES = FEATURES @ torch.tensor([1.0, -2.0, 0.5, 0.0]) + 0.3 * torch.randn(60, generator=GENERATOR)
SHORT = bll.SVI(num_epochs=5)


@cache
def classes(seed: int = 0) -> bll.Fit:
    layer = bll.LastLayer(likelihood=bll.likelihoods.Categorical(3))
    return bll.fit(layer, (FEATURES, LABELS), inference=SHORT, seed=seed)


def test_no_pickle_and_no_training_rows(tmp_path: Path) -> None:
    classes().save(tmp_path)
    names = {path.suffix for path in tmp_path.iterdir()}
    assert names == {".json", ".safetensors"}
    large = bll.fit(
        bll.LastLayer(likelihood=bll.likelihoods.Categorical(3)),
        (FEATURES.repeat(50, 1), LABELS.repeat(50)),
        inference=bll.SVI(num_epochs=1),
    )
    large.save(tmp_path)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < FEATURES.numel() * 50 * 4


@pytest.mark.parametrize("damage", ["missing", "cut", "altered"])
@pytest.mark.parametrize("which", ["manifest.json", "posterior"])
def test_damage_is_named(tmp_path: Path, damage: str, which: str) -> None:
    classes().save(tmp_path)
    path = next(p for p in tmp_path.iterdir() if p.name.startswith(which))
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    else:
        middle = content.rindex(b"3") if which == "manifest.json" else len(content) - 3
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    with pytest.raises(ValueError, match=r"expected .* got .*; (save the fit again|restore)"):
        bll.load(tmp_path)


PLACES = [
    (archive.tensorfile, "write_tensors"),
    (archive.tensorfile, "sha256"),
    (archive.json, "dumps"),
    (archive.os, "fsync"),
    (archive.os, "replace"),
]


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()], ids=["disk", "interrupt"])
@pytest.mark.parametrize("call", range(3))
@pytest.mark.parametrize("place", range(len(PLACES)))
def test_a_save_that_fails_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: int, call: int, error: BaseException
) -> None:
    """With an earlier fit and without, at each call of each function that writes; afterwards the folder is saved to."""
    first, other, backbone = classes(), classes(seed=7), nn.Linear(4, 4)
    first, other = replace(first, backbone=backbone), replace(other, backbone=backbone)
    room, name = PLACES[place]
    for target in (tmp_path / "old", tmp_path / "new" / "deep"):
        if target.name == "old":
            first.save(target)
        before = {path: path.read_bytes() for path in target.glob("*")}
        with monkeypatch.context() as patch:
            works, calls = getattr(room, name), []

            def fail(
                *arguments: object, works: Any = works, calls: list[int] = calls, **more: object
            ) -> object:
                calls.append(1)
                if len(calls) > call:
                    raise error
                return works(*arguments, **more)

            patch.setattr(room, name, fail)
            try:
                other.save(target)
            except type(error):
                assert {path: path.read_bytes() for path in target.glob("*")} == before
                assert bool(before) or not target.parent.exists()
        other.save(target)
        assert bll.load(target, backbone=backbone).seed == 7
        assert len(list(target.iterdir())) == 3


def with_little_room(folder: Path) -> list[str]:
    """What is said by two saves and an extraction where no file may be larger than 200 kB."""
    import resource

    fit = bll.load(folder / "large", backbone=nn.Linear(300, 300))
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
    said = []
    for call in (
        lambda: fit.save(folder / "old"),
        lambda: fit.save(folder / "new"),
        lambda: bll.extract(nn.Linear(3, 3000), torch.zeros(30, 3), store=folder / "store"),
    ):
        try:
            call()
        except OSError as error:
            said.append(str(error))
    return said


def test_no_room_on_the_disk(tmp_path: Path) -> None:
    """The limit of a file's size stands for a full disk: the error comes from the operating system, inside safetensors."""
    fit = classes()
    fit.save(tmp_path / "old")
    before = {path.name: path.read_bytes() for path in (tmp_path / "old").iterdir()}
    replace(fit, backbone=nn.Linear(300, 300)).save(tmp_path / "large")
    said = processes.in_a_process(with_little_room, tmp_path)
    assert ["; make room, or save elsewhere" in message for message in said] == [True] * 3, said
    assert {path.name: path.read_bytes() for path in (tmp_path / "old").iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["large", "old"]


@pytest.mark.parametrize("looked", [1, 2])
def test_a_first_save_that_ends_while_another_begins(
    looked: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its last file, the manifest, moves while the other looks at the folder: before its first look, or its second."""
    target = tmp_path / "fit"
    classes().save(target)
    scratch = target / f"{SCRATCH}1"
    scratch.mkdir()
    (target / archive.MANIFEST).rename(scratch / archive.MANIFEST)
    calls, read = [], archive._named_files

    def reading(manifest: Path) -> set[str]:
        calls.append(manifest)
        if len(calls) == looked and scratch.exists():
            (scratch / archive.MANIFEST).rename(target / archive.MANIFEST)
            scratch.rmdir()
        return read(manifest)

    monkeypatch.setattr(archive, "_named_files", reading)
    classes(1).save(target)
    assert torch.equal(bll.load(target).predict(FEATURES).probs, classes(1).predict(FEATURES).probs)


def test_what_a_killed_writer_left_is_deleted_by_the_next(tmp_path: Path) -> None:
    """Killed between the moves of its files: the scratch folder with the manifest says which files are its own."""
    for place in ("first", "second"):
        target = tmp_path / place
        if place == "second":
            classes().save(target)
        left = target / f"{SCRATCH}1"
        left.mkdir(parents=True)
        files = {"posterior": {"file": "posterior-0123456789abcdef.safetensors"}}
        (left / "manifest.json").write_text(json.dumps({"format": archive.FORMAT, "files": files}))
        (left / "backbone").write_text("cut")
        (target / LOCK).touch()
        (target / "posterior-0123456789abcdef.safetensors").write_text("x")
        classes(seed=7).save(target)
        assert bll.load(target).seed == 7
        assert len(list(target.iterdir())) == 2


def test_other_folders_are_not_touched(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="choose another path"):
        classes().save(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_backbone_of_ones_own_has_to_be_given(tmp_path: Path) -> None:
    backbone = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU())
    fit = bll.fit(
        bll.LastLayer(likelihood=bll.likelihoods.Categorical(3)),
        (FEATURES, LABELS),
        backbone,
        inference=SHORT,
    )
    fit.save(tmp_path)
    with pytest.raises(ValueError, match="whose code is not stored"):
        bll.load(tmp_path)
    fresh = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU())
    again = bll.load(tmp_path, backbone=fresh)
    assert torch.equal(again.predict(FEATURES).probs, fit.predict(FEATURES).probs)
    with pytest.raises(ValueError, match="saved architecture"):
        bll.load(tmp_path, backbone=nn.Linear(4, 6))
    assert bll.load(tmp_path, head_only=True).backbone is None


def test_a_newer_format_says_so(tmp_path: Path) -> None:
    classes().save(tmp_path)
    body = json.loads((tmp_path / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps(body | {"version": 99}))
    with pytest.raises(ValueError, match="update bll_pyro"):
        bll.load(tmp_path)
