"""A warm start: denoising score matching for the energy, and regression for the initializer."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from cdrl_infer.errors import ConfigError
from cdrl_infer.proposals import InitializerProposal
from cdrl_infer.random import RandomSource
from cdrl_infer.schedule import Level
from cdrl_train.objectives.base import Losses, Models, Objective
from cdrl_train.objectives.losses import (
    Coupling,
    noised_pair,
    regression_loss,
    score_matching_loss,
)

if TYPE_CHECKING:
    from cdrl_train.data.stream import Batch


class ScoreMatching(Objective):
    """``‖ m_t σ̄_{t-1} ∇_y E(y) - ε ‖²`` for the energy (Vincent 2011).

    The initializer, unless it is a distribution, learns the mean of the forward process,
    ``‖ g(x_t) - m_t E[x_{t-1} | x_t, x] ‖² / σ_t²``.

    Args:
        coupling: how x_t and x_{t-1} share noise, see `noised_pair`.
        regression: weight of the initializer's loss; with 0 the initializer does not learn.

    Raises:
        ConfigError: the weight is negative.
    """

    titles: ClassVar[dict[str, str]] = {
        "score_matching": "Score matching by transition, per image (at first: the number of pixels)",
        "regression": "Regression of the initializer by transition, per image",
    }

    def __init__(self, coupling: Coupling = "markov", regression: float = 1.0) -> None:
        super().__init__()
        if regression < 0:
            raise ConfigError(f"regression must be at least 0, got {regression}")
        self.coupling: Coupling = coupling
        self.regression = regression

    def losses(self, models: Models, batch: Batch, level: Level, random: RandomSource) -> Losses:
        """The score matching loss, and the regression loss of the initializer."""
        pair = noised_pair(batch.x, level, self.coupling, random)
        matching = score_matching_loss(models.energy(batch.labels), pair, level)
        totals = {"ebm": matching.value}
        by_level = {"score_matching": matching.per_image}
        proposal = models.proposal(batch.labels)
        if isinstance(proposal, InitializerProposal) and self.regression:
            regression = regression_loss(proposal, pair, level)
            totals["initializer"] = self.regression * regression.value
            by_level["regression"] = regression.per_image
        return Losses(totals, by_level)

    def summary(self) -> str:
        """The text ``score matching``."""
        return "score matching"
