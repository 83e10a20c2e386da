"""The recovery likelihood: a prior energy tied to the noisier image it is to be recovered from."""

from __future__ import annotations

from torch import Tensor

from cdrl_infer.energies.base import Energy
from cdrl_infer.schedule import Level


class RecoveryEnergy(Energy):
    """``E(y | x_t) = E(y) + rec_t ‖y - x_t‖² / (2 σ_t²)`` (Gao et al. 2021, eq. 7; CDRL eq. 6).

    Args:
        prior: the energy of y alone.
        x_t: (B, ...) the noisier images.
    """

    def __init__(self, prior: Energy, x_t: Tensor) -> None:
        self.prior = prior
        self.x_t = x_t

    def __call__(self, y: Tensor, level: Level) -> Tensor:
        """(B, ...) -> (B,) nats."""
        return self.prior(y, level) + self._quadratic(y, level)

    def value_and_grad(self, y: Tensor, level: Level) -> tuple[Tensor, Tensor]:
        """As `Energy.value_and_grad`; the quadratic term's gradient is written out."""
        energy, grad = self.prior.value_and_grad(y, level)
        pull = level.expand(level.recovery / level.noise_variance, y) * (y - self.x_t)
        return energy + self._quadratic(y, level), grad + pull

    def _quadratic(self, y: Tensor, level: Level) -> Tensor:
        distance = (y - self.x_t).square().flatten(1).sum(1)
        return level.recovery * distance / (2 * level.noise_variance)
