"""Inpainting holds the known pixels of an image at every level; only the other pixels move."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cdrl_infer.energies.base import Energy, Potential
from cdrl_infer.random import RandomSource
from cdrl_infer.schedule import Level, NoiseSchedule


@dataclass(frozen=True)
class PinnedPixels:
    """The known image with the noise of every level, x_0 … x_T, and a mask of the unknown pixels.

    Args:
        mask: (B, 1 or C, H, W) bool, True for pixels to paint.
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
        """x_i (B, C, H, W), with the known pixels taken from the path."""
        return torch.where(self.mask, x, self.path[i])


class PinnedEnergy(Energy):
    """``E(y)`` after the known pixels of y are replaced by the known image.

    So the energy does not depend on the known pixels of y, and a kernel may leave any values there. All
    images of a batch have the same level.

    Args:
        prior: the energy of a whole image, with the recovery term.
        pinned: the known pixels.
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
        """y, with the known pixels taken from the known image."""
        scale = self.level.scale
        return self.pinned.hold(y / scale, int(self.level.t) - 1) * scale
