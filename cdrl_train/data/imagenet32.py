"""ImageNet downsampled to 32 x 32, from its ``.npz`` batches."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cdrl_infer.errors import InputError
from cdrl_infer.model import ImageShape
from cdrl_infer.storage.authors import imagenet_names
from cdrl_train.data.image_set import ImageSet, class_attribute, collect
from cdrl_train.data.npz import read_arrays
from cdrl_train.data.published import Published, read_rows


class ImageNet32(Published):
    """Ten batches to train on and one to test with; any square size is read."""

    def read_files(self, root: Path, split: str, in_memory: int) -> ImageSet:
        """Read the batches in ``root``."""
        names = ["val_data.npz"]
        if split == "train":
            names = [f"train_data_batch_{k}.npz" for k in range(1, 11)]
        files = [root / name for name in names]
        for file in files:
            if not file.is_file():
                archive = f"Imagenet32_{'train' if split == 'train' else 'val'}_npz.zip"
                raise self.missing(file, f"unzip {archive} -d {root}")
        labels = np.concatenate([_array(file, "labels") for file in files])
        sizes = {_array(file, "data").shape[-1] for file in files}
        side = math.isqrt(max(sizes) // 3)
        if len(sizes) > 1 or sizes != {3 * side * side}:
            raise InputError(
                f"{root}: expected square RGB images of one size, got rows of {sizes} bytes"
            )

        def parts() -> Iterator[NDArray[np.uint8]]:
            for file in files:
                yield _array(file, "data").reshape(-1, 3, side, side)

        shape = (len(labels), 3, side, side)
        images = collect(shape, parts(), sources=files, split=split, in_memory=in_memory)
        data = self.labelled(images, labels - 1, files[0])  # the files count from 1
        return dataclasses.replace(data, attributes=class_attribute(_class_names(root)))

    def display_name(self, rest: str) -> str:
        """The folder's name."""
        return Path(rest).name


def _array(file: Path, name: str) -> NDArray[Any]:
    array = read_arrays(file, name)[name]
    expected = np.uint8 if name == "data" else np.integer
    if not np.issubdtype(array.dtype, expected) or array.ndim != (2 if name == "data" else 1):
        raise InputError(
            f"{file}: expected 'data' (N, 3·S·S) uint8 and 'labels' (N,) integers, "
            f"got '{name}' {array.shape} {array.dtype}"
        )
    return array


def _class_names(root: Path) -> list[str]:
    """The class names, numbered by ``map_clsloc.txt``; if it is missing, the labels' numbers."""
    numbering = root / "map_clsloc.txt"
    if not numbering.is_file():
        return [str(k) for k in range(1, 1001)]
    names = imagenet_names()
    rows = read_rows(numbering)
    try:
        by_number = {int(number): names[wordnet] for wordnet, number, _ in rows}
        return [by_number[k] for k in range(1, 1001)]
    except (ValueError, KeyError) as error:
        raise InputError(
            f"{numbering}: expected 1,000 rows 'WORDNET-ID NUMBER NAME'; missing or unreadable: {error}"
        ) from None


IMAGENET32 = ImageNet32(
    "Imagenet32",
    "https://image-net.org/download-images.php (after signing in)",
    ImageShape(3, 32, 32),
    class_attribute(range(1, 1001)),
    root="data/imagenet32",
)
