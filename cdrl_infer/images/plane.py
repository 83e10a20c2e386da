"""Points in the plane: images of two grey pixels side by side, such as those of the preset `toy-2d`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

POINT = (1, 1, 2)  # C, H, W of an image that is a point (x₁, x₂)
SIDE, EXTENT = 384, 1.5  # pixels of the plot, which shows the square [-EXTENT, EXTENT]²
LOW, HIGH = (37, 70, 160), (235, 120, 20)  # colours of the lowest and the highest value


def to_points(images: Sequence[Image.Image] | np.ndarray | Tensor) -> Tensor:
    """Images in any output type of the pipeline -> points (N, 2) in [-1, 1]².

    Args:
        images: N pictures, or values in [0, 1], (N, 1, 1, 2) or (N, 1, 2, 1).
    """
    if isinstance(images, (np.ndarray, Tensor)):
        return 2 * torch.as_tensor(images).reshape(-1, 2) - 1
    pixels = np.stack([np.asarray(picture) for picture in images]).reshape(-1, 2)
    return 2 * torch.from_numpy(pixels.astype(np.float32)) / 255 - 1


def scatter(points: Tensor, values: Tensor | None = None) -> Image.Image:
    """A plot of points; x₁ goes right, x₂ goes up, and the frame is the square [-1, 1]².

    Args:
        points: (N, 2); those outside the plot are not shown.
        values: (N,) such as energies: blue is the lowest, orange the highest; None: all blue.
    """
    picture = Image.new("RGB", (SIDE, SIDE), "white")
    pen = ImageDraw.Draw(picture)
    corner = _pixel(torch.tensor([[-1.0, 1.0], [1.0, -1.0]]))
    pen.rectangle([tuple(xy) for xy in corner], outline=(200, 200, 200))
    share = torch.zeros(len(points))
    if values is not None and bool((values != values[0]).any()):
        share = ((values - values.min()) / (values.max() - values.min())).float()
    radius = 1.5 if len(points) > 200 else 3.0
    for (x, y), part in zip(_pixel(points), share.tolist(), strict=True):
        colour = tuple(round(a + part * (b - a)) for a, b in zip(LOW, HIGH, strict=True))
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
    return picture


def _pixel(points: Tensor) -> list[list[float]]:
    """Coordinates in the plane -> in the picture."""
    flipped = points.float().cpu() * torch.tensor([1.0, -1.0])
    found: list[list[float]] = ((flipped / EXTENT + 1) * (SIDE - 1) / 2).tolist()
    return found
