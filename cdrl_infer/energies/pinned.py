"""Inpainting: the known pixels of an image are held at every level, only the others move."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cdrl_infer.energies.base import Energy, Potential
from cdrl_infer.random import RandomSource
from cdrl_infer.schedule import Level, NoiseSchedule


@dataclass(frozen=True)
class PinnedPixels:
    """A noised path of an image, x_0 … x_T, and where it is held.

    Args:
        mask: (B, 1 or C, H, W) bool, True where pixels are to be painted.
        path: (T + 1, B, C, H, W) x_i of the known image.
    """

    mask: Tensor
    path: Tensor

    @classmethod
    def draw(
        cls, image: Tensor, mask: Tensor, schedule: NoiseSchedule, random: RandomSource
    ) -> PinnedPixels:
        """Noise ``image`` (B, C, H, W) level by level: ``x_t = √(1-σ_t²) x_{t-1} + σ_t ε``."""
        x = schedule.level(1, image.device).diffused(image, random.normal(image.shape[1:]))
        path = [x]
        for t in range(1, schedule.num_levels + 1):
            x = schedule.level(t, image.device).noised(x, random.normal(image.shape[1:]))
            path.append(x)
        return cls(mask, torch.stack(path))

    def hold(self, x: Tensor, i: int) -> Tensor:
        """x_i (B, C, H, W) with the known pixels put in place."""
        return torch.where(self.mask, x, self.path[i])


class PinnedEnergy(Energy):
    """``E(y)`` of an image whose known pixels are put in place first, so only the others matter.

    In the known pixels the density is flat: a kernel may leave them anywhere. One level for the whole
    batch.

    Args:
        prior: the energy of a whole image, recovery term included.
        pinned: what is held.
    """

    def __init__(self, prior: Energy, pinned: PinnedPixels) -> None:
        self.prior = prior
        self.pinned = pinned

    def at(self, level: Level) -> PinnedPotential:
        """(B, C, H, W) -> (B,) nats."""
        return PinnedPotential(self.prior.at(level), self.pinned, level)


class PinnedPotential:
    """`PinnedEnergy` at one level."""

    def __init__(self, prior: Potential, pinned: PinnedPixels, level: Level) -> None:
        self.prior = prior
        self.pinned = pinned
        self.level = level

    def __call__(self, y: Tensor) -> Tensor:
        """(B, C, H, W) -> (B,) nats."""
        return self.prior(self.held(y))

    def value_and_grad(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Energies and gradient; the gradient is 0 in the known pixels."""
        value, grad = self.prior.value_and_grad(self.held(y))
        return value, grad * self.pinned.mask

    def held(self, y: Tensor) -> Tensor:
        """y with the known pixels put in place."""
        scale = self.level.scale
        return self.pinned.hold(y / scale, int(self.level.t) - 1) * scale
