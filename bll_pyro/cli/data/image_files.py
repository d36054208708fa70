"""Files of images as a dataset, and a look at all of them before any work."""

from __future__ import annotations

import hashlib
import io
import struct
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from bll_pyro.cli.usage import UsageError
from bll_pyro.observation import stage

if TYPE_CHECKING:
    from PIL import Image

WORKERS = 8  # images that are looked at side by side
MODES = {1: "L", 3: "RGB"}  # of PIL, by the number of channels
ORIENTATION, FIRST_TURNED = (
    0x0112,
    5,
)  # the tag of EXIF, and its values from which on height and width change places


@dataclass(frozen=True, eq=False)
class ImageFiles(Dataset[Tensor]):
    """Images as they are asked for, ``[C, H, W]``.

    Parameters
    ----------
    files
        Their paths.
    sizes
        Height and width of each.
    size
        Height and width to which they are resized.
    channels
        3 for colours, 1 for grey.
    transform
        From the image to a tensor; None gives numbers from 0 to 1.
    """

    files: tuple[Path, ...]
    sizes: tuple[tuple[int, int], ...]
    size: int | None = None
    channels: int = 3
    transform: Callable[[Any], Tensor] | None = None

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Tensor:
        from PIL import ImageOps

        with _opened(self.files[index].read_bytes()) as opened:
            image = ImageOps.exif_transpose(opened).convert(MODES[self.channels])
        return prepared(image, self.size, self.transform)

    def for_backbone(self, backbone: nn.Module | None) -> ImageFiles:
        """The same images as a backbone takes them.

        Raises
        ------
        UsageError
            If they stay of several sizes, which no batch can hold.
        """
        transform = getattr(backbone, "transform", None)
        if transform is not None:
            images = backbone.config.get("images", {})  # type: ignore[union-attr,operator]
            channels = images.get("input_size", (3,))[0]
            if channels not in MODES:
                raise UsageError(
                    f"backbone: expected one for 1 or 3 channels of an image, got one for {channels}"
                )
            return replace(self, channels=channels, transform=transform)
        sizes = Counter(self.sizes)
        if self.size is None and len(sizes) > 1:
            first = {size: self.files[self.sizes.index(size)] for size in sizes}
            shown = [
                f"  {h} x {w}: {n:,} images, such as {first[h, w]}" for (h, w), n in sizes.most_common(5)
            ]
            raise UsageError(
                "expected images of one size, got:\n"
                + "\n".join(shown)
                + f"\n{'  ...' * (len(sizes) > 5)}resize them by data.size: 224 (--data.size 224), or take a backbone that does"
            )
        return self


def prepared(
    image: Image.Image, size: int | None = None, transform: Callable[[Any], Tensor] | None = None
) -> Tensor:
    """An image, upright and of the right mode, as numbers ``[C, H, W]``."""
    from PIL.Image import Resampling

    if size is not None:
        image = image.resize((size, size), Resampling.BICUBIC)
    if transform is not None:
        return transform(image)
    pixels = torch.from_numpy(np.array(image, np.float32) / 255)
    return pixels[None] if pixels.dim() == 2 else pixels.movedim(-1, 0).contiguous()


@dataclass(frozen=True)
class Seen:
    """What was seen of a file: height and width of the image, and the SHA-256 of the bytes."""

    size: tuple[int, int]
    digest: str


def look_at(files: Sequence[Path], name: str) -> list[Seen | str]:
    """What is seen of each file, or why it cannot be read as an image; each is read whole."""
    found: list[Seen | str] = []
    with (
        stage(f"looking at {name}", len(files), rows_per_step=1) as steps,
        ThreadPoolExecutor(WORKERS) as pool,
    ):
        for seen in pool.map(_look, files):
            found.append(seen)
            steps.advance()
    return found


def _look(file: Path) -> Seen | str:
    from PIL import Image

    try:
        content = file.read_bytes()
        with _opened(content) as image:
            width, height = image.size
            if image.getexif().get(ORIENTATION, 1) >= FIRST_TURNED:
                width, height = height, width
            image.draft(
                None, (1, 1)
            )  # a JPEG is decoded at an eighth of its size, which is faster; others as they are
            image.load()
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError) as error:
        return " ".join((str(error) or type(error).__name__).split()).partition(" <_io.")[0]
    return Seen((height, width), hashlib.sha256(content).hexdigest())


def _opened(content: bytes) -> Image.Image:
    from PIL import Image

    image = Image.open(io.BytesIO(content))
    if image.mode[0] in "IF":
        raise ValueError(f"expected 8 bits a channel, got an image of the mode {image.mode}")
    return image
