"""CDRL that also learns from the negatives of MPDR, which lie beside the data along their manifold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from cdrl_infer.energies.base import Energy
from cdrl_infer.errors import ConfigError
from cdrl_infer.model import ImageShape
from cdrl_infer.networks.autoencoder import SphereAutoencoder
from cdrl_infer.random import RandomSource
from cdrl_infer.schedule import Level
from cdrl_train.objectives.autoencoder import reconstruction_loss
from cdrl_train.objectives.base import Losses, Models, Objective
from cdrl_train.objectives.losses import Loss, contrastive_weight, noised
from cdrl_train.objectives.persistent import Persistent, energies_of_both
from cdrl_train.objectives.walk import LatentWalk

if TYPE_CHECKING:
    from cdrl_train.data.stream import Batch


class Reconstruction(Objective):
    """``mean (x - f_d(f_e(x)))² + γ_e ‖θ_e‖²`` of an autoencoder of its own, for a phase with `Manifold`.

    The networks of the model do not learn. In a phase of `autoencoder` the autoencoder is the initializer
    of the model instead.

    Args:
        encoder_l2: γ_e, the weight of the sum of squares of the encoder's weights.

    Raises:
        ConfigError: a value is negative, or a side of the images is no multiple of 4.
    """

    autoencoder: SphereAutoencoder

    def __init__(self, encoder_l2: float = 1e-4) -> None:
        super().__init__()
        if encoder_l2 < 0:
            raise ConfigError(f"encoder_l2 must be at least 0, got {encoder_l2}")
        self.encoder_l2 = encoder_l2

    def build(self, image: ImageShape, num_classes: tuple[int, ...]) -> None:
        """Build the autoencoder."""
        self.autoencoder = _autoencoder_for(image)

    def losses(self, models: Models, batch: Batch, level: Level, random: RandomSource) -> Losses:
        """The loss of the autoencoder."""
        return Losses(
            {"autoencoder": reconstruction_loss(self.autoencoder, batch.x, self.encoder_l2).value}
        )

    def summary(self) -> str:
        """The text ``reconstruction``."""
        return "reconstruction"


class Manifold(Persistent):
    """`Persistent`, and negatives of MPDR for the energy of the cleanest level without labels.

    A negative begins at an image's own place on the sphere of an autoencoder's latents, walks along the
    manifold (`LatentWalk`), is decoded and noised, and goes on as a chain on the energy. It lies where
    anomalies are hard to tell: a garment upside down, or two halves that do not belong together. Its loss
    is

    ::

        w max(E(y⁺) - E(y⁻), -margin)

    so a negative that has ``margin`` nats more than its image teaches nothing. Without that bound the
    energy would grow there for as long as it is trained, and be no density any more. The autoencoder
    belongs to the objective. It begins with that of an earlier phase of `Reconstruction`, and learns on.

    Args:
        manifold_weight: weight of the loss of the negatives beside the data.
        margin: nats; null: without a bound.
        latent_steps: steps of the walk along the manifold.
        latent_step: length of a step downhill on the sphere.
        latent_noise: standard deviation of a step's noise.
        encoder_l2: see `Reconstruction`.
        chain_steps: Langevin steps of the persistent chains, and of the negatives after the walk.
        Others: see `Persistent`.

    Raises:
        ConfigError: a value is out of range, or a side of the images is no multiple of 4.
    """

    autoencoder: SphereAutoencoder
    titles: ClassVar[dict[str, str]] = {
        **Persistent.titles,
        "manifold_gap": "E(y⁺) - E(y⁻) of the negatives beside the data, cleanest level, nats",
    }

    def __init__(
        self,
        score_matching: float = 20.0,
        manifold_weight: float = 1.0,
        margin: float | None = 100.0,
        latent_steps: int = 2,
        latent_step: float = 0.05,
        latent_noise: float = 0.02,
        encoder_l2: float = 1e-4,
        **options: Any,
    ) -> None:
        super().__init__(score_matching=score_matching, **options)
        bounded = {"manifold_weight": manifold_weight, "margin": margin, "encoder_l2": encoder_l2}
        for name, value in bounded.items():
            if value is not None and value < 0:
                raise ConfigError(f"{name} must be at least 0, got {value}")
        self.manifold_weight = manifold_weight
        self.margin = margin
        self.encoder_l2 = encoder_l2
        self.walk = LatentWalk(latent_steps, latent_step, latent_noise)

    def build(self, image: ImageShape, num_classes: tuple[int, ...]) -> None:
        """Build the autoencoder, and make room for the chains."""
        super().build(image, num_classes)
        self.autoencoder = _autoencoder_for(image)

    def begin(self, earlier: Sequence[Objective], models: Models) -> None:
        """Begin with the autoencoder of the latest phase that has one."""
        for objective in reversed(earlier):
            if isinstance(objective, Reconstruction | Manifold):
                self.autoencoder.load_state_dict(objective.autoencoder.state_dict())
                return

    def losses(self, models: Models, batch: Batch, level: Level, random: RandomSource) -> Losses:
        """The losses of `Persistent`, that of the negatives, and that of the autoencoder."""
        found = super().losses(models, batch, level, random)
        # Before the walk: some versions of autocast keep casts that were made without gradients.
        learnt = reconstruction_loss(self.autoencoder, batch.x, self.encoder_l2)
        beside = self.manifold_loss(models, batch, level, random)
        totals = {
            **found.totals,
            "ebm": found.totals["ebm"] + self.manifold_weight * beside.value,
            "autoencoder": learnt.value,
        }
        return Losses(totals, found.by_level, {"manifold_gap": beside.per_image.mean()})

    def manifold_loss(
        self, models: Models, batch: Batch, level: Level, random: RandomSource
    ) -> Loss:
        """The loss of the negatives beside the data. The value per image is ``E(y⁺) - E(y⁻)``."""
        x = batch.x
        lowest = models.schedule.level(torch.ones_like(level.t), x.device)
        blind = None if batch.labels is None else torch.zeros_like(batch.labels)
        end = self._negatives(models.frozen_energy(blind), x, lowest, random)
        positive = noised(x, lowest, random.normal(x.shape[1:]))
        labels = None if blind is None else torch.cat([blind, blind])
        of_data, of_negatives = energies_of_both(models, positive, end, labels, lowest.t)
        gap = of_data - of_negatives
        bounded = gap if self.margin is None else gap.clamp(min=-self.margin)
        weight = contrastive_weight(lowest, models.schedule, self.weight)
        return Loss((weight * bounded).mean(), gap.detach())

    @torch.no_grad()
    def _negatives(self, energy: Energy, x: Tensor, lowest: Level, random: RandomSource) -> Tensor:
        """y⁻ (B, C, H, W) from images x: along the manifold, noised, then a chain."""
        potential = energy.at(lowest)
        noise = random.normal(x.shape[1:])
        walked = self.walk(
            self.autoencoder, x, lambda u: potential(noised(u, lowest, noise)), random
        )
        variance = self.step_scale * lowest.step_variance
        start = noised(walked.images, lowest, noise)
        return self.kernel.run(start, potential, variance, random, self.chain_steps).y

    def summary(self) -> str:
        """The text ``K = …, persistent chains, negatives beside the data``."""
        return f"{super().summary()}, negatives beside the data"


def _autoencoder_for(image: ImageShape) -> SphereAutoencoder:
    return SphereAutoencoder(image.channels, image_size=(image.height, image.width))
