"""The checkerboard in the plane: data without a file, whose density is known.

A point is an image of two pixels, so everything that trains, samples and stores images works with it. The
density is that of the usual toy (a 4 x 4 board, uniform on its 8 dark squares), scaled to [-1, 1]².
"""

from __future__ import annotations

import torch
from torch import Tensor

from cdrl_infer.model import ImageShape
from cdrl_train.data.image_set import ImageSet, no_images
from cdrl_train.data.registry import Source

POINT = ImageShape(channels=1, height=1, width=2)
SQUARES = 4  # on a side of the board


def checkerboard() -> ImageSet:
    """All 32,768 dark points of a board of 256 x 256; dequantised, each is a draw of the density."""
    value = torch.arange(256) * SQUARES // 256
    dark = ((value[:, None] + value) % 2 == 0).nonzero()
    return ImageSet(dark.to(torch.uint8).reshape(-1, *POINT.shape))


def draw(num: int, generator: torch.Generator) -> Tensor:
    """(num, 1, 1, 2) exact and independent draws, in [-1, 1]."""
    points = checkerboard().images
    chosen = points[torch.randint(len(points), (num,), generator=generator)].float()
    return (chosen + torch.rand(chosen.shape, generator=generator)) / 128 - 1


class Checkerboard(Source):
    """``checkerboard``: every split has the same points."""

    def read(self, rest: str, split: str, in_memory: int) -> ImageSet:
        """Make the points; the arguments do not matter."""
        return checkerboard()

    def empty(self, rest: str) -> ImageSet:
        """No points."""
        return no_images(POINT)


CHECKERBOARD = Checkerboard()
