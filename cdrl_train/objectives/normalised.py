"""Cooperative training that also learns the normaliser of each level."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from cdrl_infer.errors import ConfigError
from cdrl_infer.likelihood.bar import log_mean_exp
from cdrl_infer.model import ImageShape
from cdrl_infer.networks.gaussian import log_normal
from cdrl_infer.random import RandomSource, Repeated
from cdrl_infer.schedule import Level
from cdrl_train.objectives.base import Losses, Models
from cdrl_train.objectives.cooperative import Cooperative
from cdrl_train.objectives.losses import ContrastiveWeight, Coupling, NoisedPair, noised_pair

if TYPE_CHECKING:
    from cdrl_train.data.stream import Batch

MOST_LEVELS = 64  # of the buffers, which are made before the schedule is known


class Normalised(Cooperative):
    """CDRL, and one number per transition: ``b_t = log Z_{t-1}/Z_t`` by self-normalised likelihood.

    The normaliser of the recovery density is ``Z̃_t(x_t) = ∫ e^{-E(y)} k_t(x_t | y) dy`` with the forward
    kernel k_t. If the levels fit each other, its log is ``b_t - e_t(x_t)``, where e_t is the energy of
    the level above; at the top it is that of N(0, I). The bound of `SelfNormalised` then is least where
    ``e^{b_t}`` is the mean of ``R_t = e^{e_t(x_t)} Z̃_t(x_t)`` over noised data. Z̃ is estimated from
    draws of the initializer's Gaussian. The energies do not learn from it.

    Args:
        draws: draws of y for each image.
        rate: of the averages, ``e^{b_t} ← (1 - rate) e^{b_t} + rate · mean R_t`` after each step.
        Others: see `Cooperative`.

    Raises:
        ConfigError: a value is out of range.
    """

    one_process: ClassVar[bool] = True
    log_ratio: Tensor
    begun: Tensor
    titles: ClassVar[dict[str, str]] = {
        **Cooperative.titles,
        "log_ratio": "b_t, the learnt log Z_{t-1}/Z_t by transition, nats",
        "log_ratio_mean": "Mean of log R_t by transition, nats",
    }

    def __init__(
        self,
        coupling: Coupling = "markov",
        weight: ContrastiveWeight = "noise",
        draws: int = 16,
        rate: float = 0.05,
        **options: Any,
    ) -> None:
        super().__init__(coupling=coupling, weight=weight, **options)
        if draws < 1 or not 0 < rate <= 1:
            raise ConfigError(
                f"expected draws of at least 1 and rate in (0, 1], got {draws} and {rate}"
            )
        if coupling != "markov":
            raise ConfigError(
                "the normalisers are those of the forward process, so coupling must be 'markov', got "
                f"{coupling!r}"
            )
        self.draws = draws
        self.rate = rate

    def build(self, image: ImageShape, num_classes: tuple[int, ...]) -> None:
        """Make room for the numbers, at t - 1 for transition t."""
        self.register_buffer("log_ratio", torch.zeros(MOST_LEVELS))
        self.register_buffer("begun", torch.zeros(MOST_LEVELS))

    def losses(self, models: Models, batch: Batch, level: Level, random: RandomSource) -> Losses:
        """The losses of `Cooperative`; the numbers move."""
        found = super().losses(models, batch, level, random)
        pair = noised_pair(batch.x, level, self.coupling, random)
        log_r = log_ratios(models, batch.labels, pair, level, self.draws, random)
        self._average(log_r, level.t)
        values = {"log_ratio_mean": log_r, "log_ratio": self.log_ratio[level.t - 1]}
        return Losses(found.totals, {**found.by_level, **values})

    def _average(self, log_r: Tensor, t: Tensor) -> None:
        """Average ``e^{b_t}`` and the mean of R_t over the images of each transition."""
        index = torch.arange(1, MOST_LEVELS + 1, device=t.device)
        ours = t == index[:, None]
        count = ours.sum(1)
        masked = torch.where(ours, log_r, torch.full_like(log_r, -math.inf))
        target = masked.logsumexp(1) - count.clamp(min=1).log()
        rate = torch.where(self.begun > 0, self.rate, 1.0)
        moved = torch.logaddexp(self.log_ratio + torch.log1p(-rate), target + rate.log())
        moved = torch.where(count > 0, moved, self.log_ratio)
        self.log_ratio.copy_(moved)
        self.begun.copy_(torch.where(count > 0, torch.ones_like(self.begun), self.begun))

    def summary(self) -> str:
        """The text ``K = …, normalisers``."""
        return f"{super().summary()}, one normaliser per level"


@torch.no_grad()
def log_ratios(
    models: Models,
    labels: Tensor | None,
    pair: NoisedPair,
    level: Level,
    draws: int,
    random: RandomSource,
) -> Tensor:
    """``log R_t = e_t(x_t) + log Ẑ_t(x_t)`` of each image, (B,) nats.

    Args:
        models: the networks; the energy is the frozen one.
        labels: (B, A), or None.
        pair: x_t of the forward process.
        level: the transition of each image.
        draws: of y for each image.
        random: the noise.
    """
    x_t, schedule = pair.x_t, models.schedule
    proposal = models.proposal(labels)
    mean = proposal.mean(x_t, level)
    many = schedule.level(level.t.repeat_interleave(draws), x_t.device)
    centre = mean.repeat_interleave(draws, 0)
    y = proposal.around(centre, many, Repeated(random, draws))
    row = None if labels is None else labels.repeat_interleave(draws, 0)
    log_weight = (
        log_normal(
            x_t.repeat_interleave(draws, 0) - many.expand(many.gain, y) * y, many.noise_variance
        )
        - models.frozen_energy(row)(y, many)
        - log_normal(y - centre, many.proposal_variance)
    )
    return _energy_above(models, labels, x_t, level) + log_mean_exp(log_weight.reshape(-1, draws))


def _energy_above(models: Models, labels: Tensor | None, x_t: Tensor, level: Level) -> Tensor:
    """``e_t(x_t)``: of the level above, or of N(0, I) at the top, (B,) nats."""
    top = level.t == models.schedule.num_levels
    above = models.schedule.level((level.t + 1).clamp(max=models.schedule.num_levels), x_t.device)
    values = models.frozen_energy(labels)(above.expand(above.scale, x_t) * x_t, above)
    normal = -log_normal(x_t, torch.ones_like(level.alpha))
    return torch.where(top, normal, values)
