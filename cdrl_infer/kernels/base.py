"""The base class of transition kernels: one step of many independent chains."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Generic, NamedTuple, Protocol, TypeVar

from torch import Tensor

from cdrl_infer.energies.base import Potential
from cdrl_infer.random import RandomSource


class State(Protocol):
    """The points of the chains, and anything else that a kernel keeps between steps."""

    @property
    def y(self) -> Tensor:
        """(B, ...), one row per chain."""
        ...


StateT = TypeVar("StateT", bound=State)


class StepInfo(NamedTuple):
    """What one step did to each chain; an unadjusted kernel always gives 1 and True."""

    acceptance: Tensor  # (B,) the probability of accepting the proposed move
    accepted: Tensor  # (B,) bool, whether the chain made the move


class ChainEnd(NamedTuple):
    """The points of the chains after several steps."""

    y: Tensor  # (B, ...)
    acceptance: Tensor  # (B,) mean acceptance probability of each chain; NaN for zero steps


class Kernel(ABC, Generic[StateT]):
    """A Markov transition of independent chains; each chain may have its own step size.

    A kernel is a frozen dataclass of its options. `cdrl_infer.kernels.KERNELS` has the kernels by name.
    """

    @property
    def optimal_acceptance(self) -> float | None:
        """The best mean acceptance, for adapting step sizes; None if the kernel accepts every move."""
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
            state: the state of the chains.
            potential: the energy that the chains sample.
            step_size: s², the variance of the noise in one Langevin step; () or (B,).
            random: the noise of the chains.
        """

    def run(
        self, y: Tensor, potential: Potential, step_size: Tensor, random: RandomSource, steps: int
    ) -> ChainEnd:
        """Make ``steps`` transitions from y (B, ...)."""
        if steps == 0:
            return ChainEnd(y, y.new_full(y.shape[:1], math.nan))
        state = self.init(y, potential)
        total = y.new_zeros(y.shape[:1])
        for _ in range(steps):
            state, info = self.step(state, potential, step_size, random)
            total += info.acceptance
        return ChainEnd(state.y, total / steps)


def per_chain(value: Tensor, like: Tensor) -> Tensor:
    """``value`` of shape () or (B,) reshaped to broadcast against ``like`` (B, ...)."""
    return value.reshape(value.shape + (1,) * (like.ndim - 1)) if value.ndim else value
