"""Fully connected networks for images of a few values, such as points in the plane."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cdrl_infer.errors import ConfigError
from cdrl_infer.networks.base import Backbone, Network
from cdrl_infer.networks.gaussian import checked_variance, gaussian_constants
from cdrl_infer.networks.layers import (
    LabelEmbedding,
    add_labels,
    sinusoidal_embedding,
    start_at_zero,
)
from cdrl_infer.schedule import Level

FREQUENCIES = 16  # sines (and as many cosines) in the embedding of the noise level
WAVES = 4  # sines (and as many cosines) of each input value


class ResidualMLP(nn.Module):
    """Residual blocks ``h + B silu(A silu(h) + shift)`` between linear layers; the output starts at 0.

    The first layer sees the values x and ``sin(πkx)``, ``cos(πkx)`` for k = 1 … ``waves``. Without
    them, the network learns edges slowly (Tancik et al., NeurIPS 2020).

    Args:
        inputs: D, the number of input values.
        outputs: the number of output values.
        width: number of values in h, and in the embedding of noise level and labels.
        num_blocks: number of blocks, at least 1.
        num_classes: values of each attribute; () for an unconditional network.
        waves: sines (and as many cosines) of each input value.

    Raises:
        ConfigError: a size is not positive, or ``waves`` is negative.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        width: int,
        num_blocks: int,
        num_classes: tuple[int, ...],
        waves: int = WAVES,
    ) -> None:
        super().__init__()
        if waves < 0:
            raise ConfigError(f"waves must be at least 0, got {waves}")
        if min(inputs, outputs, width, num_blocks, *num_classes) < 1:
            raise ConfigError(
                "MLP sizes must be positive, got "
                f"inputs={inputs}, width={width}, num_blocks={num_blocks}, "
                f"num_classes={tuple(num_classes)}"
            )
        self.embed_noise = nn.Linear(2 * FREQUENCIES, width)
        self.embed_labels = LabelEmbedding(num_classes, width) if num_classes else None
        self.shifts = nn.Linear(width, num_blocks * width)
        self.num_waves = waves
        self.stem = nn.Linear(inputs * (1 + 2 * waves), width)
        self.enter = nn.ModuleList([nn.Linear(width, width) for _ in range(num_blocks)])
        self.leave = nn.ModuleList([nn.Linear(width, width) for _ in range(num_blocks)])
        self.head = nn.Linear(width, outputs)
        start_at_zero(self.head)

    def condition(self, logsnr: Tensor, labels: Tensor | None) -> list[Tensor]:
        """The shift of each block, (B or 1, width)."""
        sines = sinusoidal_embedding(logsnr.reshape(-1), FREQUENCIES)
        e = self.embed_noise(sines.to(self.embed_noise.weight.dtype))
        e = F.silu(add_labels(e, self.embed_labels, labels))
        return list(self.shifts(e).chunk(len(self.enter), dim=1))

    def forward(self, x: Tensor, shifts: list[Tensor]) -> Tensor:
        """(B, D) -> (B, outputs)."""
        counts = range(1, self.num_waves + 1)
        waves = [f(math.pi * k * x) for k in counts for f in (torch.sin, torch.cos)]
        h = self.stem(torch.cat([x, *waves], dim=1))
        for enter, leave, shift in zip(self.enter, self.leave, shifts, strict=True):
            h = h + leave(F.silu(enter(F.silu(h)) + shift))
        out: Tensor = self.head(F.silu(h))
        return out


class MLP(Backbone):
    """A `ResidualMLP` from all values of an image to all values of an image; its output starts at 0.

    Args:
        in_channels: image channels.
        num_pixels: height times width of an image.
        width: number of values in the hidden layers.
        num_blocks: number of residual blocks, at least 1.
        num_classes: values of each attribute; () for an unconditional network.

    Raises:
        ConfigError: a size is not positive.
    """

    def __init__(
        self,
        in_channels: int = 1,
        num_pixels: int = 2,
        width: int = 64,
        num_blocks: int = 2,
        num_classes: tuple[int, ...] = (),
    ) -> None:
        super().__init__()
        self.in_channels, self.num_classes = in_channels, tuple(num_classes)
        self.num_pixels = num_pixels
        values = in_channels * num_pixels
        self.mlp = ResidualMLP(values, values, width, num_blocks, self.num_classes)

    def condition(self, logsnr: Tensor, labels: Tensor | None = None) -> list[Tensor]:
        """The shift of each block."""
        return self.mlp.condition(logsnr, labels)

    def forward(self, x: Tensor, condition: list[Tensor]) -> Tensor:
        """(B, C, H, W) -> the same shape, given the output of `condition`."""
        out: Tensor = self.mlp(x.flatten(1), condition)
        return out.reshape(x.shape)


class MLPEnergy(Network):
    """``log p(y) = -½‖x‖²/(α²v + σ̄²) + c h(x)/σ̄`` in nats, ``x = y/m``, ``c = √(α²v/(α²v + σ̄²))``.

    The first term is the density of noised Gaussian data. The second is the rest, where h is a
    `ResidualMLP`. As in `InnerProductEnergy`, the scale keeps the slope of h of order one at every level.

    Args:
        in_channels: image channels.
        num_pixels: height times width of an image.
        width: number of values in the hidden layers.
        num_blocks: number of residual blocks, at least 1.
        num_classes: values of each attribute; () for an unconditional network.
        data_variance: v, the mean square of the data's values (in [-1, 1]).

    Raises:
        ConfigError: a value out of range.
    """

    output_unit: Literal["nats"] = "nats"

    def __init__(
        self,
        in_channels: int = 1,
        num_pixels: int = 2,
        width: int = 128,
        num_blocks: int = 3,
        num_classes: tuple[int, ...] = (),
        data_variance: float = 0.5,
    ) -> None:
        super().__init__()
        self.data_variance = checked_variance(data_variance)
        self.in_channels, self.num_classes = in_channels, tuple(num_classes)
        self.num_pixels = num_pixels
        self.mlp = ResidualMLP(in_channels * num_pixels, 1, width, num_blocks, self.num_classes)

    def condition(
        self, level: Level, labels: Tensor | None = None
    ) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
        """The constants of a level: the blocks' shifts, 1/m, 1/(α²v + σ̄²) and c/σ̄."""
        conditioning = self.mlp.condition(level.logsnr, labels)
        return conditioning, *gaussian_constants(level, self.data_variance)

    def forward(self, y: Tensor, condition: tuple[list[Tensor], Tensor, Tensor, Tensor]) -> Tensor:
        """(B, C, H, W) -> (B,) log-density in nats, up to a constant of the level and labels."""
        shifts, inverse_scale, precision, weight = condition
        x = y.flatten(1) * inverse_scale.reshape(-1, 1)
        h: Tensor = self.mlp(x, shifts).to(x.dtype)[:, 0]
        return weight * h - 0.5 * precision * torch.sum(x * x, dim=1)
