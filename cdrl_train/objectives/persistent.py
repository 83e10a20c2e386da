"""Cooperative training with persistent chains that find where an energy is lower off the data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from cdrl_infer.errors import ConfigError
from cdrl_infer.kernels.base import per_chain
from cdrl_infer.model import ImageShape
from cdrl_infer.random import RandomSource
from cdrl_infer.schedule import Level
from cdrl_train.objectives.base import Losses, Models
from cdrl_train.objectives.cooperative import Cooperative, CooperativeStep
from cdrl_train.objectives.losses import (
    ContrastiveWeight,
    Coupling,
    contrastive_loss,
    contrastive_weight,
    noised,
)

if TYPE_CHECKING:
    from cdrl_train.data.stream import Batch


class Particles(NamedTuple):
    """Points of chains; rows are chains. Transition 0 marks an empty slot."""

    y: Tensor  # (N, C, H, W)
    labels: Tensor  # (N, A) int64, 0 = not given
    t: Tensor  # (N,) int64, the transition; the chain runs on the energy of level t - 1


def energies_of_both(
    models: Models, data: Tensor, negatives: Tensor, labels: Tensor | None, t: Tensor
) -> tuple[Tensor, Tensor]:
    """The energies (B,) of noised data and of negatives (B, C, H, W), in one pass of the network.

    Args:
        models: the energy is the one in training.
        data, negatives: at the same levels.
        labels: (2B, A), first of the data; None for an unconditional model.
        t: (B,) the transitions.
    """
    twice = models.schedule.level(torch.cat([t, t]), data.device)
    with models.evaluating():
        energies = models.energy(labels)(torch.cat([data, negatives]), twice)
    of_data, of_negatives = energies.chunk(2)
    return of_data, of_negatives


class Persistent(Cooperative):
    """`Cooperative`, and chains on the energies of all levels that go on from step to step.

    Short chains from good proposals never come where an energy is lower than at the data, so they do
    not raise it there, and longer chains then leave the data. Persistent chains (Tieleman 2008) do come
    there. Each runs on ``E(y)`` alone, without the pull of a noisier image. For the chains of a level

    ::

        w [E(y⁺) - E(y)] if their energies are lower than those of noised data y⁺, else 0,

    on average over the latest gaps of all its chains. So the chains fill holes; they do not ask for
    lower energies where they happen to be too high, which is left to score matching and the K-step
    chains. A chain starts anew with the probability ``restart``: half of the times at noised data, else
    at a K-step sample y⁻.

    Args:
        chains: number of chains. Each step continues as many as the batch has images, in turn.
        chain_steps: Langevin steps of each chain it continues.
        restart: probability that a chain starts anew.
        lowest: share of the starts at data that are at the cleanest level, where energies leak most.
        chain_weight: weight of the loss of the chains.
        Others: see `Cooperative`.

    Raises:
        ConfigError: a value is out of range.
    """

    y: Tensor
    labels: Tensor
    t: Tensor
    gap: Tensor
    next: Tensor

    one_process: ClassVar[bool] = True
    titles: ClassVar[dict[str, str]] = {
        **Cooperative.titles,
        "chain_gap": "E(y⁺) - E(y) of persistent chains by transition, nats",
    }

    def __init__(
        self,
        coupling: Coupling = "markov",
        langevin_steps: int = 5,
        weight: ContrastiveWeight = "noise",
        score_matching: float = 1.0,
        chains: int = 256,
        chain_steps: int = 6,
        restart: float = 0.03,
        lowest: float = 0.5,
        chain_weight: float = 1.0,
        **options: Any,
    ) -> None:
        super().__init__(
            coupling=coupling,
            langevin_steps=langevin_steps,
            weight=weight,
            score_matching=score_matching,
            **options,
        )
        self.chains = chains
        self.chain_steps = chain_steps
        self.restart = restart
        self.lowest = lowest
        self.chain_weight = chain_weight
        if min(chains, chain_steps) < 1:
            raise ConfigError(
                f"chains and chain_steps must be at least 1, got {chains} and {chain_steps}"
            )
        for name in ("restart", "lowest"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} must lie in [0, 1], got {getattr(self, name)}")
        if chain_weight < 0:
            raise ConfigError(f"chain_weight must be at least 0, got {chain_weight}")

    def build(self, image: ImageShape, num_classes: tuple[int, ...]) -> None:
        """Make room for the chains; all slots are empty."""
        self.register_buffer("y", torch.zeros(self.chains, *image.shape))
        self.register_buffer(
            "labels", torch.zeros(self.chains, len(num_classes), dtype=torch.int64)
        )
        self.register_buffer("t", torch.zeros(self.chains, dtype=torch.int64))
        self.register_buffer("gap", torch.zeros(self.chains))  # the latest of each chain, nats
        self.register_buffer("next", torch.zeros((), dtype=torch.int64))

    def losses(self, models: Models, batch: Batch, level: Level, random: RandomSource) -> Losses:
        """The losses of `Cooperative`, and that of the persistent chains."""
        if len(batch.x) > self.chains:
            raise ConfigError(
                f"chains must be at least the batch size, {len(batch.x)}, got {self.chains}"
            )
        step = self.cooperate(models, batch, level, random)
        slots = (self.next + torch.arange(len(batch.x), device=batch.x.device)) % self.chains
        self.next.add_(len(batch.x)).remainder_(self.chains)
        chains = self._begin_or_go_on(
            slots, self._starts(models, batch, step, level, random), random
        )
        loss = self.chain_weight * self._contrast(models, batch, chains, slots, random)
        totals = {**step.losses.totals, "ebm": step.losses.totals["ebm"] + loss}
        return Losses(totals, {**step.losses.by_level, "chain_gap": self._mean_gap(level.t)})

    def _starts(
        self,
        models: Models,
        batch: Batch,
        step: CooperativeStep,
        level: Level,
        random: RandomSource,
    ) -> Particles:
        """Where a chain of each row would start: at noised data, or at the row's K-step sample."""
        at_data = random.uniform() < 0.5
        lowest = at_data & (random.uniform() < self.lowest)
        t = torch.where(lowest, torch.ones_like(level.t), level.t)
        fresh = random.normal(batch.x.shape[1:])
        at = noised(batch.x, models.schedule.level(t, batch.x.device), fresh)
        own = step.refined.end
        y = torch.where(per_chain(at_data, own), at, own)
        return Particles(y, self._labels(batch), t)

    def _begin_or_go_on(self, slots: Tensor, starts: Particles, random: RandomSource) -> Particles:
        """The chains in the slots; those that start anew, or were empty or infinite, from ``starts``."""
        old = Particles(self.y[slots], self.labels[slots], self.t[slots])
        sound = (old.t > 0) & old.y.isfinite().flatten(1).all(1)
        fresh = ~sound | (random.uniform() < self.restart)
        return Particles(
            *(
                torch.where(per_chain(fresh, new), new, kept)
                for new, kept in zip(starts, old, strict=True)
            )
        )

    def _contrast(
        self, models: Models, batch: Batch, chains: Particles, slots: Tensor, random: RandomSource
    ) -> Tensor:
        """Continue the chains, and the loss () of those at levels that leak."""
        schedule, device = models.schedule, batch.x.device
        level = schedule.level(chains.t, device)
        given = None if batch.labels is None else chains.labels
        end = self.kernel.run(
            chains.y,
            models.frozen_energy(given).at(level),
            self.step_scale * level.step_variance,
            random,
            self.chain_steps,
        ).y
        positive = noised(batch.x, level, random.normal(batch.x.shape[1:]))
        labels = None if given is None else torch.cat([self._labels(batch), given])
        of_data, of_chains = energies_of_both(models, positive, end, labels, chains.t)
        self.y[slots], self.labels[slots], self.t[slots] = end, chains.labels, chains.t
        self.gap[slots] = (of_data - of_chains).detach().to(self.gap)
        leaks = self._mean_gap(chains.t) > 0
        weight = contrastive_weight(level, schedule, self.weight)
        return contrastive_loss(of_data, of_chains, weight * leaks).value

    def _mean_gap(self, t: Tensor) -> Tensor:
        """(B,) the mean of the latest gaps of all chains at these transitions; 0 without a chain."""
        same = (t[:, None] == self.t).to(self.gap)
        return (same @ self.gap) / same.sum(1).clamp(min=1)

    def _labels(self, batch: Batch) -> Tensor:
        """(B, A) the labels of a batch; (B, 0) for an unconditional model."""
        return (
            batch.x.new_zeros(len(batch.x), 0, dtype=torch.int64)
            if batch.labels is None
            else batch.labels
        )

    def summary(self) -> str:
        """The text ``K = …, persistent chains``."""
        return f"{super().summary()}, persistent chains"
