"""Scikit-learn's handwritten digits: 0 to 7 are known, 8 and 9 are not used in training."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from bll_pyro.scope import generator

NUM_KNOWN = 8  # number of known classes
IMAGE_SIZE = 32  # side of the enlarged images in pixels; timm's networks downsample 8 x 8 images too much
TEST_SHARE, VALIDATION_SHARE = 0.25, 0.15  # shares of the known digits in the two parts
NOISE_SCALE = 0.3  # standard deviation of the noise on the 8 x 8 images, whose pixels are between 0 and 1
QUICK_ROWS = 150  # most images in each part of a quick run

Images = tuple[Tensor, Tensor]
"""Images ``[N, 1, 32, 32]`` between 0 and 1, and their digits ``[N]``."""


@dataclass(frozen=True)
class Digits:
    """The digits, split.

    Parameters
    ----------
    train
        Known digits for the weights of the network and for the posterior.
    validation
        Known digits for early stopping and for the temperature of the softmax.
    test
        Known digits that are not used for any choice.
    noisy
        The test digits with Normal noise on the pixels, which no training image has.
    unknown
        All images of an 8 or a 9, which are no classes of the heads.
    """

    train: Images
    validation: Images
    test: Images
    noisy: Images
    unknown: Images

    @property
    def num_rows(self) -> dict[str, int]:
        """Number of images in each part."""
        return {part.name: len(getattr(self, part.name)[1]) for part in fields(self)}


def load_digits(seed: int, quick: bool = False) -> Digits:
    """Read the digits, enlarge them, and split the known ones at random, stratified by digit.

    A quick run has at most 150 images in each part.
    """
    from sklearn.datasets import load_digits as read
    from sklearn.model_selection import train_test_split

    bunch = read()
    images = torch.from_numpy(bunch.images).float()[:, None] / 16
    digits = torch.from_numpy(bunch.target).long()

    def split(rows: Any, num_second: int) -> Any:
        return train_test_split(rows, test_size=num_second, random_state=seed, stratify=digits[rows])

    known, unknown = torch.where(digits < NUM_KNOWN)[0], torch.where(digits >= NUM_KNOWN)[0]
    rest, test = split(known, round(TEST_SHARE * len(known)))
    train, validation = split(rest, round(VALIDATION_SHARE * len(known)))
    most = QUICK_ROWS if quick else None
    train, validation, test, unknown = (rows[:most] for rows in (train, validation, test, unknown))
    noise = torch.randn(images[test].shape, generator=generator(seed)) * NOISE_SCALE
    return Digits(
        train=(enlarged(images[train]), digits[train]),
        validation=(enlarged(images[validation]), digits[validation]),
        test=(enlarged(images[test]), digits[test]),
        noisy=(enlarged((images[test] + noise).clamp(0, 1)), digits[test]),
        unknown=(enlarged(images[unknown]), digits[unknown]),
    )


def enlarged(images: Tensor) -> Tensor:
    """Images ``[N, 1, 8, 8]`` interpolated to ``[N, 1, 32, 32]``."""
    return torch.nn.functional.interpolate(images, size=(IMAGE_SIZE, IMAGE_SIZE), mode="bilinear")
