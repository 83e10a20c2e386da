"""The paper's energy: a residual network that pools the image to one number.

Zhu et al., "Learning Energy-Based Models by Cooperative Diffusion Recovery Likelihood" (ICLR 2024),
appendix; after Gao et al. 2021. The layers apply no spectral norm: the export of a model folds the
norm of its training into the weights.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import Literal, NamedTuple, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cdrl_infer.errors import ConfigError
from cdrl_infer.networks.base import Layer, Network
from cdrl_infer.networks.layers import OneHotEmbedding, add_labels, sinusoidal_embedding
from cdrl_infer.schedule import Level

Activation = Literal["leaky_relu", "silu"]


class ResidualCondition(NamedTuple):
    """The constants of a level: shifts (B, width, 1, 1) of the blocks, and head weights (B, width)."""

    shifts: list[Tensor]
    head: Tensor


def activate(x: Tensor, activation: Activation) -> Tensor:
    """Leaky ReLU of slope 0.2, or SiLU."""
    return F.leaky_relu(x, 0.2) if activation == "leaky_relu" else F.silu(x)


class ResidualBlock(nn.Module):
    """``shortcut(x) + gain · conv2(act(conv1(act(x)) + shift))``, ``shift = act(embed(act(e)))``.

    ``gain`` is one learnt number per channel. The shortcut is a 3×3 convolution if the width changes,
    else the identity. With ``pool``, average pooling first halves the size of x.
    """

    def __init__(
        self, width_in: int, width: int, embedding_dim: int, activation: Activation, pool: bool
    ) -> None:
        super().__init__()
        self.activation = activation
        self.pool = pool
        self.conv1 = nn.Conv2d(width_in, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.embed = nn.Linear(embedding_dim, width)
        self.gain = nn.Parameter(torch.ones(1, width, 1, 1))
        self.shortcut = nn.Conv2d(width_in, width, 3, padding=1) if width_in != width else None

    def condition(self, embedding: Tensor) -> Tensor:
        """Activated embedding (B, embedding_dim) -> the shift (B, width, 1, 1)."""
        return activate(self.embed(embedding), self.activation)[:, :, None, None]

    def forward(self, x: Tensor, shift: Tensor) -> Tensor:
        """(B, width_in, H, W) -> (B, width, H, W), or half that size."""
        x = F.avg_pool2d(x, 2) if self.pool else x
        h = self.conv1(activate(x, self.activation)) + shift
        h = self.conv2(activate(h, self.activation)) * self.gain
        out: Tensor = h + (x if self.shortcut is None else self.shortcut(x))
        return out


class ResidualEBM(Network):
    """``f(y, λ) = ⟨Σ_hw act'(h(y, λ)), W act(e)⟩``, the log-density times the step variance s_t².

    h is a stack of residual blocks with 2×2 average pooling between widths. e embeds the noise level
    and the labels. act' is ReLU if act is leaky ReLU, and SiLU if act is SiLU. The defaults are the
    paper's (34.8 M parameters for CIFAR-10).

    Args:
        in_channels: image channels.
        width: channels of the stem, the unit of ``width_multipliers``.
        num_blocks: residual blocks per resolution.
        width_multipliers: channels at each resolution, in units of ``width``.
        frequencies: sines (and as many cosines) of the noise-level embedding, at least 2.
        embedding_dim: width of the noise-level and label embedding.
        num_classes: values of each attribute; () for an unconditional network.
        activation: "leaky_relu" (slope 0.2, the paper's) or "silu", which is smooth.
        patch_size: pixels folded into channels at the entry; 1 in the paper.

    Raises:
        ConfigError: a size out of range, or an unknown activation.
    """

    output_unit: Literal["step"] = "step"

    def __init__(
        self,
        in_channels: int = 3,
        width: int = 128,
        num_blocks: int = 8,
        width_multipliers: tuple[int, ...] = (1, 2, 2, 2),
        frequencies: int = 64,
        embedding_dim: int = 512,
        num_classes: tuple[int, ...] = (),
        activation: Activation = "leaky_relu",
        patch_size: int = 1,
    ) -> None:
        super().__init__()
        widths = [width * m for m in width_multipliers]
        self.in_channels, self.num_classes = in_channels, tuple(num_classes)
        sizes = (in_channels, width, num_blocks, embedding_dim, patch_size)
        if not widths or min(*sizes, *widths, *self.num_classes) < 1 or frequencies < 2:
            raise ConfigError(
                "ResidualEBM sizes must be positive and frequencies at least 2, got "
                f"in_channels={in_channels}, width={width}, num_blocks={num_blocks}, "
                f"width_multipliers={tuple(width_multipliers)}, frequencies={frequencies}, "
                f"embedding_dim={embedding_dim}, num_classes={self.num_classes}, "
                f"patch_size={patch_size}"
            )
        if activation not in get_args(Activation):
            raise ConfigError(f"activation must be 'leaky_relu' or 'silu', got {activation!r}")
        self.activation = activation
        self.frequencies = frequencies
        self.patch_size = patch_size
        self.size_multiple = patch_size << (len(widths) - 1)
        self.embed1 = nn.Linear(2 * frequencies, embedding_dim)
        self.embed2 = nn.Linear(embedding_dim, embedding_dim)
        self.embed_labels = (
            OneHotEmbedding(self.num_classes, embedding_dim) if self.num_classes else None
        )
        self.stem = nn.Conv2d(in_channels * patch_size**2, width, 3, padding=1)
        self.blocks = nn.ModuleList()
        for k, (before, after) in enumerate(pairwise([width, *widths])):
            for n in range(num_blocks):
                width_in, pool = (before, k > 0) if n == 0 else (after, False)
                self.blocks.append(ResidualBlock(width_in, after, embedding_dim, activation, pool))
        self.head = nn.Linear(embedding_dim, widths[-1], bias=False)

    def spectral_norm_layers(self) -> list[Layer]:
        """All layers except the head, as in the paper."""
        return [m for m in self.modules() if isinstance(m, Layer) and m is not self.head]

    def condition(self, level: Level, labels: Tensor | None = None) -> ResidualCondition:
        """Everything that is constant in a level; labels (B, A), 0 = not given."""
        e = sinusoidal_embedding(level.logsnr.reshape(-1), self.frequencies)
        e = self.embed2(activate(self.embed1(e), self.activation))
        e = activate(add_labels(e, self.embed_labels, labels), self.activation)
        shifts = [block.condition(e) for block in cast(Iterable[ResidualBlock], self.blocks)]
        return ResidualCondition(shifts, self.head(e))

    def forward(self, y: Tensor, condition: ResidualCondition) -> Tensor:
        """(B, C, H, W) -> (B,) log-density times s_t², up to a constant of the level and labels."""
        h = F.pixel_unshuffle(y, self.patch_size).contiguous(memory_format=torch.channels_last)
        h = self.stem(h)
        for block, shift in zip(self.blocks, condition.shifts, strict=True):
            h = block(h, shift)
        h = F.relu(h) if self.activation == "leaky_relu" else F.silu(h)
        return torch.sum(h.sum(dim=(2, 3)) * condition.head, dim=1)
