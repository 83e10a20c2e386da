"""Densities of the plane to learn: draws without a file, as images of two pixels like the checkerboard.

The points lie in [-1, 1]² on the grid of 256 x 256 grey levels, so they are stored like images; a batch
adds the noise of one grey level again.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from cdrl_infer.errors import InputError, did_you_mean, listing
from cdrl_train.data.checkerboard import POINT
from cdrl_train.data.image_set import ImageSet, no_images
from cdrl_train.data.registry import Source

COUNT = {"train": 50_000, "test": 10_000}
SEEDS = {"train": 0, "test": 1}
CLUSTERS = ((0.0, 0.5), (-0.45, -0.3), (0.45, -0.3))  # centres
CLUSTER_SPREAD = 0.12
RADII, RING_SPREAD = (0.2, 0.4, 0.6, 0.8), 0.03
ARMS = 5


def clusters(n: int, generator: torch.Generator) -> Tensor:
    """Three equal Gaussians, (n, 2)."""
    centres = torch.tensor(CLUSTERS)[torch.randint(3, (n,), generator=generator)]
    return centres + CLUSTER_SPREAD * torch.randn(n, 2, generator=generator)


def circles(n: int, generator: torch.Generator) -> Tensor:
    """Four circles with equal shares and Gaussian radii, (n, 2)."""
    radius = torch.tensor(RADII)[torch.randint(4, (n,), generator=generator)]
    radius = radius + RING_SPREAD * torch.randn(n, generator=generator)
    angle = 2 * math.pi * torch.rand(n, generator=generator)
    return radius[:, None] * torch.stack([angle.cos(), angle.sin()], 1)


def pinwheel(n: int, generator: torch.Generator) -> Tensor:
    """Five arms that bend more the further out they are, (n, 2)."""
    noise = torch.randn(n, 2, generator=generator)
    radius, side = 0.45 + 0.13 * noise[:, 0], 0.045 * noise[:, 1]
    arm = torch.randint(ARMS, (n,), generator=generator)
    angle = 2 * math.pi * arm / ARMS + 1.4 * (2 * radius).exp() / 2
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([radius * cos - side * sin, radius * sin + side * cos], 1)


def bimodal(n: int, generator: torch.Generator) -> Tensor:
    """Pairs (x, y) for regression, (n, 2): x is uniform, y lies on one of two noisy `branches`."""
    x = 1.8 * torch.rand(n, generator=generator) - 0.9
    upper = torch.rand(n, generator=generator) < 0.6
    low, high, spread = branches(x)
    y = torch.where(upper, high, low) + spread * torch.randn(n, generator=generator)
    return torch.stack([x, y], 1)


def branches(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Means of the lower branch (share 0.4) and the upper (0.6), and their spread, at x; all like x."""
    middle = 0.25 * (3 * x).sin()
    return middle - 0.4 * x.abs(), middle + 0.4 * x.abs(), 0.04 + 0.03 * (1 + x)


DRAW: dict[str, Callable[[int, torch.Generator], Tensor]] = {
    "clusters": clusters,
    "circles": circles,
    "pinwheel": pinwheel,
    "bimodal": bimodal,
}


def points(name: str, n: int, generator: torch.Generator) -> Tensor:
    """(n, 2) draws in [-1, 1]²; those outside, which are rare, are drawn again."""
    drawn = DRAW[name](n, generator)
    while bool((outside := (drawn.abs() >= 1).any(1)).any()):
        drawn[outside] = DRAW[name](int(outside.sum()), generator)
    return drawn


class Plane(Source):
    """``plane:NAME`` with a NAME in `DRAW`: 50,000 draws for training and 10,000 others for tests."""

    def read(self, rest: str, split: str, in_memory: int) -> ImageSet:
        """Draw the points."""
        self._check(rest)
        generator = torch.Generator().manual_seed(SEEDS[split])
        values = ((points(rest, COUNT[split], generator) + 1) * 128).clamp(0, 255)
        return ImageSet(values.to(torch.uint8).reshape(-1, *POINT.shape))

    def empty(self, rest: str) -> ImageSet:
        """No points."""
        self._check(rest)
        return no_images(POINT)

    def _check(self, rest: str) -> None:
        if rest not in DRAW:
            raise InputError(
                f"unknown set of the plane {rest!r:.60}, expected plane:NAME with one of the names "
                f"{listing(DRAW)}{did_you_mean(rest, DRAW)}"
            )


PLANE = Plane()
