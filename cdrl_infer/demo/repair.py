"""Repaint a part of a picture: the canvas to paint a mask on, and several fillings."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
from PIL import Image

from cdrl_infer.conditions.conditions import on_labels
from cdrl_infer.demo.draw import class_labels
from cdrl_infer.demo.levels import Step, View, drawing, views
from cdrl_infer.demo.pieces import said, uri, working
from cdrl_infer.drawing import CDRLPipelineOutput
from cdrl_infer.errors import InputError
from cdrl_infer.pipeline import CDRLPipeline

NO_PICTURE = said("Draw or upload a picture to start.")
PAINT = "Paint over a part of the picture, then press Fill."


def canvas(picture: Image.Image) -> str:
    """A picture with an empty canvas of the same size over it, to paint a mask on."""
    return (
        f'<div class="cdrl-paint"><img src="{uri(picture)}" alt="the picture to repair">'
        f'<canvas class="cdrl-mask" width="{picture.width}" height="{picture.height}" '
        'aria-label="paint what is to be filled"></canvas></div>'
    )


def read_mask(bits: str, height: int, width: int) -> np.ndarray:
    """The mask of a canvas as (H, W) bool.

    Args:
        bits: "1" or "0" for each pixel, row by row.
        height, width: of the picture.

    Raises:
        InputError: nothing is painted, or the canvas has another size.
    """
    if set(bits) - {"0", "1"} or len(bits) not in (0, height * width):
        raise InputError(
            f"expected a mask of {height * width} pixels, got {len(bits)} characters; load the page again"
        )
    mask = np.array([bit == "1" for bit in bits], dtype=bool)
    if not mask.any():
        raise InputError("expected a painted part to fill, got none; paint on the picture first")
    return mask.reshape(height, width)


def repair(
    pipe: CDRLPipeline,
    picture: Image.Image | None,
    bits: str,
    chosen: Sequence[int],
    stop: threading.Event,
    *,
    num_images: int,
    seed: int | None,
    langevin_steps: int,
) -> Iterator[View]:
    """Fill the painted part in several ways.

    Args:
        pipe: the model.
        picture: of the model's size and mode; None if there is none yet.
        bits: see `read_mask`.
        chosen: the class of the fillings; see `draw.class_labels`.
        stop: ends the work.
        num_images, seed, langevin_steps: see `levels.views`.

    Raises:
        InputError: there is no picture, or see `read_mask` and `levels.views`.
    """
    if picture is None:
        raise InputError("expected a picture, got none; draw or upload one")
    image, attributes = pipe.model.image, pipe.model.labels
    mask = read_mask(bits, image.height, image.width)
    labels = class_labels(attributes, chosen, num_images)
    return views(
        pipe,
        partial(pipe.inpaint, picture, mask, class_labels=labels),
        on_labels(labels, 1.0, attributes, num_images),
        stop,
        num_images=num_images,
        seed=seed,
        langevin_steps=langevin_steps,
    )


def draw_one(
    pipe: CDRLPipeline,
    chosen: Sequence[int],
    stop: threading.Event,
    *,
    seed: int | None,
    langevin_steps: int,
) -> Iterator[tuple[str, str, Image.Image | None]]:
    """Draw a picture to repair; yields a line of status, the canvas and the picture.

    Args:
        pipe: the model.
        chosen: its class; see `draw.class_labels`.
        stop, seed, langevin_steps: see `levels.drawing`, also for the errors.
    """
    draw = partial(pipe, class_labels=class_labels(pipe.model.labels, chosen, 1))
    for item in drawing(pipe, draw, stop, num_images=1, seed=seed, langevin_steps=langevin_steps):
        if isinstance(item, Step):
            yield working(*item), NO_PICTURE, None
        elif isinstance(item, CDRLPipelineOutput):
            picture: Any = item.images[0]
            yield said(PAINT), canvas(picture), picture
