"""Which images of a data set calibrate a model, see `CDRLPipeline.calibrate`."""

from __future__ import annotations

from torch import Tensor

from cdrl_infer.errors import InputError
from cdrl_infer.scoring.reference import random_order

MOST_USED = 5_000


def choose(images: Tensor, count: int | None, seed: int) -> Tensor:
    """Choose ``count`` images at random; by default `MOST_USED`, or all if there are fewer.

    Raises:
        InputError: ``count`` is larger than the number of images.
    """
    if count is None:
        count = min(MOST_USED, len(images))
    if count > len(images):
        raise InputError(f"expected at most {len(images):,} images, all there are, got {count:,}")
    return images[random_order(len(images), seed)[:count]]
