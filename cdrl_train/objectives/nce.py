"""Noise-contrastive estimation: an energy learns to tell data from draws of the proposal."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

import torch.nn.functional as F

from cdrl_infer.errors import ConfigError
from cdrl_infer.random import RandomSource
from cdrl_infer.schedule import Level
from cdrl_train.objectives.base import Losses, Models, Objective
from cdrl_train.objectives.weighted import Fit, weigh

if TYPE_CHECKING:
    from cdrl_train.data.stream import Batch


class NoiseContrastive(Objective):
    """Logistic regression of data against k draws of q each, with the log-odds ``-E - log q - log k``.

    Gutmann & Hyvärinen, "Noise-contrastive estimation" (AISTATS 2010). At the optimum ``-E`` is the
    log-density itself, so the energy learns its normaliser through f.

    Args:
        draws: k.
        fit: what the proposal learns along, see `SelfNormalised`.

    Raises:
        ConfigError: ``draws`` is below 1.
    """

    needs_density = True
    needs_normaliser = True
    titles: ClassVar[dict[str, str]] = {
        "log_likelihood": "Log-likelihood of the data, if the energy is normalised, nats",
    }

    def __init__(self, draws: int = 4, fit: Fit = "likelihood") -> None:
        super().__init__()
        if draws < 1:
            raise ConfigError(f"draws must be at least 1, got {draws}")
        self.draws = draws
        self.fit: Fit = fit

    def losses(self, models: Models, batch: Batch, level: Level, random: RandomSource) -> Losses:
        """The loss of the classifier, and that of the proposal."""
        found = weigh(models, batch, self.draws, self.fit, random)
        odds = math.log(self.draws)
        of_data = F.softplus(odds - found.ratio_data)
        of_draws = F.softplus(found.log_weights - odds).sum(1)
        totals = {"ebm": (of_data + of_draws).mean()}
        if found.fit is not None:
            totals["initializer"] = found.fit
        return Losses(totals, {"log_likelihood": -found.positive.detach()})

    def summary(self) -> str:
        """The text ``noise-contrastive estimation`` with the draws."""
        return f"noise-contrastive estimation, {self.draws} draws per image"
