"""Unadjusted Langevin: a gradient step and noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from cdrl_infer.energies.base import Energy
from cdrl_infer.kernels.base import Kernel, StepInfo
from cdrl_infer.random import RandomSource
from cdrl_infer.schedule import Level


class LangevinState(NamedTuple):
    """Where the chains are: (B, ...).

    No energy or gradient is carried along: an unadjusted step neither compares energies nor visits a
    point twice.
    """

    y: Tensor


@dataclass(frozen=True)
class Langevin(Kernel[LangevinState]):
    """``y ← y - ½ s² ∇E(y) + s ε``, with ``s² = step_scale · s_t²`` and ε standard normal.

    Roberts & Tweedie 1996; one gradient per step. Its stationary law is that of E only to first
    order in s².

    Args:
        step_scale: see `Kernel`.
        noise_scale: multiplies ε; 1 samples, 0 descends.
    """

    noise_scale: float = 1.0

    def init(self, y: Tensor, energy: Energy, level: Level) -> LangevinState:
        """Start chains at y (B, ...)."""
        return LangevinState(y)

    def step(
        self, state: LangevinState, energy: Energy, level: Level, random: RandomSource
    ) -> tuple[LangevinState, StepInfo]:
        """One transition of every chain; every move is made."""
        _, grad = energy.value_and_grad(state.y, level)
        noise = random.normal(state.y.shape[1:])
        s2 = level.expand(self.step_variance(level), state.y)
        y = state.y - 0.5 * s2 * grad + s2.sqrt() * self.noise_scale * noise
        always = torch.ones(len(y), device=y.device)
        return LangevinState(y), StepInfo(always, always.bool())
