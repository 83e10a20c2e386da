"""Images and labels as arrays in a ``.npz`` file."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch

from cdrl_infer.errors import InputError, listing
from cdrl_train.data.cifar10 import CIFAR10_CLASSES
from cdrl_train.data.idx import FASHION_MNIST_CLASSES
from cdrl_train.data.image_set import ImageSet, class_attribute, collect

CLASSES = {
    "fashion": FASHION_MNIST_CLASSES,
    "cifar10": CIFAR10_CLASSES,
}  # by a word in the file's name
PART = 1024  # images that are copied at a time


def read_npz(path: Path, split: str, in_memory: int) -> ImageSet:
    """The arrays ``{split}_images`` (N, H, W[, C]) uint8 and, if there, ``{split}_labels`` (N,).

    Raises:
        InputError: the file is damaged, or its arrays have other shapes or types.
    """
    wanted = (f"{split}_images", f"{split}_labels")
    try:
        with open(path, "rb") as file:
            archive = np.load(file, allow_pickle=False)
            names = [] if isinstance(archive, np.ndarray) else sorted(archive.files)
            images, labels = (archive[name] if name in names else None for name in wanted)
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{path} cannot be read as .npz: {error}") from error
    if images is None:
        found = listing(names) or "an array without a name; write it with np.savez"
        raise InputError(f"{path}: expected an array '{split}_images', found {found}")
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or not len(images):
        raise InputError(
            f"{path}: expected '{split}_images' (N, H, W[, C]) uint8, "
            f"got {images.shape} {images.dtype}"
        )
    images = (images if images.ndim == 4 else images[..., None]).transpose(0, 3, 1, 2)
    parts = (images[k : k + PART] for k in range(0, len(images), PART))
    pixels = collect(images.shape, parts, sources=[path], split=split, in_memory=in_memory)
    if labels is None:
        return ImageSet(pixels)
    if labels.shape != (len(images),) or labels.dtype.kind not in "iu":
        raise InputError(
            f"{path}: expected '{split}_labels' ({len(images)},) integers, "
            f"got {labels.shape} {labels.dtype}"
        )
    if int(labels.min()) < 0:
        raise InputError(
            f"{path}: expected '{split}_labels' to count from 0, got {int(labels.min())}; leave the "
            "labels out for images without a class"
        )
    count = int(labels.max()) + 1
    stem = path.stem.lower().replace("-", "").replace("_", "")
    named = [names for word, names in CLASSES.items() if word in stem and len(names) == count]
    targets = torch.from_numpy(labels.astype(np.int64))[:, None]
    return ImageSet(pixels, targets, class_attribute(named[0] if named else range(count)))
