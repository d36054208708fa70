"""Saving and loading: damage is named. That what comes back is what went in is in test_contract.py, for everything."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

import bll_pyro as bll
from bll_pyro import archive

GENERATOR = torch.Generator().manual_seed(0)
FEATURES = torch.randn(60, 4, generator=GENERATOR)
LABELS = (FEATURES[:, 0] > 0).long() + (FEATURES[:, 1] > 0.5).long()
VALUES = FEATURES @ torch.tensor([1.0, -2.0, 0.5, 0.0]) + 0.3 * torch.randn(60, generator=GENERATOR)
SHORT = bll.SVI(num_epochs=5)


def classes() -> bll.Fit:
    return bll.fit(
        bll.LastLayer(likelihood=bll.likelihoods.Categorical(3)), (FEATURES, LABELS), inference=SHORT
    )


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


def test_interrupted_save_leaves_the_earlier_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = classes()
    first.save(tmp_path)
    other = bll.fit(
        bll.LastLayer(likelihood=bll.likelihoods.Categorical(3)), (FEATURES, LABELS), inference=SHORT, seed=7
    )
    for room, name in ((archive.tensorfile, "write_tensors"), (archive, "_write_and_sync")):
        with monkeypatch.context() as patch:

            def fail(*_: object) -> None:
                raise OSError("disk full")

            patch.setattr(room, name, fail)
            with pytest.raises(OSError, match="disk full"):
                other.save(tmp_path)
        again = bll.load(tmp_path)
        assert again.seed == 0 and torch.equal(again.predict(FEATURES).probs, first.predict(FEATURES).probs)
    other.save(tmp_path)
    assert bll.load(tmp_path).seed == 7
    assert len([p for p in tmp_path.iterdir() if not p.name.startswith(".")]) == 2


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
