"""In-distribution images -> the reference statistics of a model."""

from __future__ import annotations

import torch
from torch import Tensor
from tqdm import tqdm

from cdrl_infer.arguments import check_seed, positive
from cdrl_infer.errors import InputError
from cdrl_infer.pipeline import CDRLPipeline
from cdrl_infer.scoring.reference import ReferenceStatistics, measure, random_order

MOST_USED = 5_000


def calibrate(
    pipe: CDRLPipeline,
    images: Tensor,
    *,
    data: str,
    seed: int = 0,
    batch_size: int = 64,
    progress: bool | None = None,
) -> ReferenceStatistics:
    """Compute the features of in-distribution images, see `cdrl_infer.scoring.reference.measure`.

    Args:
        pipe: the model's.
        images: (N, C, H, W) uint8; best are images that the model was not trained on.
        data: the name of their set.
        seed: the seed of the halves and of the noise.
        batch_size: images at once.
        progress: a bar on stderr; by default only if that is a terminal.

    Raises:
        InputError: images of another shape, too few of them, or too much alike.
        NumericalError: features that are not finite.
    """
    model = pipe.model
    if images.dtype != torch.uint8 or tuple(images.shape[1:]) != model.image.shape:
        raise InputError(
            f"expected images (N, C, H, W) of {model.image.shape} in uint8, got "
            f"{tuple(images.shape[1:])} in {images.dtype}"
        )
    seed, batch_size = check_seed(seed), positive("batch_size", batch_size)
    hidden = None if progress is None else not progress
    with tqdm(total=len(images), unit="image", disable=hidden) as bar:
        return measure(
            model, images, data=data, seed=seed, batch_size=batch_size, after_batch=bar.update
        )


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
