"""Images that are not of the data, to be told from them."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from cdrl_infer.errors import InputError
from cdrl_train.data.sources import load_images


def generator(seed: int, name: str) -> np.random.Generator:
    """Each set has its own, so that none depends on which others there are."""
    return np.random.default_rng([seed, *name.encode()])


def read_outside(
    sources: Sequence[str],
    shape: tuple[int, int, int],
    count: int,
    seed: int,
    taken: Collection[str] = (),
) -> dict[str, NDArray[np.uint8]]:
    """By name, ``count`` images (N, C, H, W) of the test split at random, or all if there are fewer.

    Args:
        sources: ``NAME=DATA`` each.
        shape: (C, H, W) that images must have.
        count: the most of a set.
        seed: of the choice.
        taken: names that other sets have.

    Raises:
        InputError: no such pair, no such data, images of another shape, or a name that is taken.
    """
    found: dict[str, NDArray[np.uint8]] = {}
    for text in sources:
        name, _, source = text.partition("=")
        if not name or not source:
            raise InputError(f"--outside must be NAME=DATA, as mnist=mnist.npz, got {text!r}")
        if name in taken or name in found:
            raise InputError(f"--outside: there are two sets of the name {name!r}; choose another")
        images = load_images(source, "test").images
        if tuple(images.shape[1:]) != shape:
            raise InputError(
                f"--outside {text}: expected images {shape} (C, H, W) as the model has, "
                f"got {tuple(images.shape[1:])}"
            )
        some = generator(seed, name).permutation(len(images))[:count]
        found[name] = images[torch.from_numpy(np.sort(some))].numpy()
    return found
