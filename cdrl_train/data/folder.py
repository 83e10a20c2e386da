"""A folder of images, with one sub-folder per class or none."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from cdrl_infer.errors import InputError
from cdrl_infer.images import SUFFIXES, image_files, open_image
from cdrl_train.data.image_set import ImageSet, class_attribute, collect


def read_folder(root: Path, in_memory: int) -> ImageSet:
    """All images below a folder; they have labels if each of them lies in a sub-folder.

    Raises:
        InputError: no images, damaged ones, or images of several sizes.
    """
    files = image_files(root)
    if not files:
        raise InputError(f"no images in {root}; looked for {', '.join(SUFFIXES)}")
    first = _pixels(files[0])

    def parts() -> Iterator[NDArray[np.uint8]]:
        for file in files:
            pixels = _pixels(file)
            if pixels.shape != first.shape:
                raise InputError(
                    f"all images must have one size: {files[0]} is {first.shape} (C, H, W), "
                    f"{file} is {pixels.shape}"
                )
            yield pixels[None]

    channels, height, width = first.shape
    shape = (len(files), channels, height, width)
    images = collect(shape, parts(), sources=files, split="all", in_memory=in_memory)
    parents = [file.relative_to(root).parts[:-1] for file in files]
    if not all(parents):
        return ImageSet(images)
    index = {name: k for k, name in enumerate(sorted({parent[0] for parent in parents}))}
    labels = torch.tensor([[index[parent[0]]] for parent in parents])
    return ImageSet(images, labels, class_attribute(index))


def _pixels(file: Path) -> NDArray[np.uint8]:
    """(C, H, W)."""
    pixels = np.asarray(open_image(file))
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
