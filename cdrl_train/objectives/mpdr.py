"""Manifold projection-diffusion recovery: negatives that start near the data, along a manifold."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from cdrl_infer.energies.base import FunctionPotential
from cdrl_infer.errors import ConfigError
from cdrl_infer.kernels.langevin import BoxedLangevin
from cdrl_infer.model import original
from cdrl_infer.networks.autoencoder import (
    Autoencoder,
    ConvEnergy,
    ReconstructionEnergy,
    SphereAutoencoder,
)
from cdrl_infer.networks.registry import ENERGIES
from cdrl_infer.random import RandomSource
from cdrl_infer.schedule import Level, NoiseSchedule
from cdrl_train.objectives.autoencoder import check_sphere
from cdrl_train.objectives.base import Losses, Models, Objective
from cdrl_train.objectives.walk import Distance, LatentWalk, Walked, arc, pulled

if TYPE_CHECKING:
    from cdrl_train.data.stream import Batch

DEFAULTS = inspect.signature(SphereAutoencoder.__init__).parameters


class Negatives(NamedTuple):
    """The points of the chains, without gradients."""

    walked: Walked  # the latent chain, and the start of the visible chain
    end: Tensor  # (B, C, H, W) x⁻


class ManifoldRecovery(Objective):
    """MPDR (Yoon, Jin, Noh, Park, NeurIPS 2023, arXiv 2310.18677), for energies without noise levels.

    ::

        s ~ U(0.05, 0.3);   z̃ = proj(f_e(x) + s ε)             project and diffuse
        latent chain from z̃ on   E(f_d(z)) + γ_z R(f_d(z))      unit-length tangent gradients
        visible chain from f_d(z) on   E(x) + γ R(x)            Langevin, clamped to the range of images
        loss   E(x) - E(x⁻) + γ_x E(x)² + γ_n E(x⁻)² + γ_e ‖θ_e‖²

    with ``R(x') = d(f_e(x'), z̃)² / 2s²``. MPDR-S has a `ConvEnergy` and γ_x = γ_n = 1, γ_e = 0. MPDR-R
    has a `ReconstructionEnergy`, which begins at the weights of the autoencoder, and γ_x = 0, γ_n = 1,
    γ_e = 1e-4. The autoencoder does not learn. An ensemble shares the batch.

    Energies are the paper's. The visible chain is a Langevin chain of the library on ``(E + γR)/T`` with
    the energy's temperature T, so that sampling from the model continues it. Its noise has the variance
    s_t² of the schedule, its gradient step is ``s_t²/2T``. Images u = 2x - 1 lie in [-1, 1]: noise of
    0.005 in x is 0.01 in u, and a step of ``10 ∇_x E`` in x is one of ``40 ∇_u E`` in u. With the default
    T = 1.25e-6 and s_t² = 1e-4 both hold. Another T makes a hotter or colder chain.

    Args:
        latent_steps: steps of the latent chain, 2 (MPDR-S) or 5 (MPDR-R) for MNIST.
        latent_step: length of a step downhill on the sphere, 0.05 (S) or 0.1 (R).
        latent_noise: standard deviation of its noise.
        latent_pull: γ_z.
        langevin_steps: steps of the visible chain.
        step_scale: multiplies the schedule's Langevin step variance.
        noise_scale: multiplies the noise of the visible chain, see `Langevin`.
        pull: γ.
        distance: d: "chord" is the length of the line between two points, "arc" that along the sphere.
        spread_min, spread_max: the least and the largest s.
        positive_square: γ_x.
        negative_square: γ_n.
        encoder_l2: γ_e, of a `ReconstructionEnergy`.

    Raises:
        ConfigError: a value is out of range.
    """

    runs_chains = True
    needs_initializer = True
    method = (
        "An MPDR model",
        "[Energy-Based Models for Anomaly Detection: A Manifold Diffusion Recovery Approach]"
        "(https://arxiv.org/abs/2310.18677) (Yoon, Jin, Noh, Park, NeurIPS 2023)",
    )
    titles: ClassVar[dict[str, str]] = {
        "energy_positive": "Energy of data, E(x), in the paper's units",
        "energy_negative": "Energy of the chains' ends, E(x⁻), in the paper's units",
        "energy_gap": "E(x) - E(x⁻), in the paper's units",
        "latent_move": "Angle between f_e(x) and the end of the latent chain",
        "displacement": "How far the visible chain moves an image, as root mean square in [-1, 1]",
    }

    def __init__(
        self,
        latent_steps: int = 2,
        latent_step: float = 0.05,
        latent_noise: float = 0.02,
        latent_pull: float = 1e-4,
        langevin_steps: int = 5,
        step_scale: float = 1.0,
        noise_scale: float = 1.0,
        pull: float = 1e-4,
        distance: Distance = "chord",
        spread_min: float = 0.05,
        spread_max: float = 0.3,
        positive_square: float = 1.0,
        negative_square: float = 1.0,
        encoder_l2: float = 0.0,
    ) -> None:
        super().__init__()
        self.walk = LatentWalk(
            latent_steps, latent_step, latent_noise, distance, spread_min, spread_max
        )
        weights = {
            "latent_pull": latent_pull,
            "langevin_steps": langevin_steps,
            "noise_scale": noise_scale,
            "pull": pull,
            "positive_square": positive_square,
            "negative_square": negative_square,
            "encoder_l2": encoder_l2,
        }
        for name, value in weights.items():
            if value < 0:
                raise ConfigError(f"{name} must be at least 0, got {value}")
        if not step_scale > 0:
            raise ConfigError(f"step_scale must be positive, got {step_scale}")
        self.latent_pull = latent_pull
        self.langevin_steps = langevin_steps
        self.step_scale = step_scale
        self.noise_scale = noise_scale
        self.pull = pull
        self.positive_square = positive_square
        self.negative_square = negative_square
        self.encoder_l2 = encoder_l2

    def check(
        self, ebm: dict[str, Any], initializer: dict[str, Any] | None, schedule: NoiseSchedule
    ) -> None:
        """The networks must be an autoencoder and an energy without levels that fits the losses."""
        check_sphere(initializer, schedule)
        kind = ENERGIES.find(ebm.get("class"), "ebm")
        if not issubclass(kind, ConvEnergy | ReconstructionEnergy):
            raise ConfigError(
                "needs the energy 'ConvEnergy' (MPDR-S) or 'ReconstructionEnergy' (MPDR-R), got "
                f"{ebm.get('class')!r:.60}"
            )
        if issubclass(kind, ConvEnergy):
            if self.encoder_l2:
                raise ConfigError("has encoder_l2 for a 'ReconstructionEnergy' only; set it to 0")
            return
        ours, theirs = _sizes(ebm), _sizes(initializer or {})
        if ours != theirs:
            raise ConfigError(
                "lets a ReconstructionEnergy begin at the first autoencoder of the initializer, so both "
                f"must have the same sizes, got {ours} and {theirs}"
            )

    def begin(self, earlier: Sequence[Objective], models: Models) -> None:
        """Give a `ReconstructionEnergy` the weights of the autoencoder, unless it has learnt already."""
        if isinstance(models.ebm, ReconstructionEnergy) and not any(
            isinstance(objective, ManifoldRecovery) for objective in earlier
        ):
            first: SphereAutoencoder = original(models.initializer).members[0]
            models.ebm.load_state_dict({**models.ebm.state_dict(), **_autoencoder(first)})

    def losses(self, models: Models, batch: Batch, level: Level, random: RandomSource) -> Losses:
        """The loss of the energy, with negatives from the chains."""
        found = self.negatives(models, batch.x, level, random)
        energy, unit = models.energy(None), models.ebm.temperature
        positive = unit * energy(batch.x, level)
        negative = unit * energy(found.end, level)
        loss = (
            positive.mean()
            - negative.mean()
            + self.positive_square * positive.square().mean()
            + self.negative_square * negative.square().mean()
        )
        if self.encoder_l2:
            loss = loss + self.encoder_l2 * models.ebm.encoder_norm()
        moved = (found.end - found.walked.images).square().flatten(1).mean(1).sqrt()
        return Losses(
            {"ebm": loss},
            {
                "energy_positive": positive.detach(),
                "energy_negative": negative.detach(),
                "energy_gap": (positive - negative).detach(),
                "latent_move": arc(found.walked.projected, found.walked.latent),
                "displacement": moved,
            },
        )

    @torch.no_grad()
    def negatives(self, models: Models, x: Tensor, level: Level, random: RandomSource) -> Negatives:
        """Project, diffuse and run the two chains from images x (B, C, H, W)."""
        energy, unit = models.frozen_energy(None).at(level), models.ebm.temperature
        walked = self.walk(original(models.initializer), x, energy, random, self.latent_pull / unit)
        visible = BoxedLangevin(self.noise_scale).run(
            walked.images,
            FunctionPotential(
                lambda images: pulled(images, energy, walked.pulls, self.pull / unit)
            ),
            self.step_scale * level.step_variance,
            random,
            self.langevin_steps,
        )
        return Negatives(walked, visible.y)

    def summary(self) -> str:
        """The text ``latent steps …, K = …``."""
        return f"{self.walk.latent_steps} latent steps, K = {self.langevin_steps}"


def _autoencoder(network: Autoencoder) -> dict[str, Tensor]:
    """The weights of an autoencoder, without what the network has besides."""
    parts = ("encoder.", "leave.", "decoder.")
    return {name: w for name, w in network.state_dict().items() if name.startswith(parts)}


def _sizes(options: dict[str, Any]) -> dict[str, Any]:
    """The sizes of an autoencoder's layers, of an ensemble's first one, defaults included."""
    names = ("width", "hidden", "latent")
    first = {"width": options["widths"][0]} if options.get("widths") else {}
    given = {name: options[name] for name in names if name in options}
    return {**{name: DEFAULTS[name].default for name in names}, **given, **first}
