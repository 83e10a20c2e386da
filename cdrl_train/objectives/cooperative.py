"""Cooperative training: the initializer proposes, Langevin refines, and both networks learn."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from torch import Tensor

from cdrl_infer.errors import ConfigError
from cdrl_infer.random import RandomSource
from cdrl_infer.schedule import Level
from cdrl_infer.storage.card import METHOD
from cdrl_train.objectives.base import Losses, Models
from cdrl_train.objectives.drl import RecoveryLikelihood
from cdrl_train.objectives.losses import (
    Coupling,
    Refined,
    imitation_loss,
    noised_pair,
    regression_loss,
)

if TYPE_CHECKING:
    from cdrl_train.data.stream import Batch


class CooperativeStep(NamedTuple):
    """The results of the chains, and the losses."""

    refined: Refined
    losses: Losses


class Cooperative(RecoveryLikelihood):
    """CDRL (Zhu et al., ICLR 2024, algorithm 1).

    Chains start at ``y⁰ = g(x_t) + τ_t ε`` and end at y⁻. The energy learns from y⁻ as in
    `RecoveryLikelihood`. The initializer learns to imitate the chain, ``‖ y⁻ - y⁰ ‖²``.

    Args:
        regression: weight of an additional regression loss of the initializer; 0 in the paper.
        Others: see `RecoveryLikelihood`.

    Raises:
        ConfigError: a value is out of range.
    """

    needs_initializer = True
    method = METHOD
    titles: ClassVar[dict[str, str]] = {
        **RecoveryLikelihood.titles,
        "imitation": "Imitation, ‖y⁻ - y⁰‖² after the step, by transition, per image",
    }

    def __init__(
        self,
        coupling: Coupling = "shared",
        langevin_steps: int = 15,
        regression: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(coupling=coupling, langevin_steps=langevin_steps, **options)
        if regression < 0:
            raise ConfigError(f"regression must be at least 0, got {regression}")
        self.regression = regression

    def losses(self, models: Models, batch: Batch, level: Level, random: RandomSource) -> Losses:
        """The contrastive loss, the imitation loss, and the additional losses."""
        return self.cooperate(models, batch, level, random).losses

    def cooperate(
        self, models: Models, batch: Batch, level: Level, random: RandomSource
    ) -> CooperativeStep:
        """Propose, refine, and compute the losses."""
        pair = noised_pair(batch.x, level, self.coupling, random)
        proposal = models.proposal(batch.labels)
        mean: Tensor = proposal.mean(pair.x_t, level)
        start = proposal.around(mean.detach(), level, random)
        refined = self.refine(models, batch, pair, start, level, random)
        found = self.contrast(models, batch, pair, refined, level)
        imitation = imitation_loss(mean, refined)
        total, by_level = imitation.value, {**found.by_level, "imitation": imitation.per_image}
        if self.regression:
            regression = regression_loss(proposal, pair, level)
            total = total + self.regression * regression.value
            by_level["regression"] = regression.per_image
        losses = Losses({**found.totals, "initializer": total}, by_level)
        return CooperativeStep(refined, losses)
