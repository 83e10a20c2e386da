"""Images and labels as arrays in a ``.npz`` file."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cdrl_infer.errors import InputError, listing
from cdrl_infer.images import MODES
from cdrl_infer.images.folders import summary
from cdrl_train.data.cifar10 import CIFAR10_CLASSES
from cdrl_train.data.idx import FASHION_MNIST_CLASSES
from cdrl_train.data.image_set import ImageSet, announce, class_attribute, collect
from cdrl_train.data.packed import HEADER, PART, PackedJPEG, packed_names

CLASSES = {
    "fashion": FASHION_MNIST_CLASSES,
    "cifar10": CIFAR10_CLASSES,
}  # by a word in the file's name
MAX_CLASSES = 2**16
MAX_UNPACKED = 2**28  # bytes of an array, unless the file itself is large:
MAX_RATIO = 500  # an array may have so many times the bytes of the file


def read_arrays(path: Path, *names: str) -> dict[str, NDArray[Any]]:
    """The arrays of these names in a ``.npz`` file; those that it does not have are left out.

    Raises:
        InputError: the file is damaged, encrypted or packed in an unknown way, or an array has other than
            numbers or takes too much memory. This is found before memory is taken.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.namelist()
            found = {n: _array(path, archive, n) for n in names if f"{n}.npy" in members}
    except InputError:
        raise
    except Exception as error:  # a damaged archive can raise any error
        reason = str(error) or type(error).__name__
        with open(path, "rb") as file:
            if file.read(6) == b"\x93NUMPY":
                reason = "it holds an array without a name; write it with np.savez"
        raise InputError(f"{path} cannot be read as .npz: {reason}") from error
    if not found:
        there = listing(sorted(name.removesuffix(".npy") for name in members)) or "nothing"
        raise InputError(f"{path}: expected an array '{names[0]}', found {there}")
    return found


def _array(path: Path, archive: zipfile.ZipFile, name: str) -> NDArray[Any]:
    entry = archive.getinfo(f"{name}.npy")
    with archive.open(entry) as file:
        version = np.lib.format.read_magic(file)
        read = {(1, 0): np.lib.format.read_array_header_1_0}.get(
            version, np.lib.format.read_array_header_2_0
        )
        shape, _, dtype = read(file)
        size = math.prod(shape) * dtype.itemsize
        if dtype.hasobject or file.tell() + size != entry.file_size:
            raise ValueError(f"'{name}' is not a whole array of numbers")
    if size > max(MAX_UNPACKED, MAX_RATIO * path.stat().st_size):
        raise InputError(
            f"{path}: expected '{name}' to unpack to at most {MAX_RATIO} times the size of the file, got "
            f"{size:,} bytes; save it with np.savez, unpacked"
        )
    with archive.open(entry) as file:
        array: NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)
        return array


def read_npz(path: Path, split: str, in_memory: int) -> ImageSet:
    """The arrays ``{split}_images`` and, if there, ``{split}_labels``.

    The images are (N, H, W), (N, H, W, C) or (N, C, H, W) uint8, or packed as in
    `cdrl_train.data.packed.PackedJPEG`; the labels are (N,) or (N, 1) integers. The
    classes are the distinct labels of both splits; if these are not 0, 1, 2 …, a line on stderr says so.

    Raises:
        InputError: see `read_arrays`; or the arrays have other shapes, types or values.
    """
    other = "test" if split == "train" else "train"
    named = f"{split}_images"
    names = [named, *packed_names(split), *(f"{part}_labels" for part in (split, other))]
    arrays = read_arrays(path, *names)
    shape, parts = _pixels(path, split, arrays)
    pixels = collect(shape, parts, sources=[path], split=split, in_memory=in_memory)
    return _labelled(path, split, pixels, arrays)


def _pixels(
    path: Path, split: str, arrays: dict[str, NDArray[Any]]
) -> tuple[tuple[int, int, int, int], Iterator[NDArray[np.uint8]]]:
    """The shape (N, C, H, W) of all images, and the images part by part."""
    named = f"{split}_images"
    images = arrays.get(named)
    if images is None and HEADER in arrays:
        packed = PackedJPEG(path, split, arrays)
        return packed.shape, packed.parts()
    if images is None:
        raise InputError(f"{path}: expected an array '{named}', found {listing(arrays)}")
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or not len(images):
        raise InputError(
            f"{path}: expected '{named}' (N, H, W[, C]) uint8, got {images.shape} {images.dtype}"
        )
    if images.ndim == 3:
        images = images[:, None]
    elif images.shape[3] <= 4 or images.shape[1] not in MODES:
        images = images.transpose(0, 3, 1, 2)
    return images.shape, (images[k : k + PART] for k in range(0, len(images), PART))


def _labelled(path: Path, split: str, pixels: Tensor, arrays: dict[str, NDArray[Any]]) -> ImageSet:
    """The images with their labels, if there are any."""
    other = "test" if split == "train" else "train"
    labels = {
        part: _labels(path, f"{part}_labels", arrays[f"{part}_labels"])
        for part in (split, other)
        if f"{part}_labels" in arrays
    }
    if split not in labels:
        return ImageSet(pixels)
    own = labels[split]
    if own.shape != (len(pixels),):
        raise InputError(
            f"{path}: expected '{split}_labels' ({len(pixels)},) integers, got {len(own)}"
        )
    classes = np.unique(np.concatenate(list(labels.values())))
    if len(classes) > MAX_CLASSES:
        raise InputError(
            f"{path}: expected labels of at most {MAX_CLASSES:,} classes, got {len(classes):,} distinct "
            "ones; are they numbers of the images? Leave them out"
        )
    names = _names(path, classes.tolist())
    index = np.searchsorted(classes, own)
    if len(classes) <= classes[-1]:  # not 0, 1, 2 …
        counts = np.bincount(index, minlength=len(names)).tolist()
        announce(summary(path, len(pixels), dict(zip(names, counts, strict=True)), {}))
    return ImageSet(pixels, torch.from_numpy(index)[:, None], class_attribute(names))


def _labels(path: Path, name: str, labels: NDArray[Any]) -> NDArray[np.int64]:
    """(N,), checked to be classes."""
    given = f"{labels.shape} {labels.dtype}"
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise InputError(f"{path}: expected '{name}' (N,) integers, got {given}")
    values = np.unique(labels)
    least, last = (int(values[0]), int(values[-1])) if len(values) else (0, 0)
    marker = labels.dtype.kind == "u" and last == np.iinfo(labels.dtype).max
    if least < 0 or (marker and last - 1 not in values) or last > np.iinfo(np.int64).max:
        raise InputError(
            f"{path}: expected '{name}' to be classes, which count from 0, got "
            f"{least if least < 0 else last}{' (-1 as unsigned?)' if marker else ''}; leave out images "
            "without a class, or all labels"
        )
    return labels.astype(np.int64)


def _names(path: Path, classes: list[int]) -> list[str]:
    stem = path.stem.lower().replace("-", "").replace("_", "")
    for word, names in CLASSES.items():
        if word in stem and classes == list(range(len(names))):
            return list(names)
    return [str(k) for k in classes]
