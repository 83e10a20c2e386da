"""Unadjusted Langevin: a gradient step and noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from cdrl_infer.energies.base import Energy
from cdrl_infer.random import RandomSource
from cdrl_infer.schedule import Level


class LangevinState(NamedTuple):
    """Where the chains are: (B, ...).

    No energy or gradient is carried along: an unadjusted step neither compares energies nor visits a
    point twice.
    """

    y: Tensor


class LangevinInfo(NamedTuple):
    """Seen at the start of the step: energies (B,) in nats and their gradient (B, ...)."""

    energy: Tensor
    grad: Tensor


@dataclass(frozen=True)
class Langevin:
    """``y ← y - ½ s² ∇E(y) + s ε``, with ``s² = step_scale · s_t²`` and ε standard normal.

    Roberts & Tweedie 1996; one gradient per step. Its stationary law is that of E only to first
    order in s².

    Args:
        step_scale: multiplies the schedule's step variance.
        noise_scale: multiplies ε; 1 samples, 0 descends.
    """

    step_scale: float = 1.0
    noise_scale: float = 1.0

    def init(self, y: Tensor) -> LangevinState:
        """Start chains at y (B, ...)."""
        return LangevinState(y)

    def step(
        self, state: LangevinState, energy: Energy, level: Level, random: RandomSource
    ) -> tuple[LangevinState, LangevinInfo]:
        """One transition of every chain."""
        value, grad = energy.value_and_grad(state.y, level)
        noise = random.normal(state.y.shape[1:])
        s2 = level.expand(level.step_variance * self.step_scale, state.y)
        y = state.y - 0.5 * s2 * grad + s2.sqrt() * self.noise_scale * noise
        return LangevinState(y), LangevinInfo(value, grad)

    def run(
        self, y: Tensor, energy: Energy, level: Level, random: RandomSource, steps: int
    ) -> Tensor:
        """Where ``steps`` transitions lead from y (B, ...)."""
        state = self.init(y)
        for _ in range(steps):
            state, _ = self.step(state, energy, level, random)
        return state.y
