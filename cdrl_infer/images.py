"""Tensors <-> pictures. A tensor of images is (B, C, H, W) float in [-1, 1], not yet clamped."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from cdrl_infer.errors import InputError, NumericalError

MODES = {1: "L", 3: "RGB"}
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF")  # reading some others runs programs
SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")  # of files in these


def to_unit(images: Tensor) -> Tensor:
    """[-1, 1] -> [0, 1], clamped; same shape.

    Raises:
        NumericalError: a value is NaN.
    """
    if bool(images.isnan().any()):
        raise NumericalError("expected finite images, found NaN")
    return (0.5 * images + 0.5).clamp(0, 1)


def to_uint8(images: Tensor) -> Tensor:
    """[-1, 1] -> 0 … 255, clamped and rounded to the nearest integer; same shape."""
    return (to_unit(images) * 255).round().to(torch.uint8)


def to_pil(images: Tensor) -> list[Image.Image]:
    """(B, C, H, W) in [-1, 1] -> B pictures, grey for C = 1, RGB for C = 3.

    Raises:
        InputError: the tensor does not have four dimensions, or C is neither 1 nor 3.
    """
    if images.ndim != 4 or images.shape[1] not in MODES:
        raise InputError(
            f"expected images (B, C, H, W) of 1 or 3 channels, got shape {tuple(images.shape)}"
        )
    array = to_uint8(images).permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(a[:, :, 0] if a.shape[2] == 1 else a) for a in array]


def image_files(folder: Path) -> list[Path]:
    """The files with the suffix of a picture in a folder and its sub-folders, sorted."""
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)


class Header(NamedTuple):
    """The facts of a picture that are known before it is decoded."""

    mode: str  # as Pillow names it: "L", "RGB", "RGBA" …
    size: tuple[int, int]  # width, height


@contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[Image.Image]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS) as image:
                yield image
    except Exception as error:  # a damaged picture can raise any error
        raise InputError(f"{path} cannot be read as an image: {error}") from error


def read_header(path: str | os.PathLike[str]) -> Header:
    """Mode and size of the picture in a file; its pixels are not read.

    Raises:
        InputError: see `decode_image`.
    """
    with _opened(path) as image:
        return Header(image.mode, image.size)


def decode_image(path: str | os.PathLike[str]) -> Image.Image:
    """The picture in a file as it is stored; one that is too large is refused before it is decoded.

    Raises:
        InputError: the file is not a picture in one of `FORMATS`, or has more pixels than Pillow's limit
            against decompression bombs.
    """
    with _opened(path) as image:
        image.load()
        return image


def open_image(path: str | os.PathLike[str]) -> Image.Image:
    """The picture in a file, converted to grey (mode "L") or RGB.

    Raises:
        InputError: see `decode_image`; or the picture has more than 8 bits per channel.
    """
    image = decode_image(path)
    mode = image.mode
    picture = image.convert("L" if mode in ("1", "L") else "RGB")
    if mode.startswith(("I", "F")):  # convert() cuts all values over 255
        raise InputError(
            f"{path}: expected 8 bits per channel, got mode {mode!r}; convert it to 8-bit first"
        )
    return picture


def to_numpy(unit: Tensor) -> np.ndarray:
    """(B, C, H, W) -> (B, H, W, C) float32."""
    array: np.ndarray = unit.permute(0, 2, 3, 1).cpu().numpy()
    return array


def check_picture(header: Header, shape: tuple[int, int, int], *, resize: bool = False) -> None:
    """Refuse a picture that `read_images` would refuse, before it is decoded.

    Raises:
        InputError: its mode cannot be converted without loss, or (without ``resize``) it has another
            size.
    """
    channels, height, width = shape
    mode = MODES.get(channels)
    if mode is None:
        raise InputError(
            f"expected images of {channels} channels, and pictures have 1 or 3; give an array"
        )
    if header.mode not in ("1", "L", "P", "RGB") or (mode == "L" and header.mode in ("P", "RGB")):
        raise InputError(
            f"expected a picture of mode {mode} for {channels} channels, got {header.mode}; "
            f"convert it first: image.convert({mode!r})"
        )
    _check_size(header.size, (width, height), resize)


def read_images(given: Any, shape: tuple[int, int, int], *, resize: bool = False) -> Tensor:
    """Convert a caller's images to (N, C, H, W) float32 in [0, 1]; a single image has N = 1.

    Args:
        given: a picture; an array (H, W), (H, W, C) or (N, H, W, C); a tensor (C, H, W) or
            (N, C, H, W); or a list of these. Integers are 0 … 255 (uint8), floats in [0, 1].
        shape: the expected (C, H, W).
        resize: resize pictures of another size, by Lanczos filtering; their aspect ratio may change.

    Raises:
        InputError: the size, the type or the number of channels is another, or a value is out of range.
    """
    if isinstance(given, (list, tuple)):
        if not given:
            raise InputError("expected at least one image, got an empty list")
        return torch.cat([read_images(one, shape, resize=resize) for one in given])
    channels, height, width = shape
    if isinstance(given, Image.Image):
        check_picture(Header(given.mode, given.size), shape, resize=resize)
        picture = given.convert(MODES[channels])
        given = np.array(picture.resize((width, height), Image.Resampling.LANCZOS))
    if isinstance(given, np.ndarray):
        if given.ndim == 2:
            given = given[..., None]
        if given.ndim in (3, 4):
            given = np.moveaxis(given, -1, -3)
        given = _tensor(given)
    if not isinstance(given, Tensor):
        raise InputError(f"expected a picture, an array or a tensor, got {type(given).__name__}")
    values = given.detach().cpu()
    if values.ndim == 3:
        values = values[None]
    if values.ndim != 4 or tuple(values.shape[1:]) != shape or not len(values):
        raise InputError(
            f"expected images of {channels} channels, {height} x {width}, got shape "
            f"{tuple(values.shape[1:] if values.ndim == 4 else values.shape)}; pictures can be resized"
        )
    if values.dtype == torch.uint8:
        return values.float() / 255
    if not values.is_floating_point():
        raise InputError(f"expected uint8 or floats in [0, 1], got {values.dtype}")
    values = values.float()
    if not bool(((values >= 0) & (values <= 1)).all()):  # also where NaN
        raise InputError(
            "expected finite values in [0, 1], got values outside; scale the image first"
        )
    return values


def each_image(
    given: Any, shape: tuple[int, int, int], *, resize: bool = False
) -> Iterator[Tensor]:
    """Yield a caller's images one by one, (C, H, W) float32 in [0, 1]; each is read when it is needed.

    Args:
        given: see `read_images`; or another iterable, such as a generator or a data set.
        shape, resize: see `read_images`.

    Raises:
        InputError: see `read_images`, with the image's number.
    """
    for k, image in enumerate(_flat(given)):
        try:
            yield read_images(image, shape, resize=resize)[0]
        except InputError as error:
            raise InputError(f"image {k}: {error}") from None


def _flat(given: Any) -> Iterator[Any]:
    if isinstance(given, (np.ndarray, Tensor)):
        yield from given if given.ndim == 4 else [given]
    elif isinstance(given, (Image.Image, str, bytes, Mapping)) or not _is_iterable(given):
        yield given
    else:
        for item in given:
            yield from _flat(item)


def _is_iterable(given: Any) -> bool:
    return hasattr(given, "__iter__") or hasattr(given, "__getitem__")


def read_masks(given: Any, shape: tuple[int, int, int], *, resize: bool = False) -> Tensor:
    """Convert a caller's masks to (N, 1, H, W) bool, True = paint here; a single mask has N = 1.

    Args:
        given: a picture (at least half white = paint); an array or tensor (H, W), (N, H, W) or
            (N, 1, H, W) of bool, or of 0 and 1, or of 0 and 255; or a list of these.
        shape: (C, H, W) of the images.
        resize: resize pictures of another size; each pixel takes the value of the nearest one.

    Raises:
        InputError: the size, the type or a value is not one of these, or a mask is empty.
    """
    if isinstance(given, (list, tuple)):
        if not given:
            raise InputError("expected at least one mask, got an empty list")
        return torch.cat([read_masks(one, shape, resize=resize) for one in given])
    height, width = shape[1:]
    if isinstance(given, Image.Image):
        _check_size(given.size, (width, height), resize)
        picture = given.convert("L").resize((width, height), Image.Resampling.NEAREST)
        given = np.asarray(picture) >= 128
    if isinstance(given, np.ndarray):
        given = _tensor(given)
    if not isinstance(given, Tensor):
        raise InputError(f"expected a mask as picture, array or tensor, got {type(given).__name__}")
    values = given.detach().cpu()
    if values.ndim == 2:
        values = values[None]
    if values.ndim == 3:
        values = values[:, None]
    if values.ndim != 4 or tuple(values.shape[1:]) != (1, height, width) or not len(values):
        raise InputError(
            f"expected a mask of {height} x {width} like the image, got shape {tuple(given.shape)}"
        )
    mask = values != 0
    if not bool(((values == 0) | (values == 1) | (values == 255)).all()):
        raise InputError("expected a mask of bool, of 0 and 1, or of 0 and 255, got other values")
    if not bool(mask.flatten(1).any(1).all()):
        raise InputError("a mask is empty: expected some pixels to paint (1, or white)")
    return mask


def _tensor(array: np.ndarray) -> Tensor:
    try:
        return torch.from_numpy(array.copy())
    except (TypeError, ValueError):  # objects, texts, foreign byte orders …
        raise InputError(f"expected an array of numbers, got an array of {array.dtype}") from None


def _check_size(size: tuple[int, int], expected: tuple[int, int], resize: bool) -> None:
    if size != expected and not resize:
        raise InputError(
            f"expected a picture of {expected[0]} x {expected[1]} pixels (width x height), got "
            f"{size[0]} x {size[1]}; resize=True (--resize) fits it"
        )


def make_grid(
    images: Sequence[Image.Image], columns: int | None = None, padding: int = 2, upscale: int = 1
) -> Image.Image:
    """Pictures of one size, row by row, on a white background.

    Args:
        images: at least one.
        columns: pictures in a row; by default the grid is nearly square.
        padding: white pixels around each picture, after upscaling.
        upscale: each pixel becomes a square of this width, without smoothing.

    Raises:
        InputError: there are no pictures, or their sizes or modes differ.
    """
    kinds = sorted({(image.mode, image.size) for image in images})
    if len(kinds) != 1:
        raise InputError(f"expected pictures of one size and mode, got {kinds}")
    mode, (width, height) = kinds[0]
    columns = min(columns or math.ceil(math.sqrt(len(images))), len(images))
    rows = math.ceil(len(images) / columns)
    width, height = width * upscale, height * upscale
    size = (columns * (width + padding) + padding, rows * (height + padding) + padding)
    grid = Image.new(mode, size, "white")
    for k, image in enumerate(images):
        row, column = divmod(k, columns)
        corner = (padding + column * (width + padding), padding + row * (height + padding))
        grid.paste(image.resize((width, height), Image.Resampling.NEAREST), corner)
    return grid


def viewing_scale(image: Image.Image, pixels: int = 64) -> int:
    """The integer factor that enlarges a small picture to about ``pixels``; 1 for a large one."""
    return max(1, pixels // max(image.size))


def captioned(image: Image.Image, text: str, height: int = 14) -> Image.Image:
    """The picture with a line of text under it; it gets wider if the text needs it."""
    needed = math.ceil(ImageDraw.Draw(image).textlength(text)) + 8
    result = Image.new(image.mode, (max(image.width, needed), image.height + height), "white")
    result.paste(image, (0, 0))
    ImageDraw.Draw(result).text((4, image.height), text, fill="black")
    return result


def save_png(image: Image.Image, path: Path, metadata: Mapping[str, str]) -> None:
    """Write a PNG with one text chunk per entry of ``metadata``."""
    info = PngInfo()
    for key, value in metadata.items():
        info.add_text(key, value)
    image.save(path, format="PNG", pnginfo=info)


def save_gif(frames: Sequence[Image.Image], path: Path, milliseconds: Sequence[int]) -> None:
    """Write an endless animation; each frame has its own duration."""
    frames[0].save(
        path,
        format="GIF",
        save_all=True,
        append_images=frames[1:],
        duration=list(milliseconds),
        loop=0,
    )
