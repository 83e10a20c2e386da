"""The initializer's network: a residual U-Net that turns x_t into the mean of a proposal for y."""

from __future__ import annotations

from torch import Tensor, nn

from cdrl_infer.config import Configurable
from cdrl_infer.networks.patch_unet import Conditioning, PatchUNet
from cdrl_infer.schedule import Level


class PatchInitializer(Configurable, nn.Module):
    """``g(x_t) = x_t + U(x_t, λ_t, labels)`` with a `PatchUNet`; arguments are those of `PatchUNet`."""

    def __init__(
        self,
        in_channels: int = 1,
        widths: tuple[int, ...] = (32, 64),
        num_blocks: int = 1,
        patch_size: int = 2,
        embedding_dim: int = 64,
        num_classes: tuple[int, ...] = (),
    ) -> None:
        super().__init__()
        self.unet = PatchUNet(
            in_channels, widths, num_blocks, patch_size, embedding_dim, num_classes
        )

    @property
    def size_multiple(self) -> int:
        """Image height and width must be divisible by this."""
        return self.unet.size_multiple

    def condition(self, level: Level, labels: Tensor | None = None) -> Conditioning:
        """All that is constant in a level."""
        return self.unet.condition(level.logsnr_in, labels)

    def forward(self, x: Tensor, condition: Conditioning) -> Tensor:
        """x_t (B, C, H, W) -> the proposal's mean for y, the same shape."""
        mean: Tensor = x + self.unet(x, condition).to(x.dtype)
        return mean
