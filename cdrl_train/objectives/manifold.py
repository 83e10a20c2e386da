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
from cdrl_train.objectives.losses import Loss, contrastive_weight
from cdrl_train.objectives.persistent import Persistent
from cdrl_train.objectives.walk import LatentWalk

if TYPE_CHECKING:
    from cdrl_train.data.stream import Batch


class Reconstruction(Objective):
    """``mean (x - f_d(f_e(x)))²`` of an autoencoder of its own, for a later phase with `Manifold`.

    The networks of the model do not learn. In a phase of `autoencoder` the autoencoder is the initializer
    of the model instead.

    Raises:
        ConfigError: a side of the images is no multiple of 4.
    """

    autoencoder: SphereAutoencoder
    titles: ClassVar[dict[str, str]] = {
        "reconstruction": "Error of reconstruction, ‖u - f_d(f_e(u))‖², per image",
    }

    def __init__(self) -> None:
        super().__init__()

    def build(self, image: ImageShape, num_classes: tuple[int, ...]) -> None:
        """Build the autoencoder."""
        self.autoencoder = _autoencoder_for(image)

    def losses(self, models: Models, batch: Batch, level: Level, random: RandomSource) -> Losses:
        """The loss of the autoencoder."""
        found = reconstruction_loss(self.autoencoder, batch.x)
        return Losses({"autoencoder": found.value}, {"reconstruction": found.per_image})

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
        manifold_weight: weight of this loss.
        margin: nats; null: without a bound.
        latent_steps, latent_step, latent_noise: the walk, see `LatentWalk`.
        chain_steps: Langevin steps of the persistent chains, and of the negatives after the walk.
        Others: see `Persistent`.

    Raises:
        ConfigError: a value is out of range, or a side of the images is no multiple of 4.
    """

    autoencoder: SphereAutoencoder
    titles: ClassVar[dict[str, str]] = {
        **Persistent.titles,
        **Reconstruction.titles,
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
        **options: Any,
    ) -> None:
        super().__init__(score_matching=score_matching, **options)
        if manifold_weight < 0 or (margin is not None and margin < 0):
            raise ConfigError(
                f"manifold_weight and margin must be at least 0, got {manifold_weight} and {margin}"
            )
        self.manifold_weight = manifold_weight
        self.margin = margin
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
        beside = self._beside(models, batch, level, random)
        learnt = reconstruction_loss(self.autoencoder, batch.x)
        totals = {
            **found.totals,
            "ebm": found.totals["ebm"] + self.manifold_weight * beside.value,
            "autoencoder": learnt.value,
        }
        values = {"manifold_gap": beside.per_image, "reconstruction": learnt.per_image}
        return Losses(totals, {**found.by_level, **values})

    def _beside(self, models: Models, batch: Batch, level: Level, random: RandomSource) -> Loss:
        """The loss of the negatives beside the data. The value per image is ``E(y⁺) - E(y⁻)``."""
        x = batch.x
        lowest = models.schedule.level(torch.ones_like(level.t), x.device)
        blind = None if batch.labels is None else torch.zeros_like(batch.labels)
        end = self._negatives(models.frozen_energy(blind), x, lowest, random)
        positive = lowest.expand(lowest.scale, x) * lowest.diffused(x, random.normal(x.shape[1:]))
        twice = models.schedule.level(torch.cat([lowest.t, lowest.t]), x.device)
        with models.evaluating():
            energy = models.energy(None if blind is None else torch.cat([blind, blind]))
            of_data, of_negatives = energy(torch.cat([positive, end]), twice).chunk(2)
        gap = of_data - of_negatives
        bounded = gap if self.margin is None else gap.clamp(min=-self.margin)
        weight = contrastive_weight(lowest, models.schedule, self.weight)
        return Loss((weight * bounded).mean(), gap.detach())

    @torch.no_grad()
    def _negatives(self, energy: Energy, x: Tensor, lowest: Level, random: RandomSource) -> Tensor:
        """y⁻ (B, C, H, W) from images x: along the manifold, noised, then a chain."""
        potential = energy.at(lowest)
        noise = random.normal(x.shape[1:])

        def noised(images: Tensor) -> Tensor:
            return lowest.expand(lowest.scale, images) * lowest.diffused(images, noise)

        walked = self.walk(self.autoencoder, x, lambda u: potential(noised(u)), random)
        variance = self.step_scale * lowest.step_variance
        start = noised(walked.images)
        return self.kernel.run(start, potential, variance, random, self.chain_steps).y

    def summary(self) -> str:
        """The text ``K = …, persistent chains, negatives beside the data``."""
        return f"{super().summary()}, negatives beside the data"


def _autoencoder_for(image: ImageShape) -> SphereAutoencoder:
    return SphereAutoencoder(image.channels, image_size=(image.height, image.width))
