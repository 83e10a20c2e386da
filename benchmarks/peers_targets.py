"""Densities that are known exactly, for comparisons of samplers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Function = Callable[[Tensor], Tensor]  # energies (B, D) -> (B,)
BARRIER = 2.0  # nats between the wells


@dataclass(frozen=True)
class Target:
    """A density that is known exactly.

    Args:
        name: its name, in words.
        energy: minus the logarithm of the density, up to a constant.
        stiffness: the largest curvature of the energy at a mode.
        variance: (D,), exact.
        judged: the coordinates whose variance shows the error of a step: the stiffest.
        draw: exact draws, (N, D) float32; the mean is 0.
    """

    name: str
    energy: Function
    stiffness: float
    variance: Tensor
    judged: slice
    draw: Callable[[int, torch.Generator], Tensor]


def gaussian(condition: float = 100.0, dim: int = 10) -> Target:
    """A Gaussian with variances from ``1 / condition`` to 1, evenly in the logarithm."""
    variance = torch.logspace(-math.log10(condition), 0, dim, dtype=torch.float64)
    precision = variance.reciprocal().float()

    def draw(count: int, generator: torch.Generator) -> Tensor:
        return torch.randn(count, dim, generator=generator) * variance.sqrt().float()

    return Target(
        f"Gaussian in {dim} dimensions, condition number {condition:g}",
        lambda y: 0.5 * (y.square() * precision).sum(1),
        condition,
        variance,
        slice(0, 1),
        draw,
    )


def double_well(dim: int = 2) -> Target:
    """``2 Σ_d (y_d² - 1)²``: 2^dim modes with 2 nats between neighbours.

    The coordinates are independent, so sums over a fine grid give the moments and the draws.
    """
    grid = torch.linspace(-3, 3, 200_001, dtype=torch.float64)
    mass = (-BARRIER * (grid.square() - 1).square()).softmax(0)
    share = mass.cumsum(0)

    def draw(count: int, generator: torch.Generator) -> Tensor:
        u = torch.rand(count, dim, generator=generator, dtype=torch.float64)
        return grid[torch.searchsorted(share, u).clamp(max=len(grid) - 1)].float()

    return Target(
        f"double well in {dim} dimensions, {BARRIER:g} nats high",
        lambda y: BARRIER * (y.square() - 1).square().sum(1),
        8 * BARRIER,
        (mass * grid.square()).sum().expand(dim),
        slice(0, dim),
        draw,
    )
