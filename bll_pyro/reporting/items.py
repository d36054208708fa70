"""What is shown of single rows: images as thumbnails, texts, or the columns of a table."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bll_pyro.reporting.blocks import Cell, aligned, short_name, significant
from bll_pyro.reporting.material import Material

THUMBNAIL = 64  # pixels of the longer side
MOST_COLUMNS = 6
MOST_LETTERS = 160  # of a text


class Items:
    """What to show of the rows of a report.

    ``columns`` are headings with what they mean; :meth:`cells` gives a cell for each of them.
    """

    def __init__(self, material: Material) -> None:
        self._material = material
        self._given = material.items
        self.note = ""
        first = self._first()
        if _is_frame(self._given):
            import narwhals

            self._frame = narwhals.from_native(self._given, eager_only=True)
            self._names = self._frame.columns[:MOST_COLUMNS]
            self.kind, self.columns = "frame", dict.fromkeys(map(short_name, self._names), "")
            self._cut(len(self._frame.columns), "the first")
        elif isinstance(first, str):
            self.kind, self.columns = "text", {"text": ""}
        elif _is_image(first):
            self.kind, self.columns = "image", {"image": ""}
        elif self._given is None and material.fit.backbone is None:
            self.kind, self._chosen = "features", self._strongest()
            names = material.feature_names
            self.columns = {short_name(names[d]): "" for d in self._chosen}
            self._cut(len(names), "those with the largest weights")
        else:
            self.kind, self.columns = "none", {}

    def cells(self, rows: list[int], words: list[str]) -> list[list[Cell]]:
        """Cells of some rows; ``words`` describe the images."""
        material = self._material
        if self.kind == "frame":
            return [[_value(self._frame[row, name]) for name in self._names] for row in rows]
        if self.kind == "features":
            values = material.features[torch.tensor(rows, dtype=torch.long)].double().cpu()
            columns = [aligned(values[:, d].tolist()) for d in self._chosen]
            return [[column[i] for column in columns] for i in range(len(rows))]
        if self.kind == "none":
            return [[] for _ in rows]
        things = self._things(rows)
        if self.kind == "text":
            return [[Cell(short_name(thing, MOST_LETTERS))] for thing in things]
        return [[Cell(text, image=thumbnail(thing))] for thing, text in zip(things, words, strict=True)]

    @property
    def come_first(self) -> bool:
        """Whether they stand before what is said of a row; columns of a table stand behind it."""
        return self.kind in ("image", "text")

    def _first(self) -> Any:
        """The first thing, by which the kind is known."""
        if _is_frame(self._given):
            return None
        things = self._things([0])
        return things[0] if things else None

    def _things(self, rows: list[int]) -> list[Any]:
        if self._given is not None:
            return [self._given[row] for row in rows]
        if self._material.fit.backbone is None:
            return []
        part = self._material.source.subset(torch.tensor(rows, dtype=torch.long))
        if part is None:
            return []
        found: list[Any] = []
        for inputs, _ in part.batches(len(rows)):
            if isinstance(inputs, Mapping):
                return []
            found += list(inputs)
        return found

    def _strongest(self) -> list[int]:
        size = np.abs(self._material.weights.mean).max(0)
        chosen = np.argsort(-size, kind="stable")[:MOST_COLUMNS]
        return sorted(int(d) for d in chosen)

    def _cut(self, number: int, which: str) -> None:
        if number > MOST_COLUMNS:
            self.note = f"Of {number:,} columns {MOST_COLUMNS} are shown, {which}."


def thumbnail(image: Any) -> str:
    """An image ``[H, W]``, ``[1 or 3, H, W]`` or ``[H, W, 3]`` as a PNG of at most 64 pixels, in a data address.

    Numbers that are not bytes are brought to the range of bytes, from the smallest to the largest of the image.
    """
    from PIL import Image

    pixels = image.detach().cpu() if isinstance(image, Tensor) else torch.as_tensor(np.asarray(image))
    if pixels.dim() == 3 and pixels.shape[0] in (1, 3, 4):
        pixels = pixels.permute(1, 2, 0)
    if pixels.dim() == 3:
        pixels = pixels[..., :3] if pixels.shape[2] >= 3 else pixels[..., 0]
    if pixels.dtype != torch.uint8:
        values = torch.nan_to_num(pixels.double())
        low, high = float(values.min()), float(values.max())
        pixels = (255 * (values - low) / (high - low if high > low else 1.0)).round().byte()
    picture = Image.fromarray(pixels.contiguous().numpy())
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _is_frame(value: Any) -> bool:
    return hasattr(value, "columns") and hasattr(value, "shape")


def _is_image(value: Any) -> bool:
    shape = tuple(getattr(value, "shape", ()) or ())
    if len(shape) == 2:
        return min(shape) > 1
    return len(shape) == 3 and (shape[0] in (1, 3, 4) or shape[2] in (1, 3, 4))


def _value(value: Any) -> Cell:
    if isinstance(value, bool | str) or value is None:
        return Cell(short_name("" if value is None else value))
    return (
        significant(float(value)) if isinstance(value, int | float | np.number) else Cell(short_name(value))
    )
