"""Reconstruction: the phase that trains the autoencoder of MPDR."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from cdrl_infer.errors import ConfigError
from cdrl_infer.model import original
from cdrl_infer.networks.autoencoder import SphereAutoencoder, SphereNetwork, on_sphere
from cdrl_infer.networks.registry import INITIALIZERS
from cdrl_infer.random import RandomSource
from cdrl_infer.schedule import Level, NoiseSchedule
from cdrl_train.objectives.base import Losses, Models, Objective
from cdrl_train.objectives.losses import Loss

if TYPE_CHECKING:
    from cdrl_train.data.stream import Batch


def check_sphere(initializer: dict[str, Any] | None, schedule: NoiseSchedule) -> None:
    """Raise `ConfigError` unless the run's initializer is an autoencoder of one transition."""
    found = (initializer or {}).get("class")
    if found is None or not issubclass(INITIALIZERS.find(found, "initializer"), SphereNetwork):
        raise ConfigError(
            "needs an autoencoder as initializer, a 'SphereAutoencoder' or an 'AutoencoderEnsemble', "
            f"got {found!r:.60}"
        )
    if schedule.num_levels != 1:
        raise ConfigError(
            f"is for models of one transition: set schedule.num_levels=1, got {schedule.num_levels}"
        )


def shared(network: SphereNetwork, count: int) -> list[tuple[SphereAutoencoder, slice]]:
    """Each autoencoder of a network with its share of ``count`` rows, as equal as they can be."""
    members = network.members
    ends = [k * count // len(members) for k in range(len(members) + 1)]
    return [(m, slice(a, b)) for m, a, b in zip(members, ends, ends[1:], strict=False)]


def reconstruction_loss(
    network: SphereNetwork, u: Tensor, encoder_l2: float, noise: Tensor | None = None
) -> Loss:
    """The loss of `Autoencoding`; the value per image is ``‖u - f_d(f_e(u))‖²``.

    Args:
        network: the autoencoders, which share the images.
        u: images (B, C, H, W) in [-1, 1].
        encoder_l2: γ_e.
        noise: (B, D), added to the latents before they go back onto the sphere.
    """
    errors, norms = [], []
    for member, rows in shared(network, len(u)):
        z = member.encode(u[rows])
        if noise is not None:
            z = on_sphere(z + noise[rows])
        errors.append((u[rows] - member.decode(z)).square().flatten(1).sum(1))
        norms.append(member.encoder_norm())
    per_image = torch.cat(errors)
    value = per_image.mean() / (4 * u[0].numel()) + encoder_l2 * torch.stack(norms).mean()
    return Loss(value, per_image.detach())


class Autoencoding(Objective):
    """``mean (x - f_d(f_e(x)))² + γ_e ‖θ_e‖²`` for the autoencoder; the energy does not learn.

    The first phase of MPDR (Yoon et al. 2023). The mean is over the values of images in [0, 1], as in the
    paper: the images u of a batch lie in [-1, 1], and ``x = (u + 1)/2``. The autoencoders of an ensemble
    share the batch.

    Args:
        latent_noise: standard deviation of noise that is added to the latent before it goes back onto the
            sphere. The paper has none for MNIST and 0.01 elsewhere.
        encoder_l2: γ_e, the weight of the sum of squares of the encoder's weights.

    Raises:
        ConfigError: a value is negative.
    """

    needs_initializer = True
    titles: ClassVar[dict[str, str]] = {
        "reconstruction": "Error of reconstruction, ‖u - f_d(f_e(u))‖², per image",
    }

    def __init__(self, latent_noise: float = 0.0, encoder_l2: float = 1e-4) -> None:
        super().__init__()
        if min(latent_noise, encoder_l2) < 0:
            raise ConfigError(
                f"latent_noise and encoder_l2 must be at least 0, got {latent_noise} and {encoder_l2}"
            )
        self.latent_noise = latent_noise
        self.encoder_l2 = encoder_l2

    def check(
        self, ebm: dict[str, Any], initializer: dict[str, Any] | None, schedule: NoiseSchedule
    ) -> None:
        """The initializer must be an autoencoder, of a run with one transition."""
        check_sphere(initializer, schedule)

    def losses(self, models: Models, batch: Batch, level: Level, random: RandomSource) -> Losses:
        """The loss of the initializer."""
        network: SphereNetwork = original(models.initializer)
        noise = self._noise(network, random)
        found = reconstruction_loss(network, batch.x, self.encoder_l2, noise)
        return Losses({"initializer": found.value}, {"reconstruction": found.per_image})

    def _noise(self, network: SphereNetwork, random: RandomSource) -> Tensor | None:
        """(B, D) normals of the standard deviation ``latent_noise``; None without noise."""
        latent = network.members[0].projection.shape[0]
        return self.latent_noise * random.normal((latent,)) if self.latent_noise else None

    def summary(self) -> str:
        """The text ``reconstruction``."""
        return "reconstruction"
