"""Photographs of any size become images of one size."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from cdrl_infer.images import find_images, read_header

Resize = Literal["crop", "pad"]
LARGEST, USUAL = 64, (32, 32)  # pictures of a larger side become images of the usual size


@dataclass(frozen=True)
class Fit:
    """Scale pictures to one size, without stretching them.

    Args:
        size: height and width in pixels.
        how: "crop": the picture covers the size, and what stands out on two sides is cut off; "pad": the
            whole picture is inside, and two sides are filled with black.
    """

    size: tuple[int, int]
    how: Resize = "crop"

    def picture(self, picture: Image.Image) -> Image.Image:
        """The picture at that size; one of that size is returned as it is."""
        size = self.size[::-1]
        if picture.size == size:
            return picture
        change = ImageOps.fit if self.how == "crop" else ImageOps.pad
        return change(picture, size, Image.Resampling.LANCZOS)

    def images(self, images: Tensor) -> Tensor:
        """(N, C, H, W) uint8 images at that size."""
        if tuple(images.shape[2:]) == self.size:
            return images
        fitted = np.empty((*images.shape[:2], *self.size), dtype=np.uint8)
        for old, new in zip(images.numpy(), fitted, strict=True):
            for channel, target in zip(old, new, strict=True):
                target[:] = np.asarray(self.picture(Image.fromarray(channel)))
        return torch.from_numpy(fitted)


def guessed_size(source: str, usual: tuple[int, int]) -> tuple[tuple[int, int] | None, str]:
    """The size for the pictures of a folder, and why; None if they can stay as they are.

    Args:
        source: the data; other sources than folders have images of one size.
        usual: the size for pictures that are large or differ.
    """
    sizes = set()
    if Path(source).is_dir():
        sizes = {read_header(file).size for file in find_images(Path(source)).files}
    if not sizes or (len(sizes) == 1 and max(max(sizes)) <= LARGEST):
        return None, ""
    (w0, h0), (w1, h1) = min(sizes), max(sizes)
    found = (
        f"{h0} x {w0}" if len(sizes) == 1 else f"{len(sizes)} sizes from {h0} x {w0} to {h1} x {w1}"
    )
    return usual, f"pictures of {found}"
