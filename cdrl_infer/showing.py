"""How outputs look in a notebook: grids with labels and energies, tables of scores."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cdrl_infer.errors import shown
from cdrl_infer.images import (
    POINT,
    captioned,
    make_grid,
    scatter,
    to_pil,
    to_points,
    viewing_scale,
)

Pictures = Sequence[Image.Image] | np.ndarray | Tensor
MOST_SHOWN = 100  # images in a notebook
SIDE = 96  # pixels of an enlarged image
MAX_LABEL = 40  # characters


def caption(label: str | tuple[str | None, ...] | None, energy: float) -> str:
    """The label and the energy of an image, a line for each."""
    names = label if isinstance(label, tuple) else (label,)
    text = ", ".join(name for name in names if name is not None)
    return f"{shown(text, MAX_LABEL)}\n{energy:.1f} nats".strip()


def as_pictures(images: Pictures) -> list[Image.Image]:
    """Images in any output type of the pipeline as pictures.

    Raises:
        InputError: the images have neither 1 nor 3 channels.
    """
    if isinstance(images, np.ndarray):
        images = torch.from_numpy(images).permute(0, 3, 1, 2)
    if isinstance(images, Tensor):
        return to_pil(2 * images - 1)
    return list(images)


def are_points(images: Pictures) -> bool:
    """Whether the images are points in the plane."""
    if isinstance(images, (np.ndarray, Tensor)):
        return tuple(images.shape[1:]) in (POINT, (1, 2, 1))
    return all(picture.size == (2, 1) and picture.mode == "L" for picture in images)


def grid(
    images: Pictures,
    captions: Sequence[str] = (),
    columns: int | None = None,
    energies: Tensor | None = None,
) -> Image.Image:
    """One picture of all images, enlarged, with a caption under each; of points, a scatter plot.

    Args:
        images: N images, in any output type of the pipeline.
        captions: N texts, or none.
        columns: number of images in a row; by default the grid is nearly square.
        energies: (N,) the colours of points.

    Raises:
        InputError: the images have neither 1 nor 3 channels.
    """
    if are_points(images):
        return scatter(to_points(images), energies)
    pictures = as_pictures(images)
    scale = viewing_scale(pictures[0], SIDE)
    large = [
        one.resize((one.width * scale, one.height * scale), Image.Resampling.NEAREST)
        for one in pictures
    ]
    if captions:
        narrow = [captioned(one, text) for one, text in zip(large, captions, strict=True)]
        width, height = (max(size) for size in zip(*(one.size for one in narrow), strict=True))
        large = [_on_white(one, width, height) for one in narrow]
    return make_grid(large, columns)


def _on_white(picture: Image.Image, width: int, height: int) -> Image.Image:
    result = Image.new(picture.mode, (width, height), "white")
    result.paste(picture, (0, 0))
    return result


def png(picture: Image.Image) -> bytes:
    """The bytes of a PNG."""
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def gallery(images: Pictures, captions: Sequence[str], energies: Tensor, title: str) -> str:
    """HTML: the images with their captions, side by side, as many as fit; of points, a scatter plot.

    Args:
        images: N images, in any output type of the pipeline.
        captions: N texts; what they hold is escaped.
        energies: (N,) the colours of points.
        title: a line above the images.

    Raises:
        InputError: the images have neither 1 nor 3 channels.
    """
    if are_points(images):
        cells = _figure(scatter(to_points(images), energies), "blue: low energy, orange: high", 384)
    else:
        pictures = as_pictures(images)
        width = pictures[0].width * viewing_scale(pictures[0], SIDE)
        cells = "".join(_figure(*cell, width) for cell in zip(pictures, captions, strict=True))
    row = "display:flex;flex-wrap:wrap;gap:8px"
    return f"<div><div>{escape(title)}</div><div style='{row}'>{cells}</div></div>"


def _figure(picture: Image.Image, text: str, width: int) -> str:
    source = base64.b64encode(png(picture)).decode()
    lines = "<br>".join(escape(line) for line in text.splitlines())
    return (
        "<figure style='margin:0'>"
        f"<img alt='{escape(text)}' width='{width}' style='image-rendering:pixelated' "
        f"src='data:image/png;base64,{source}'>"
        f"<figcaption style='font-size:smaller'>{lines}</figcaption></figure>"
    )


def table(names: Sequence[str], rows: Sequence[Sequence[str]], title: str) -> str:
    """HTML: a table."""
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"<div>{escape(title)}</div><table><tr>{head}</tr>{body}</table>"
