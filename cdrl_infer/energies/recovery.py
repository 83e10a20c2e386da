"""The recovery likelihood: the energy of y given the noisier image x_t."""

from __future__ import annotations

from torch import Tensor

from cdrl_infer.energies.base import Energy, Potential
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

    def at(self, level: Level) -> RecoveryPotential:
        """The energy at a level."""
        return RecoveryPotential(self.prior.at(level), self.x_t, level)


class RecoveryPotential:
    """`RecoveryEnergy` at one level, with the gradient of the quadratic term in closed form."""

    def __init__(self, prior: Potential, x_t: Tensor, level: Level) -> None:
        self.prior = prior
        self.x_t = x_t
        self.level = level

    def __call__(self, y: Tensor) -> Tensor:
        """(B, ...) -> (B,) nats."""
        return self.prior(y) + self._quadratic(y)

    def value_and_grad(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Energies (B,) and gradient (B, ...), both detached."""
        energy, grad = self.prior.value_and_grad(y)
        level = self.level
        pull = level.expand(level.recovery / level.noise_variance, y) * (y - self.x_t)
        return energy + self._quadratic(y), grad + pull

    def _quadratic(self, y: Tensor) -> Tensor:
        distance = (y - self.x_t).square().flatten(1).sum(1)
        return self.level.recovery * distance / (2 * self.level.noise_variance)
