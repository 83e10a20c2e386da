"""Tensors to pictures. A tensor of images is (B, C, H, W) float in [-1, 1], not yet clamped."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from cdrl_infer.errors import InputError, NumericalError
from cdrl_infer.images.rules import MODES


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


def to_numpy(unit: Tensor) -> np.ndarray:
    """(B, C, H, W) -> (B, H, W, C) float32."""
    array: np.ndarray = unit.permute(0, 2, 3, 1).cpu().numpy()
    return array


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
    """The picture with lines of text under it; it gets wider if the text needs it."""
    lines = text.split("\n")
    pen = ImageDraw.Draw(image)
    needed = math.ceil(max(map(pen.textlength, lines))) + 8
    size = (max(image.width, needed), image.height + height * len(lines))
    result = Image.new(image.mode, size, "white")
    result.paste(image, (0, 0))
    for k, line in enumerate(lines):
        ImageDraw.Draw(result).text((4, image.height + k * height), line, fill="black")
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
