"""A walk on the sphere of an autoencoder's latents, from an image along the manifold of the data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from cdrl_infer.energies.base import FunctionPotential
from cdrl_infer.errors import ConfigError
from cdrl_infer.kernels.sphere import SphereDescent
from cdrl_infer.networks.autoencoder import SphereAutoencoder, SphereNetwork, on_sphere
from cdrl_infer.random import RandomSource
from cdrl_train.objectives.autoencoder import shared

Distance = Literal["chord", "arc"]


def arc(a: Tensor, b: Tensor) -> Tensor:
    """The angle between points of the unit sphere, (B, D) each -> (B,).

    ``2 atan2(‖a - b‖, ‖a + b‖)`` and its gradient are finite everywhere, also where a = ±b; those of
    ``arccos ⟨a, b⟩`` are not.
    """
    return 2 * torch.atan2((a - b).norm(dim=1), (a + b).norm(dim=1))


class Pull(NamedTuple):
    """``R(x') = d(f_e(x'), z̃)² / 2s²`` of some rows: how far an image is from its place (Yoon, eq. 9)."""

    autoencoder: SphereAutoencoder
    place: Tensor  # (b, D) z̃
    spread: Tensor  # (b,) s
    distance: Distance

    def __call__(self, images: Tensor) -> Tensor:
        """(b, C, H, W) -> (b,)."""
        z = self.autoencoder.encode(images)
        squared = (z - self.place).square().sum(1)
        if self.distance == "arc":
            squared = arc(z, self.place).square()
        return squared / (2 * self.spread.square())


class Walked(NamedTuple):
    """The points of a walk, without gradients."""

    projected: Tensor  # (B, D) f_e(x), on the sphere
    diffused: Tensor  # (B, D) z̃
    latent: Tensor  # (B, D) the end of the latent chain
    images: Tensor  # (B, C, H, W) f_d of it
    pulls: Sequence[tuple[Pull, slice]]  # R, by autoencoder and its rows


@dataclass(frozen=True)
class LatentWalk:
    """Project images onto the sphere of latents, diffuse, and walk downhill along the manifold.

    ::

        s ~ U(spread_min, spread_max);   z̃ = proj(f_e(x) + s ε)
        z ← proj(z - latent_step ĝ + latent_noise ε'),   ĝ ∝ ∇_z [E(f_d(z)) + pull R(f_d(z))], tangent

    The first half of the negatives of MPDR (Yoon et al. 2023).

    Args:
        latent_steps: steps of the walk.
        latent_step: length of a step downhill on the sphere.
        latent_noise: standard deviation of a step's noise.
        distance: that of R.
        spread_min, spread_max: the least and the largest s.

    Raises:
        ConfigError: a value is out of range.
    """

    latent_steps: int
    latent_step: float
    latent_noise: float
    distance: Distance = "chord"
    spread_min: float = 0.05
    spread_max: float = 0.3

    def __post_init__(self) -> None:
        for name in ("latent_steps", "latent_step"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must be at least 0, got {getattr(self, name)}")
        if not self.latent_noise > 0:
            raise ConfigError(f"latent_noise must be positive, got {self.latent_noise}")
        if not 0 < self.spread_min <= self.spread_max:
            raise ConfigError(
                "expected 0 < spread_min <= spread_max, "
                f"got spread_min={self.spread_min}, spread_max={self.spread_max}"
            )

    @torch.no_grad()
    def __call__(
        self,
        network: SphereNetwork,
        x: Tensor,
        energy: Callable[[Tensor], Tensor],
        random: RandomSource,
        pull: float = 0.0,
    ) -> Walked:
        """Walk from images x (B, C, H, W).

        Args:
            network: the autoencoders, which share the rows.
            x: in [-1, 1].
            energy: (B, C, H, W) -> (B,) nats, of images that an autoencoder decodes.
            random: the noise.
            pull: weight of R.
        """
        parts = shared(network, len(x))
        projected = torch.cat([member.encode(x[rows]) for member, rows in parts])
        spread = self.spread_min + (self.spread_max - self.spread_min) * random.uniform()
        diffused = on_sphere(projected + spread[:, None] * random.normal(projected.shape[1:]))
        pulls = [
            (Pull(member, diffused[rows], spread[rows], self.distance), rows)
            for member, rows in parts
        ]

        def decoded(z: Tensor) -> Tensor:
            return torch.cat([member.decode(z[rows]) for member, rows in parts])

        latent = SphereDescent(self.latent_step / self.latent_noise).run(
            diffused,
            FunctionPotential(lambda z: pulled(decoded(z), energy, pulls, pull)),
            torch.full_like(spread, self.latent_noise**2),
            random,
            self.latent_steps,
        )
        return Walked(projected, diffused, latent.y, decoded(latent.y), pulls)


def pulled(
    images: Tensor,
    energy: Callable[[Tensor], Tensor],
    pulls: Sequence[tuple[Pull, slice]],
    weight: float,
) -> Tensor:
    """``E(x) + weight · R(x)`` of images (B, C, H, W), (B,) nats."""
    total = energy(images)
    if not weight:
        return total
    return total + weight * torch.cat([pull(images[rows]) for pull, rows in pulls])
