"""Diffusion recovery likelihood: an energy learns from Langevin chains that start at x_t."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from cdrl_infer.config import from_config
from cdrl_infer.energies.base import Energy
from cdrl_infer.energies.recovery import RecoveryEnergy
from cdrl_infer.errors import ConfigError
from cdrl_infer.kernels import KERNELS
from cdrl_infer.kernels.base import Kernel
from cdrl_infer.random import RandomSource
from cdrl_infer.schedule import Level
from cdrl_train.objectives.base import Limit, Losses, Models, Objective
from cdrl_train.objectives.losses import (
    ContrastiveWeight,
    Coupling,
    NoisedPair,
    Refined,
    contrastive_loss,
    contrastive_weight,
    noised_pair,
    score_matching_loss,
)

if TYPE_CHECKING:
    from cdrl_train.data.stream import Batch


class RecoveryLikelihood(Objective):
    """``w [E(y⁺) - E(y⁻)]`` for data y⁺; K Langevin steps on ``p(y | x_t)`` from x_t give y⁻.

    Gao et al., "Learning Energy-Based Models by Diffusion Recovery Likelihood" (ICLR 2021).

    Args:
        coupling: how x_t and x_{t-1} share noise, see `noised_pair`.
        langevin_steps: K.
        step_scale: multiplies the schedule's Langevin step variance.
        kernel: of the chains: a name in `cdrl_infer.kernels.KERNELS`, the paper's is "langevin", or
            ``{"name": NAME, **options}``.
        weight: weights of the levels, see `contrastive_weight`.
        score_matching: weight of an additional score matching loss; 0 in the paper.
        max_energy_gap: a step counts as diverged if a transition's mean of |E(y⁺) - E(y⁻)| reaches this
            number of nats per value of an image.
        max_displacement: a step counts as diverged if Langevin moves a transition's images this far, as
            root mean square over the values of an image. Data lie in [-1, 1].

    Raises:
        ConfigError: a value is out of range.
    """

    runs_chains = True
    method = (
        "A DRL model",
        "[Learning Energy-Based Models by Diffusion Recovery Likelihood]"
        "(https://arxiv.org/abs/2012.08125) (Gao, Song, Poole, Wu, Kingma, ICLR 2021)",
    )
    titles: ClassVar[dict[str, str]] = {
        "energy_gap": "E(y⁺) - E(y⁻) by transition, nats",
        "energy_gap_size": "mean of |E(y⁺) - E(y⁻)| by transition, nats",
        "energy_positive": "Energy of data, E(y⁺), by transition, nats",
        "energy_negative": "Energy of Langevin's samples, E(y⁻), by transition, nats",
        "displacement": "How far Langevin moves an image, ‖y⁻ - y⁰‖, by transition",
    }

    def __init__(
        self,
        coupling: Coupling = "markov",
        langevin_steps: int = 30,
        step_scale: float = 1.0,
        kernel: str | dict[str, Any] = "langevin",
        weight: ContrastiveWeight = "paper",
        score_matching: float = 0.0,
        max_energy_gap: float = 1e4,
        max_displacement: float = 10.0,
    ) -> None:
        super().__init__()
        self.coupling: Coupling = coupling
        self.langevin_steps = langevin_steps
        self.step_scale = step_scale
        self.kernel = _kernel(kernel)
        self.weight: ContrastiveWeight = weight
        self.score_matching = score_matching
        self.max_energy_gap = max_energy_gap
        self.max_displacement = max_displacement
        for name in (
            "langevin_steps",
            "score_matching",
            "max_energy_gap",
            "max_displacement",
        ):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must be at least 0, got {getattr(self, name)}")
        if not step_scale > 0:
            raise ConfigError(f"step_scale must be positive, got {step_scale}")

    def losses(self, models: Models, batch: Batch, level: Level, random: RandomSource) -> Losses:
        """The contrastive loss plus the score matching loss."""
        pair = noised_pair(batch.x, level, self.coupling, random)
        refined = self.refine(models, batch, pair, pair.x_t, level, random)
        return self.contrast(models, batch, pair, refined, level)

    def refine(
        self,
        models: Models,
        batch: Batch,
        pair: NoisedPair,
        start: Tensor,
        level: Level,
        random: RandomSource,
    ) -> Refined:
        """K Langevin steps on ``p(y | x_t)`` from ``start`` (B, C, H, W)."""
        energy: Energy = RecoveryEnergy(models.frozen_energy(batch.labels), pair.x_t)
        step_size = self.step_scale * level.step_variance
        end = self.kernel.run(start, energy.at(level), step_size, random, self.langevin_steps)
        return Refined(start, end.y)

    def contrast(
        self, models: Models, batch: Batch, pair: NoisedPair, refined: Refined, level: Level
    ) -> Losses:
        """The losses of the energy, given the results of the chains."""
        energy = models.energy(batch.labels)
        by_level: dict[str, Tensor] = {}
        extra: Any = 0.0
        if self.score_matching:
            matching = score_matching_loss(energy, pair, level)
            positive, extra = matching.energy, self.score_matching * matching.value
            by_level["score_matching"] = matching.per_image
        else:
            positive = energy(pair.y, level)
        with models.evaluating():
            negative = energy(refined.end, level)
        weight = contrastive_weight(level, models.schedule, self.weight)
        contrast = contrastive_loss(positive, negative, weight)
        moved = (refined.end - refined.start).square().flatten(1).sum(1).sqrt()
        by_level |= {
            "energy_positive": positive.detach(),
            "energy_negative": negative.detach(),
            "energy_gap": contrast.per_image,
            "energy_gap_size": contrast.per_image.abs(),
            "displacement": moved,
        }
        return Losses({"ebm": contrast.value + extra}, by_level)

    def limits(self, num_values: int) -> Sequence[Limit]:
        """The limits ``max_energy_gap`` and ``max_displacement``."""
        return (
            Limit(
                "energy_gap_size",
                self.max_energy_gap,
                num_values,
                "max_energy_gap",
                "|E(y⁺) - E(y⁻)| per pixel of transition {}",
                "lower ebm_lr, or raise langevin_steps or score_matching",
            ),
            Limit(
                "displacement",
                self.max_displacement,
                num_values**0.5,
                "max_displacement",
                "how far Langevin moves a pixel in transition {}",
                "lower step_scale or ebm_lr",
            ),
        )

    def summary(self) -> str:
        """The text ``K = …``."""
        return f"K = {self.langevin_steps}"


def _kernel(chosen: str | dict[str, Any]) -> Kernel[Any]:
    """The kernel of a name, or of a name and options."""
    options = {"name": chosen} if isinstance(chosen, str) else dict(chosen)
    name = options.pop("name", None)
    kernel: Kernel[Any] = from_config(KERNELS.find(name, "kernel"), options, f"kernel {name!r}")
    return kernel
