"""The U-Net of the paper's initializer, with group norm and attention.

The architecture is from Ho et al. 2020 (DDPM), the scale-shift conditioning from Nichol & Dhariwal 2021,
the sizes from Zhu et al., "Learning Energy-Based Models by Cooperative Diffusion Recovery Likelihood"
(ICLR 2024).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cdrl_infer.errors import ConfigError
from cdrl_infer.networks.base import Backbone
from cdrl_infer.networks.layers import (
    OneHotEmbedding,
    add_labels,
    sinusoidal_embedding,
    start_at_zero,
)

UNetCondition = list[tuple[Tensor, Tensor]]
Resample = Literal["down", "up"]


class SelfAttention(nn.Module):
    """``x + out(softmax(qᵀk / √width) v)`` over all positions, with one head and group norm before."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, width, eps=1e-6)
        self.qkv = nn.Conv2d(width, 3 * width, 1)
        self.out = nn.Conv2d(width, width, 1)
        nn.init.zeros_(self.out.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(B, width, H, W) -> the same."""
        # Three dimensions: for four, torch may take a kernel that cannot be differentiated twice.
        q, k, v = self.qkv(self.norm(x)).flatten(2).transpose(1, 2).chunk(3, dim=2)
        h = F.scaled_dot_product_attention(q, k, v)  # (B, HW, width)
        change: Tensor = self.out(h.transpose(1, 2).reshape(x.shape))
        return x + change


class UNetBlock(nn.Module):
    """``attend(shortcut(Rx) + conv2(drop(silu(norm2(conv1(R silu(norm1(x)))) · (1 + a) + b))))``.

    R halves the size (average pooling), doubles it (nearest) or does nothing. The embedding gives a and
    b. The shortcut is a 1×1 convolution if the width changes, else the identity. ``attend`` is
    `SelfAttention` or the identity.
    """

    def __init__(
        self,
        width_in: int,
        width: int,
        embedding_dim: int,
        groups: int,
        dropout: float,
        attention: bool = False,
        resample: Resample | None = None,
    ) -> None:
        super().__init__()
        self.resample = resample
        self.norm1 = nn.GroupNorm(groups, width_in, eps=1e-6)
        self.conv1 = nn.Conv2d(width_in, width, 3, padding=1)
        self.modulation = nn.Linear(embedding_dim, 2 * width)
        self.norm2 = nn.GroupNorm(groups, width, eps=1e-6)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.shortcut = nn.Conv2d(width_in, width, 1) if width_in != width else None
        self.attention = SelfAttention(width, groups) if attention else None
        nn.init.zeros_(self.conv2.weight)

    def condition(self, embedding: Tensor) -> tuple[Tensor, Tensor]:
        """Activated embedding (B, embedding_dim) -> scale and shift, each (B, width, 1, 1)."""
        a, b = self.modulation(embedding)[:, :, None, None].chunk(2, dim=1)
        return 1 + a, b

    def forward(self, x: Tensor, condition: tuple[Tensor, Tensor]) -> Tensor:
        """(B, width_in, H, W) -> (B, width, H', W')."""
        scale, shift = condition
        h = F.silu(self.norm1(x))
        if self.resample == "down":
            h, x = F.avg_pool2d(h, 2), F.avg_pool2d(x, 2)
        elif self.resample == "up":
            h, x = (F.interpolate(z, scale_factor=2.0, mode="nearest") for z in (h, x))
        h = F.silu(self.norm2(self.conv1(h)) * scale + shift)
        h = self.conv2(self.dropout(h))
        h = h + (x if self.shortcut is None else self.shortcut(x))
        y: Tensor = h if self.attention is None else self.attention(h)
        return y


class UNet(Backbone):
    """U-Net with self-attention. Its output has the shape of its input and starts at 0.

    Every block on the way down gives a skip connection, even a block that halves the size. So each
    resolution has one block more on the way up. The defaults are the paper's for CIFAR-10 (3.8 M
    parameters).

    Args:
        in_channels: image channels.
        widths: channels at each resolution, multiples of ``groups``; each resolution is half the one
            before.
        num_blocks: residual blocks per resolution on the way down.
        attention_levels: the resolutions (0 = the full one) that have self-attention after each block.
            The middle block always has it.
        frequencies: sines (and as many cosines) of the noise-level embedding, at least 2.
        embedding_dim: width of the noise-level and label embedding.
        num_classes: values of each attribute; () for an unconditional network.
        dropout: share of values that training drops before the second convolution of each block.
        groups: number of groups in the group norms.

    Raises:
        ConfigError: a size out of range.
    """

    def __init__(
        self,
        in_channels: int = 3,
        widths: tuple[int, ...] = (64, 64, 64),
        num_blocks: int = 3,
        attention_levels: tuple[int, ...] = (1, 2),
        frequencies: int = 32,
        embedding_dim: int = 256,
        num_classes: tuple[int, ...] = (),
        dropout: float = 0.1,
        groups: int = 32,
    ) -> None:
        super().__init__()
        widths = tuple(widths)
        self.in_channels, self.num_classes = in_channels, tuple(num_classes)
        sizes = (in_channels, num_blocks, embedding_dim, groups, *widths, *self.num_classes)
        if not widths or min(sizes) < 1 or frequencies < 2:
            raise ConfigError(
                "UNet sizes must be positive and frequencies at least 2, got "
                f"in_channels={in_channels}, widths={widths}, num_blocks={num_blocks}, "
                f"frequencies={frequencies}, embedding_dim={embedding_dim}, "
                f"num_classes={self.num_classes}, groups={groups}"
            )
        if any(w % groups for w in widths):
            raise ConfigError(f"widths must be multiples of groups={groups}, got {widths}")
        attended = set(attention_levels)
        if not attended <= set(range(len(widths))):
            raise ConfigError(
                f"attention_levels must lie in 0 … {len(widths) - 1} for {len(widths)} widths, "
                f"got {tuple(attention_levels)}"
            )
        if not 0 <= dropout < 1:
            raise ConfigError(f"dropout must lie in [0, 1), got {dropout}")
        self.frequencies = frequencies
        self.size_multiple = 1 << (len(widths) - 1)
        self.embed1 = nn.Linear(2 * frequencies, embedding_dim)
        self.embed2 = nn.Linear(embedding_dim, embedding_dim)
        self.embed_labels = (
            OneHotEmbedding(self.num_classes, embedding_dim) if self.num_classes else None
        )
        self.stem = nn.Conv2d(in_channels, widths[0], 3, padding=1)

        def block(
            width_in: int, width: int, attention: bool = False, resample: Resample | None = None
        ) -> UNetBlock:
            return UNetBlock(width_in, width, embedding_dim, groups, dropout, attention, resample)

        h, skips = widths[0], [widths[0]]
        self.down = nn.ModuleList()
        for k, width in enumerate(widths):
            for _ in range(num_blocks):
                self.down.append(block(h, width, attention=k in attended))
                h = width
                skips.append(h)
            if k + 1 < len(widths):
                self.down.append(block(h, h, resample="down"))
                skips.append(h)
        self.middle = nn.ModuleList([block(h, h, attention=True), block(h, h)])
        self.up = nn.ModuleList()
        for k, width in reversed(list(enumerate(widths))):
            for _ in range(num_blocks + 1):
                self.up.append(block(h + skips.pop(), width, attention=k in attended))
                h = width
            if k:
                self.up.append(block(h, h, resample="up"))
        self.norm = nn.GroupNorm(groups, h, eps=1e-6)
        self.head = nn.Conv2d(h, in_channels, 3, padding=1)
        start_at_zero(self.head)

    def condition(self, logsnr: Tensor, labels: Tensor | None = None) -> UNetCondition:
        """Scale and shift of each block."""
        e = sinusoidal_embedding(logsnr.reshape(-1), self.frequencies)
        e = self.embed2(F.silu(self.embed1(e)))
        e = F.silu(add_labels(e, self.embed_labels, labels))
        return [block.condition(e) for block in (*self.down, *self.middle, *self.up)]

    def forward(self, x: Tensor, condition: UNetCondition) -> Tensor:
        """(B, C, H, W) -> the same shape, given the output of `condition`."""
        conditions = iter(condition)
        h = self.stem(x.contiguous(memory_format=torch.channels_last))
        skips = [h]
        for block in self.down:
            h = block(h, next(conditions))
            skips.append(h)
        for block in self.middle:
            h = block(h, next(conditions))
        for block in cast(Iterable[UNetBlock], self.up):
            if block.resample is None:
                h = torch.cat([h, skips.pop()], dim=1)
            h = block(h, next(conditions))
        out: Tensor = self.head(F.silu(self.norm(h)))
        return out
