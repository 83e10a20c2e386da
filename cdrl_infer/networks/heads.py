"""Heads turn a backbone into an energy or an initializer.

The energies follow Salimans & Ho, "Should EBMs model the energy or the score?" (2021), and Du et al.,
"Reduce, Reuse, Recycle" (ICML 2023). A backbone has an output for every pixel. So its energy learns a
sharper score than a network that pools the image to one number, for about the same compute.

In the formulas, ``x = y/m`` is the image at the level's own scale, ``p = 1/(α²v + σ̄²)`` the precision of
noised Gaussian data with mean square v, and ``c = √(α²v p)``.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from cdrl_infer.networks.base import Backbone, Head
from cdrl_infer.networks.gaussian import checked_variance, gaussian_constants
from cdrl_infer.schedule import Level


class EnergyCondition(NamedTuple):
    """Constants of a level: the backbone's condition, and 1/m, p and c/σ̄, each () or (B,)."""

    backbone: Any
    inverse_scale: Tensor
    precision: Tensor
    weight: Tensor


class InnerProductEnergy(Head):
    """``log p(y) = -½ p ‖x‖² - (c/σ̄) ⟨x, U(x)⟩`` in nats.

    The first term is the density of noised Gaussian data. The second is the rest. Its scale keeps U of
    order one at every level, because ``σ̄ ∇_x E`` is the noise in x.

    Args:
        backbone: U.
        data_variance: v, the mean square of the data's pixels (in [-1, 1]).

    Raises:
        ConfigError: v is not positive.
    """

    output_unit: Literal["nats"] = "nats"

    def __init__(self, backbone: Backbone, data_variance: float = 0.5) -> None:
        super().__init__(backbone)
        self.data_variance = checked_variance(data_variance)

    def condition(self, level: Level, labels: Tensor | None = None) -> EnergyCondition:
        """Everything that is constant in a level; labels (B, A), 0 = not given."""
        inner = self.backbone.condition(level.logsnr, labels)
        return EnergyCondition(inner, *gaussian_constants(level, self.data_variance))

    def forward(self, y: Tensor, condition: EnergyCondition) -> Tensor:
        """(B, C, H, W) -> (B,) log-density in nats, up to a constant of the level and labels."""
        inner, inverse_scale, precision, weight = condition
        x = y * inverse_scale.reshape(-1, 1, 1, 1)
        u = self.backbone(x, inner).to(x.dtype)
        return -0.5 * precision * torch.sum(x * x, dim=(1, 2, 3)) - weight * torch.sum(
            x * u, dim=(1, 2, 3)
        )


class SquaredDistanceEnergy(InnerProductEnergy):
    """``log p(y) = -½ ‖x - D(x)‖²/σ̄²`` in nats, ``D(x) = (1 - σ̄√p) x + c U(x)``.

    It measures the distance to a denoised image D(x). With U = 0 it is the density of noised Gaussian
    data. The arguments are the same as for `InnerProductEnergy`.
    """

    def forward(self, y: Tensor, condition: EnergyCondition) -> Tensor:
        """(B, C, H, W) -> (B,) log-density in nats, up to a constant of the level and labels."""
        inner, *constants = condition
        inverse_scale, precision, weight = (value.reshape(-1, 1, 1, 1) for value in constants)
        x = y * inverse_scale
        u = self.backbone(x, inner).to(x.dtype)
        residual = precision.sqrt() * x - weight * u  # (x - D(x))/σ̄
        log_density: Tensor = -0.5 * residual.square().sum(dim=(1, 2, 3))
        return log_density


class ResidualInitializer(Head):
    """``g(x_t) = x_t + U(x_t, λ_t, labels)``: the mean of the proposal for y.

    Args:
        backbone: U.
    """

    def condition(self, level: Level, labels: Tensor | None = None) -> Any:
        """Everything that is constant in a level; labels (B, A), 0 = not given."""
        return self.backbone.condition(level.logsnr_in, labels)

    def forward(self, x: Tensor, condition: Any) -> Tensor:
        """x_t (B, C, H, W) -> the proposal's mean for y, the same shape."""
        mean: Tensor = x + self.backbone(x, condition).to(x.dtype)
        return mean
