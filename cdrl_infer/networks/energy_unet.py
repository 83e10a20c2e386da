"""An energy with a U-Net inside: the inner product of the image with what the U-Net makes of it.

After Salimans & Ho, "Should EBMs model the energy or the score?" (2021), and Du et al., "Reduce, Reuse,
Recycle" (ICML 2023). A U-Net sees every pixel, so its energy learns a sharper score than one number
pooled from a classifier-like network does, for about the same compute.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from cdrl_infer.config import Configurable
from cdrl_infer.networks.gaussian import checked_variance, gaussian_constants
from cdrl_infer.networks.patch_unet import Conditioning, PatchUNet
from cdrl_infer.schedule import Level


class EnergyUNet(Configurable, nn.Module):
    """``log p(y) = -½‖x‖²/(α²v + σ̄²) - c ⟨x, U(x)⟩/σ̄`` in nats, ``x = y/m``, ``c = √(α²v/(α²v + σ̄²))``.

    The first term is the density of noised Gaussian data of second moment ``v``; the second is what the
    data have beyond it, scaled so that U has to answer with numbers of order one at every level
    (``σ̄ ∇_x E`` is the noise in x).

    Args:
        data_variance: v, the mean square of the data's pixels (in [-1, 1]).
        Others: those of `PatchUNet`.

    Raises:
        ConfigError: a value out of range.
    """

    output_unit: Literal["nats"] = "nats"

    def __init__(
        self,
        in_channels: int = 1,
        widths: tuple[int, ...] = (64, 112),
        num_blocks: int = 2,
        patch_size: int = 2,
        embedding_dim: int = 128,
        num_classes: tuple[int, ...] = (),
        data_variance: float = 0.5,
    ) -> None:
        super().__init__()
        self.data_variance = checked_variance(data_variance)
        self.unet = PatchUNet(
            in_channels, widths, num_blocks, patch_size, embedding_dim, num_classes
        )

    @property
    def size_multiple(self) -> int:
        """Image height and width must be divisible by this."""
        return self.unet.size_multiple

    def condition(
        self, level: Level, labels: Tensor | None = None
    ) -> tuple[Conditioning, Tensor, Tensor, Tensor]:
        """All that is constant in a level: the U-Net's conditioning, 1/m, 1/(α²v + σ̄²) and c/σ̄."""
        conditioning = self.unet.condition(level.logsnr, labels)
        return conditioning, *gaussian_constants(level, self.data_variance)

    def forward(self, y: Tensor, condition: tuple[Conditioning, Tensor, Tensor, Tensor]) -> Tensor:
        """(B, C, H, W) -> (B,) log-density in nats, up to a constant of the level and labels."""
        unet_condition, inverse_scale, precision, weight = condition
        x = y * inverse_scale.reshape(-1, 1, 1, 1)
        u = self.unet(x, unet_condition).to(x.dtype)
        return -0.5 * precision * torch.sum(x * x, dim=(1, 2, 3)) - weight * torch.sum(
            x * u, dim=(1, 2, 3)
        )
