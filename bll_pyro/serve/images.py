"""From the bytes of an image to a row. The size is looked at before anything is decoded."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np

from bll_pyro.serve.models import ServedModel
from bll_pyro.serve.problems import Problem

if TYPE_CHECKING:
    from PIL import Image

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
MODES = {1: "L", 3: "RGB"}  # of PIL, by the number of channels


def row_of_image(content: bytes, model: ServedModel, most_pixels: int, number: int = 0) -> np.ndarray:
    """The row of an image; ``number`` is its place in the request.

    Raises
    ------
    Problem
        If it is no image, one that is cut or lies about itself, or one with too many pixels.
    """
    assert model.prepare is not None
    image = _decoded(content, MODES[model.channels], most_pixels, number)
    row = np.ascontiguousarray(model.prepare(image), np.float32)
    if model.input_shape is not None and row.shape != model.input_shape:
        raise Problem(
            422,
            f"image {number}: expected one of shape {list(model.input_shape)}, got {list(row.shape)}; this model does not resize",
            image=number,
        )
    return row


def _decoded(content: bytes, mode: str, most_pixels: int, number: int) -> Image.Image:
    from PIL import Image, ImageOps

    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as opened:
            width, height = opened.size
            if width * height > most_pixels:
                raise Problem(
                    413,
                    f"image {number}: expected at most {most_pixels:,} pixels, got {width:,} x {height:,}; send a smaller one",
                    image=number,
                )
            if opened.mode[0] in "IF":
                raise Problem(
                    422,
                    f"image {number}: expected 8 bits a channel, got the mode {opened.mode}",
                    image=number,
                )
            return ImageOps.exif_transpose(opened).convert(mode)
    except Problem:
        raise
    except Image.DecompressionBombError as error:
        raise Problem(
            413, f"image {number}: expected at most {most_pixels:,} pixels, got far more", image=number
        ) from error
    except Exception as error:  # the readers of PIL raise errors of many types on bytes that lie
        raise Problem(
            422,
            f"image {number}: expected an image ({', '.join(FORMATS)}), got bytes that cannot be read as one: cut, damaged, "
            "or something else",
            image=number,
        ) from error
