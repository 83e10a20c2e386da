"""What a transition kernel is: one step of many independent chains."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Generic, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from cdrl_infer.energies.base import Potential
from cdrl_infer.random import RandomSource


class State(Protocol):
    """Where the chains are, and whatever else a kernel carries from step to step."""

    @property
    def y(self) -> Tensor:
        """(B, ...), one chain a row."""
        ...


StateT = TypeVar("StateT", bound=State)


class StepInfo(NamedTuple):
    """What one step did to each chain; an unadjusted kernel gives 1 and True throughout."""

    acceptance: Tensor  # (B,) the probability of accepting the proposed move
    accepted: Tensor  # (B,) bool, whether it was accepted


class ChainEnd(NamedTuple):
    """Where several steps led."""

    y: Tensor  # (B, ...)
    acceptance: Tensor  # (B,) mean of each chain's acceptance probabilities; NaN after no step


class Kernel(ABC, Generic[StateT]):
    """A Markov transition for chains that share nothing, so each may have a step size of its own.

    A kernel is a frozen dataclass of its options. `cdrl_infer.kernels.KERNELS` has those with a name.
    """

    @property
    def optimal_acceptance(self) -> float | None:
        """The mean acceptance that step sizes should be adapted to; None if no move is ever rejected."""
        return None

    @abstractmethod
    def init(self, y: Tensor, potential: Potential) -> StateT:
        """Start chains at y (B, ...)."""

    @abstractmethod
    def step(
        self, state: StateT, potential: Potential, step_size: Tensor, random: RandomSource
    ) -> tuple[StateT, StepInfo]:
        """One transition of every chain.

        Args:
            state: where the chains are.
            potential: what they sample.
            step_size: s², the variance of the noise in one Langevin step; () or (B,).
            random: their noise.
        """

    def run(
        self, y: Tensor, potential: Potential, step_size: Tensor, random: RandomSource, steps: int
    ) -> ChainEnd:
        """Where ``steps`` transitions lead from y (B, ...); no step costs no gradient."""
        if steps == 0:
            return ChainEnd(y, torch.full(y.shape[:1], math.nan, device=y.device))
        state = self.init(y, potential)
        total = torch.zeros(y.shape[:1], device=y.device)
        for _ in range(steps):
            state, info = self.step(state, potential, step_size, random)
            total += info.acceptance
        return ChainEnd(state.y, total / steps)


def per_chain(value: Tensor, like: Tensor) -> Tensor:
    """``value`` of shape () or (B,) reshaped to broadcast against ``like`` (B, ...)."""
    return value.reshape(value.shape + (1,) * (like.ndim - 1)) if value.ndim else value
