"""A caller's masks to tensors: where to paint."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cdrl_infer.errors import InputError
from cdrl_infer.images.files import decode_image
from cdrl_infer.images.given import as_tensor, check_size, opened
from cdrl_infer.images.rules import alpha

ONE_COLOUR = 32  # grey levels that a brush may vary by


def read_masks(given: Any, shape: tuple[int, int, int], *, resize: bool = False) -> Tensor:
    """Convert a caller's masks to (N, 1, H, W) bool, True = paint here; a single mask has N = 1.

    A picture without transparent pixels says "paint" where it is at least half white. If it holds only
    0 and 1, 1 says "paint". A picture with transparent pixels is a layer with the strokes of a brush of
    one colour: it says "paint" where it is at least half opaque.

    Args:
        given: a picture or its path; an array or a tensor (H, W), (H, W, 1), (N, H, W) or (N, 1, H, W)
            of bool, or of 0 and 1, or of 0 and 255; or a list of these.
        shape: (C, H, W) of the images.
        resize: resize pictures of another size; each pixel takes the value of the nearest one.

    Raises:
        InputError: the size, the type or a value is not one of these, or a mask is empty.
    """
    if isinstance(given, (list, tuple)):
        if not given:
            raise InputError("expected at least one mask, got an empty list")
        try:
            return torch.cat([read_masks(one, shape, resize=resize) for one in given])
        except RecursionError:
            raise InputError("expected masks, got lists within lists") from None
    height, width = shape[1:]
    if isinstance(given, (str, os.PathLike)):
        picture = decode_image(given)
        try:
            return read_masks(picture, shape, resize=resize)
        except InputError as error:
            raise InputError(f"{given}: {error}") from None
    if isinstance(given, Image.Image):
        picture = opened(given)
        check_size(picture.size, (width, height), resize)
        painted = Image.fromarray(_painted(picture))
        given = np.asarray(painted.resize((width, height), Image.Resampling.NEAREST))
    if not isinstance(given, (np.ndarray, Tensor)):
        raise InputError(
            f"expected a mask as picture, path, array or tensor, got {type(given).__name__}"
        )
    values = as_tensor(given)
    if values.ndim == 2:
        values = values[None]
    elif values.ndim == 3 and tuple(values.shape) == (height, width, 1):
        values = values.movedim(-1, 0)
    if values.ndim == 3:
        values = values[:, None]
    if values.ndim != 4 or tuple(values.shape[1:]) != (1, height, width) or not len(values):
        raise InputError(
            f"expected a mask of {height} x {width} like the image, got shape {tuple(given.shape)}"
        )
    mask = _paint(values)
    if not bool(mask.flatten(1).any(1).all()):
        raise InputError("a mask is empty: expected some pixels to paint (1, or white)")
    return mask


def _paint(values: Tensor) -> Tensor:
    if not bool(((values == 0) | (values == 1) | (values == 255)).all()):
        raise InputError("expected a mask of bool, of 0 and 1, or of 0 and 255, got other values")
    return values != 0


def _painted(picture: Image.Image) -> np.ndarray:
    """(H, W) bool."""
    opacity = alpha(picture)
    if opacity is None:
        if picture.mode.startswith(("I", "F")):
            return _paint(as_tensor(np.asarray(picture))).numpy()
        values = np.asarray(picture.convert("L"))
        return np.asarray(values >= (1 if values.max() == 1 else 128))
    painted = np.asarray(opacity) >= 128
    colours = np.asarray(picture.convert("RGBA"), dtype=int)[painted, :3]
    if len(colours) and int(np.ptp(colours, axis=0).max()) > ONE_COLOUR:
        raise InputError(
            "expected the transparent mask to hold strokes of one colour, got several colours, which may "
            "mean to paint or to keep; save it without transparency, white = paint, black = keep"
        )
    return painted
