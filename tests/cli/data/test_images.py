"""Folders of images: classes, parts, what cannot be read, and what a backbone gets."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bll_pyro.cli.data import ImageFolder
from bll_pyro.cli.usage import UsageError


def save(path: Path, seed: int = 0, shape: tuple[int, ...] = (6, 8, 3), **options: object) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    Image.fromarray(pixels).save(path, **options)
    return pixels


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, name in enumerate(("dog/a.png", "dog/deep/b.png", "cat/a.png")):
        save(tmp_path / name, number)
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    (tmp_path / ".hidden").mkdir()
    return tmp_path


def test_the_class_is_the_folder(folder: Path) -> None:
    opened = ImageFolder(str(folder)).open()
    assert opened.row_ids == ["cat/a.png", "dog/a.png", "dog/deep/b.png"]
    assert opened.classes == ("cat", "dog") and opened.targets.tolist() == [0, 1, 1]
    images, targets = opened.take(np.array([2]))
    image = images[0]
    expected = np.random.default_rng(1).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    assert targets.tolist() == ["dog"] and np.allclose(image.movedim(0, -1) * 255, expected, atol=1e-4)


def test_images_without_folders_have_no_targets(tmp_path: Path) -> None:
    save(tmp_path / "a.png"), save(tmp_path / "b.jpg")
    opened = ImageFolder(str(tmp_path)).open()
    assert opened.targets is None and opened.classes is None and len(opened) == 2


def test_parts_that_are_folders_are_kept(tmp_path: Path) -> None:
    for number, name in enumerate(
        ("train/x/1.png", "train/y/1.png", "train/y/2.png", "test/y/1.png", "val/x/1.png")
    ):
        save(tmp_path / name, number)
    opened = ImageFolder(str(tmp_path)).open()
    assert opened.classes == ("x", "y")
    named = {part: [opened.row_ids[row] for row in rows] for part, rows in opened.given_parts.items()}
    assert named == {
        "train": ["train/x/1.png", "train/y/1.png", "train/y/2.png"],
        "test": ["test/y/1.png"],
        "validation": ["val/x/1.png"],
    }


def test_files_that_cannot_be_read_are_listed_and_left_out_only_on_demand(folder: Path) -> None:
    whole = (
        save(folder / "dog" / "cut.jpg", shape=(64, 64, 3)) is not None
        and (folder / "dog" / "cut.jpg").read_bytes()
    )
    (folder / "dog" / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "cat" / "text.png").write_text("no image")
    deep = np.full((4, 4), 60_000, np.uint16)
    Image.fromarray(deep).save(folder / "cat" / "deep.png")
    with pytest.raises(UsageError, match="3 of 6 files") as refused:
        ImageFolder(str(folder)).open()
    said = str(refused.value)
    assert "cat/deep.png: expected 8 bits" in said and "cat/text.png: cannot identify" in said
    assert "dog/cut.jpg" in said and "--skip-bad" in said
    with pytest.warns(UserWarning, match="3 files are left out"):
        opened = ImageFolder(str(folder), skip_bad=True).open()
    assert opened.row_ids == ["cat/a.png", "dog/a.png", "dog/deep/b.png"]


def test_sizes_that_differ_are_refused_unless_they_are_resized(folder: Path) -> None:
    save(folder / "cat" / "odd.png", shape=(9, 8, 3))
    mixed = ImageFolder(str(folder)).open().inputs
    with pytest.raises(UsageError, match=r"6 x 8: 3 images.*\n.*9 x 8: 1 images.*odd.png\n.*data.size"):
        mixed.for_backbone(None)
    images = ImageFolder(str(folder), size=5).open().inputs.for_backbone(None)
    assert {tuple(images[index].shape) for index in range(4)} == {(3, 5, 5)}


def test_a_turned_photograph_stands_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    pixels = save(tmp_path / "a.png", exif=exif)
    images = ImageFolder(str(tmp_path)).open().inputs
    assert images.sizes == ((8, 6),)
    assert np.allclose(images[0].movedim(0, -1) * 255, np.rot90(pixels, -1), atol=1e-4)


class Backbone(torch.nn.Module):
    """A network of one channel that prepares its images itself."""

    config = {"images": {"input_size": (1, 2, 2)}}  # noqa: RUF012

    @staticmethod
    def transform(image: Image.Image) -> torch.Tensor:
        return torch.tensor([image.width, image.height, len(image.getbands())])


def test_the_transform_is_that_of_the_backbone(folder: Path) -> None:
    save(folder / "cat" / "odd.png", shape=(9, 8, 3))
    images = ImageFolder(str(folder)).open().inputs.for_backbone(Backbone())
    assert images[0].tolist() == [8, 6, 1] and images[1].tolist() == [8, 9, 1]


def test_the_hash_is_of_the_contents(folder: Path) -> None:
    before = ImageFolder(str(folder)).open().fingerprint()
    assert ImageFolder(str(folder)).open().fingerprint() == before
    file = folder / "cat" / "a.png"
    save(file, 7)
    assert ImageFolder(str(folder)).open().fingerprint() != before


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: None, "expected images"),
        (lambda path: save(path / "a/1.png") is not None and (path / "b").mkdir(), "none in b"),
        (lambda path: save(path / "1.png") is not None and save(path / "a/1.png"), "move them"),
        (lambda path: path.rmdir(), "does not exist"),
        (lambda path: path.rmdir() or path.write_text(""), "got the file"),
        (lambda path: (path / "1.png").write_text("no"), "cannot be read"),
    ],
    ids=["empty", "class without images", "images beside classes", "missing", "file", "none good"],
)
def test_folders_that_cannot_be_used(tmp_path: Path, make: object, said: str) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    make(folder)  # type: ignore[operator]
    with pytest.raises(UsageError, match=said):
        ImageFolder(str(folder)).open()
