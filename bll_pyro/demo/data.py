"""Scikit-learn's handwritten digits: 0 to 7 are known, 8 and 9 are kept away from every training."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from bll_pyro.scope import generator

NUM_KNOWN = 8
IMAGE_SIZE = 32  # pixels a side; timm's networks halve the 8 x 8 images too often
TEST_SHARE, VALIDATION_SHARE = 0.25, 0.15  # of the known digits
NOISE_SCALE = 0.3  # of the pixels of the 8 x 8 images, where full ink is 1
QUICK_ROWS = 150

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
        Known digits that nothing is chosen by.
    noisy
        The test digits again, with Normal noise on the pixels: known digits as no head has seen them.
    unknown
        All images of an 8 or a 9. No head has a class for them.
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
    """Read the digits, enlarge them, and split the known ones at random, every digit in the same shares.

    The quick form keeps 150 known images for each part and as many unknown ones.
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
    """Images ``[N, 1, 8, 8]`` as ``[N, 1, 32, 32]``."""
    return torch.nn.functional.interpolate(images, size=(IMAGE_SIZE, IMAGE_SIZE), mode="bilinear")
