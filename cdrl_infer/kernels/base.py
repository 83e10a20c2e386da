"""What a transition kernel is: one step of many independent chains, and how far to step."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from cdrl_infer.energies.base import Energy
from cdrl_infer.errors import InputError
from cdrl_infer.random import RandomSource
from cdrl_infer.schedule import Level


class State(Protocol):
    """Where the chains are, and whatever else a kernel carries from step to step."""

    @property
    def y(self) -> Tensor:
        """(B, ...), one chain a row."""
        ...


StateT = TypeVar("StateT", bound=State)


class StepInfo(NamedTuple):
    """What one step did, chain by chain: 1 and True throughout for an unadjusted kernel."""

    acceptance: Tensor  # (B,) the probability with which the proposed move was to be accepted
    accepted: Tensor  # (B,) bool, whether it was


class ChainEnd(NamedTuple):
    """Where several steps led."""

    y: Tensor  # (B, ...)
    acceptance: Tensor  # (B,) mean of each chain's acceptance probabilities; NaN after no step


@dataclass(frozen=True)
class Kernel(ABC, Generic[StateT]):
    """A Markov transition for chains that share nothing; levels may be mixed in a batch.

    Args:
        step_scale: s² = step_scale · s_t², a multiple of the schedule's step variance; one float for
            all levels or T floats for t = T … 1, the order in which levels run.

    Raises:
        InputError: a step_scale that is not positive and finite.
    """

    step_scale: float | Sequence[float] = 1.0

    def __post_init__(self) -> None:
        given = self.step_scale
        scales = given if isinstance(given, Sequence) else [given]
        if not scales or not all(0 < scale < math.inf for scale in scales):
            raise InputError(
                f"step_scale must be positive and finite, one number or one per level, got {given}"
            )

    def check_levels(self, num_levels: int) -> None:
        """Raise `InputError` unless step_scale is one float or one per level."""
        if isinstance(self.step_scale, Sequence) and len(self.step_scale) != num_levels:
            raise InputError(
                f"step_scale must be one number or {num_levels}, one per level, "
                f"got {len(self.step_scale)}"
            )

    def step_variance(self, level: Level) -> Tensor:
        """s² in the shape of the level's constants, () or (B,)."""
        if not isinstance(self.step_scale, Sequence):
            return level.step_variance * self.step_scale
        by_t = torch.tensor(self.step_scale[::-1]).to(level.step_variance)  # t = 1 … T
        return level.step_variance * by_t[level.t - 1]

    @abstractmethod
    def init(self, y: Tensor, energy: Energy, level: Level) -> StateT:
        """Start chains at y (B, ...)."""

    @abstractmethod
    def step(
        self, state: StateT, energy: Energy, level: Level, random: RandomSource
    ) -> tuple[StateT, StepInfo]:
        """One transition of every chain."""

    def run(
        self, y: Tensor, energy: Energy, level: Level, random: RandomSource, steps: int
    ) -> ChainEnd:
        """Where ``steps`` transitions lead from y (B, ...); no step costs no gradient."""
        if steps == 0:
            return ChainEnd(y, torch.full(y.shape[:1], math.nan, device=y.device))
        state = self.init(y, energy, level)
        total = torch.zeros(y.shape[:1], device=y.device)
        for _ in range(steps):
            state, info = self.step(state, energy, level, random)
            total += info.acceptance
        return ChainEnd(state.y, total / steps)
