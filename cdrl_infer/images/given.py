"""A caller's images to tensors: files, pictures, arrays, tensors, lists and data sets of these."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from PIL import Image, ImageFile
from torch import Tensor
from torch.utils.data import DataLoader

from cdrl_infer.errors import InputError, listing
from cdrl_infer.images.files import Header, decode_image, upright
from cdrl_infer.images.folders import image_files
from cdrl_infer.images.rules import MODES, plain, to_channels

Array: TypeAlias = np.ndarray | Tensor
Shape: TypeAlias = tuple[int, int, int]  # C, H, W


def check_picture(header: Header, shape: Shape, *, resize: bool = False) -> None:
    """Refuse a picture of another size before it is decoded.

    Raises:
        InputError: pictures cannot have ``shape``, or (without ``resize``) this one has another size.
    """
    channels, height, width = shape
    if channels not in MODES:
        raise InputError(
            f"expected images of {channels} channels, and pictures have 1 or 3; give an array"
        )
    check_size(header.size, (width, height), resize)


def check_size(size: tuple[int, int], expected: tuple[int, int], resize: bool) -> None:
    """Raise InputError for a picture of another size (width, height) that is not to be resized."""
    if size != expected and not resize:
        raise InputError(
            f"expected a picture of {expected[0]} x {expected[1]} pixels (width x height), got "
            f"{size[0]} x {size[1]}; resize=True (--resize) fits it"
        )


def read_images(given: Any, shape: Shape, *, resize: bool = False, grey: bool = False) -> Tensor:
    """Convert a caller's images to (N, C, H, W) float32 in [0, 1]; a single image has N = 1.

    Args:
        given: see `each_image`.
        shape, resize, grey: see `each_image`.

    Raises:
        InputError: see `each_image`; or there are no images.
    """
    if isinstance(given, (np.ndarray, Tensor)):
        found = _values(layout(given, shape), shape, grey)
    elif isinstance(given, Image.Image) or (
        isinstance(given, os.PathLike) and os.path.isfile(given)
    ):
        found = _read(given, shape, resize, grey)[None]
    else:
        images = list(each_image(given, shape, resize=resize, grey=grey))
        found = torch.stack(images) if images else torch.empty(0)
    if not len(found):
        raise InputError("expected at least one image, got none")
    return found


def each_image(
    given: Any, shape: Shape, *, resize: bool = False, grey: bool = False
) -> Iterator[Tensor]:
    """Yield a caller's images one by one, (C, H, W) float32 in [0, 1]; each is read when it is needed.

    Args:
        given: a picture; the path of one, or of a folder; an array or a tensor, (H, W) or (N, H, W) for
            grey images, (H, W, C), (C, H, W), (N, H, W, C) or (N, C, H, W), of uint8 or of floats in
            [0, 1]; or a list, an iterator, a data set or a `DataLoader` of these. Of a tuple (image,
            label) the image is read.
        shape: the expected (C, H, W).
        resize: resize pictures of another size, by Lanczos filtering; their aspect ratio may change.
        grey: make grey images of coloured ones, if C = 1. Otherwise, they are refused.

    Raises:
        InputError: an image has another size, type or number of channels, transparent pixels or values
            out of range. The message has its number.
    """
    k = 0
    try:
        for image in _flat(given, shape):
            yield _read(image, shape, resize, grey)
            k += 1
    except InputError as error:
        raise InputError(f"image {k}: {error}") from None
    except RecursionError:
        raise InputError(f"image {k}: expected images, got lists within lists") from None


def _flat(given: Any, shape: Shape, inside: bool = False, of_data: bool = False) -> Iterator[Any]:
    """Yield pictures, paths and arrays (K, H, W).

    Args:
        given: see `each_image`.
        shape: the expected (C, H, W).
        inside: whether ``given`` is an item of something else.
        of_data: whether it is an item of a data set, where a list may be an image and its labels.
    """
    if isinstance(given, (np.ndarray, Tensor)):
        yield from layout(given, shape)
    elif isinstance(given, (str, os.PathLike)):
        path = Path(given)
        yield from image_files(path) if path.is_dir() else [path]
    elif isinstance(given, (Image.Image, bytes, Mapping)) or not _is_iterable(given):
        yield given
    else:
        numbered = not hasattr(given, "__iter__") and hasattr(given, "__len__")
        if (inside and isinstance(given, tuple)) or (of_data and isinstance(given, list)):
            items: Any = _image_of_pair(given, shape)
        else:
            items = (given[k] for k in range(len(given))) if numbered else given
        for item in items:
            yield from _flat(item, shape, True, numbered or isinstance(given, DataLoader))


def _is_iterable(given: Any) -> bool:
    indexed = hasattr(given, "__getitem__") and not isinstance(given, np.generic)
    return hasattr(given, "__iter__") or indexed


def _image_of_pair(pair: tuple[Any, ...] | list[Any], shape: Shape) -> tuple[Any, ...] | list[Any]:
    """The image of (image, label …) alone."""
    if any(_is_image(item, shape) for item in pair[1:]):
        raise InputError(
            f"expected an image, or an image and its labels, got a {type(pair).__name__} of "
            f"{len(pair)} with several images; give the images alone: (item[0] for item in data)"
        )
    return pair[:1]


def _is_image(item: Any, shape: Shape) -> bool:
    if not isinstance(item, (np.ndarray, Tensor)):
        return isinstance(item, Image.Image)
    try:
        layout(item, shape)
    except InputError:
        return False
    return True


def layout(array: Array, shape: Shape) -> Any:
    """A view (N, K, H, W) of an array or a tensor in any layout that `each_image` reads.

    K is C, or another number of channels that `to_channels` may convert. Where the last axis and the
    first could both be the channels, an array has them last and a tensor first.

    Raises:
        InputError: the shape is none of these.
    """
    channels, size = shape[0], shape[1:]
    move: Any = np.moveaxis if isinstance(array, np.ndarray) else torch.moveaxis
    kinds = {channels, 1, 2, 3, 4} if channels in MODES else {channels}
    found = tuple(array.shape)
    if found == size and 1 in kinds:
        return array[None, None]
    if len(found) == 3 and found[1:] == size and channels == 1:
        return array[:, None]
    if len(found) == 3:
        array = array[None]
    places = (-1, -3) if isinstance(array, np.ndarray) else (-3, -1)
    for axis in places if len(found) in (3, 4) else ():
        moved = move(array, axis, -3)
        if tuple(moved.shape[2:]) == size and moved.shape[1] in kinds:
            return moved
    raise InputError(
        f"expected images of {channels} channels, {size[0]} x {size[1]}, got shape {found}; give "
        "(H, W, C) or (C, H, W), for several images with N in front; pictures can be resized"
    )


def _read(image: Any, shape: Shape, resize: bool, grey: bool) -> Tensor:
    """Read a picture, path or array (K, H, W) as float32 (C, H, W) in [0, 1]."""
    if isinstance(image, Path):
        picture = decode_image(image)
        try:
            return _read(picture, shape, resize, grey)
        except InputError as error:
            raise InputError(f"{image}: {error}") from None
    if isinstance(image, Image.Image):
        image = _pixels(image, shape, resize, grey)
    if isinstance(image, (np.ndarray, Tensor)):
        return _values(image[None], shape, grey)[0]
    keys = (
        f" of {listing(map(repr, image))}; give its image alone"
        if isinstance(image, Mapping)
        else ""
    )
    raise InputError(
        f"expected a picture, a path, an array or a tensor, got {type(image).__name__}{keys}"
    )


def _pixels(picture: Image.Image, shape: Shape, resize: bool, grey: bool) -> np.ndarray:
    """(C, H, W) uint8."""
    channels, height, width = shape
    picture = opened(picture)
    check_picture(Header(picture.mode, picture.size, False), shape, resize=resize)
    try:
        picture = plain(picture, channels, grey)
    except (ValueError, OSError) as error:  # InputError is one; some modes cannot be converted
        raise InputError(str(error)) from None
    pixels = np.array(picture.resize((width, height), Image.Resampling.LANCZOS))
    return pixels[None] if pixels.ndim == 2 else np.moveaxis(pixels, -1, 0)


def opened(picture: Image.Image) -> Image.Image:
    """The picture, decoded; upright if it comes straight from a file.

    Raises:
        InputError: the file is damaged.
    """
    if not isinstance(picture, ImageFile.ImageFile):
        return picture
    try:
        return upright(picture)
    except Exception as error:  # a damaged picture can raise any error
        raise InputError(f"the picture cannot be decoded: {error}") from None


def as_tensor(array: Array) -> Tensor:
    """A dense tensor on the CPU, without gradients.

    Raises:
        InputError: the array does not hold numbers, or is sparse, or holds none at all ("meta").
    """
    if isinstance(array, Tensor):
        if array.layout != torch.strided or array.is_meta or array.is_quantized:
            raise InputError(f"expected a dense tensor, got {array.layout} on {array.device}")
        return array.detach().cpu()
    try:
        return torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("=")))
    except (TypeError, ValueError):  # objects, texts …
        raise InputError(f"expected an array of numbers, got an array of {array.dtype}") from None


def _values(images: Array, shape: Shape, grey: bool) -> Tensor:
    """(N, K, H, W) -> (N, C, H, W) float32 in [0, 1]."""
    values = as_tensor(images)
    if values.dtype != torch.uint8:
        if not values.is_floating_point():
            raise InputError(f"expected uint8 or floats in [0, 1], got {values.dtype}; convert it")
        values = values.float()
        if not bool(((values >= 0) & (values <= 1)).all()):  # also where NaN
            raise InputError(
                "expected finite values in [0, 1], got values outside; scale the image first"
            )
    values = to_channels(values, shape[0], grey)
    return values.float() / 255 if values.dtype == torch.uint8 else values
