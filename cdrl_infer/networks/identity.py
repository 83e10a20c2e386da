"""No initializer: what stands in its place for DRL, the ancestor of CDRL."""

from __future__ import annotations

from torch import Tensor, nn

from cdrl_infer.config import Configurable
from cdrl_infer.schedule import Level


class IdentityInitializer(Configurable, nn.Module):
    """``y⁰ = x_t``: Langevin starts at the noisier image itself (Gao et al., ICLR 2021).

    It has no weights, and `InitializerProposal` adds no noise to it.

    Args:
        in_channels: image channels.
        num_classes: values of each attribute of the model; none of them matters here.
    """

    def __init__(self, in_channels: int = 3, num_classes: tuple[int, ...] = ()) -> None:
        super().__init__()

    @property
    def size_multiple(self) -> int:
        """Image height and width must be divisible by this."""
        return 1

    def condition(self, level: Level, labels: Tensor | None = None) -> None:
        """Nothing depends on level or labels."""

    def forward(self, x: Tensor, condition: None) -> Tensor:
        """x_t (B, C, H, W) itself."""
        return x
