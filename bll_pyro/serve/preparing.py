"""Images as rows of a graph, by PIL and NumPy: what timm's transform for evaluation does, without torch.

========== ====================================================================================
crop mode  size
========== ====================================================================================
center     the shorter side becomes ``size / crop_pct``, and the middle is cut out
squash     both sides are resized to ``size / crop_pct``, and the middle is cut out
========== ====================================================================================
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from PIL import Image


def preparation(images: Mapping[str, Any] | None) -> Callable[[Image.Image], np.ndarray] | None:
    """From an image to a row ``[C, H, W]``, as the metadata of a graph say; None where they say nothing that is known here."""
    if not images or images.get("crop_mode") not in ("center", "squash"):
        return None
    channels, height, width = images["input_size"]
    if height != width or channels not in (1, 3) or images["interpolation"] not in ("bilinear", "bicubic"):
        return None
    mean, std = (np.asarray(images[name], np.float32)[:, None, None] for name in ("mean", "std"))
    size = int(height / images["crop_pct"])
    is_squashed = images["crop_mode"] == "squash"

    def prepare(image: Image.Image) -> np.ndarray:
        from PIL.Image import Resampling

        sides = (size, size) if is_squashed else _sides(image.size, size)
        if sides != image.size:
            image = image.resize(sides, Resampling[images["interpolation"].upper()])
        left, top = (round((side - height) / 2) for side in image.size)
        pixels = np.asarray(image.crop((left, top, left + height, top + height)), np.float32) / np.float32(
            255
        )
        pixels = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
        return np.ascontiguousarray((pixels - mean) / std)

    return prepare


def _sides(given: tuple[int, int], size: int) -> tuple[int, int]:
    """Width and height whose smaller one is ``size``."""
    width, height = given
    if width <= height:
        return size, int(size * height / width)
    return int(size * width / height), size
