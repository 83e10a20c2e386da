"""A small U-Net for small machines. It folds pixels into channels and has no normalisation layers.

Score matching of an energy needs second derivatives; this network is cheap to differentiate twice.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cdrl_infer.errors import ConfigError
from cdrl_infer.networks.activations import silu
from cdrl_infer.networks.base import Backbone
from cdrl_infer.networks.layers import LabelEmbedding, add_labels, noise_angle, start_at_zero

Conditioning = list[tuple[Tensor, Tensor]]


class ModulatedBlock(nn.Module):
    """``x + conv(silu(conv(silu(x)) · (1 + a) + b))``, at first the identity; a and b embed the level."""

    def __init__(self, width: int, embedding_dim: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.modulation = nn.Linear(embedding_dim, 2 * width)
        start_at_zero(self.conv2)
        start_at_zero(self.modulation)

    def condition(self, embedding: Tensor) -> tuple[Tensor, Tensor]:
        """(B, embedding_dim) -> scale and shift, each (B, width, 1, 1)."""
        a, b = self.modulation(embedding)[:, :, None, None].chunk(2, dim=1)
        return 1 + a, b

    def forward(self, x: Tensor, condition: tuple[Tensor, Tensor]) -> Tensor:
        """(B, width, H, W) -> the same."""
        scale, shift = condition
        h: Tensor = self.conv1(silu(x)) * scale + shift
        out: Tensor = x + self.conv2(silu(h))
        return out


def _members(group: nn.Module) -> Iterator[Any]:
    """The blocks of one resolution."""
    return iter(group.children())


class PatchUNet(Backbone):
    """U-Net on blocks of ``patch_size``² pixels; its output has the shape of its input and starts at 0.

    Args:
        in_channels: image channels.
        widths: channels at each resolution, halved (average pooling) from one to the next.
        num_blocks: residual blocks per resolution, on the way down and again on the way up.
        patch_size: side of the blocks of pixels that become channels; the first resolution is
            H / patch_size.
        embedding_dim: width of the noise-level and label embedding.
        num_classes: values of each attribute; () for an unconditional network.

    Raises:
        ConfigError: a size is not positive.
    """

    def __init__(
        self,
        in_channels: int = 1,
        widths: tuple[int, ...] = (64, 112),
        num_blocks: int = 2,
        patch_size: int = 2,
        embedding_dim: int = 128,
        num_classes: tuple[int, ...] = (),
    ) -> None:
        super().__init__()
        widths, num_classes = tuple(widths), tuple(num_classes)
        sizes = (in_channels, num_blocks, patch_size, embedding_dim, *widths, *num_classes)
        if not widths or min(sizes) < 1:
            raise ConfigError(f"PatchUNet sizes must be positive, got {sizes}, widths {widths}")
        self.in_channels, self.num_classes = in_channels, num_classes
        self.size_multiple = patch_size * (1 << (len(widths) - 1))
        self.patch_size = patch_size
        self.frequencies = 32
        self.embed1 = nn.Linear(2 * self.frequencies, embedding_dim)
        self.embed2 = nn.Linear(embedding_dim, embedding_dim)
        self.labels = LabelEmbedding(num_classes, embedding_dim) if num_classes else None
        folded = in_channels * patch_size**2
        self.stem = nn.Conv2d(folded, widths[0], 3, padding=1)
        pairs = list(itertools.pairwise(widths))

        def blocks() -> nn.ModuleList:
            return nn.ModuleList(
                nn.ModuleList(ModulatedBlock(w, embedding_dim) for _ in range(num_blocks))
                for w in widths
            )

        self.down, self.up = blocks(), blocks()
        self.widen = nn.ModuleList(nn.Conv2d(a, b, 1) for a, b in pairs)
        self.merge = nn.ModuleList(nn.Conv2d(a + b, a, 1) for a, b in pairs)
        self.head = nn.Conv2d(widths[0], folded, 3, padding=1)
        start_at_zero(self.head)

    def condition(self, logsnr: Tensor, labels: Tensor | None = None) -> Conditioning:
        """Scale and shift of each block."""
        logsnr = logsnr.reshape(-1)
        octaves = (math.log(200), self.frequencies)
        rates = torch.linspace(0, *octaves, dtype=logsnr.dtype, device=logsnr.device).exp()
        angle = 2 * noise_angle(logsnr)[:, None] * rates
        embedding = self.embed2(F.silu(self.embed1(torch.cat([angle.sin(), angle.cos()], dim=1))))
        embedding = F.silu(add_labels(embedding, self.labels, labels))
        return [
            block.condition(embedding)
            for group in (*self.down, *reversed(self.up))
            for block in _members(group)
        ]

    def forward(self, x: Tensor, condition: Conditioning) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W), given the output of `condition`."""
        conditions = iter(condition)
        h = F.pixel_unshuffle(x, self.patch_size).contiguous(memory_format=torch.channels_last)
        h = self.stem(h)
        skips = []
        for k, group in enumerate(self.down):
            for block in _members(group):
                h = block(h, next(conditions))
            if k < len(self.widen):
                skips.append(h)
                h = self.widen[k](F.avg_pool2d(h, 2))
        for k in reversed(range(len(self.up))):
            if k < len(self.merge):
                h = F.interpolate(h, scale_factor=2.0, mode="nearest")
                h = self.merge[k](torch.cat([h, skips[k]], dim=1))
            for block in _members(self.up[k]):
                h = block(h, next(conditions))
        return F.pixel_shuffle(self.head(silu(h)), self.patch_size)
