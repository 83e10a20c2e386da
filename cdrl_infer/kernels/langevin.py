"""Unadjusted Langevin steps: a gradient step plus noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from cdrl_infer.energies.base import Potential
from cdrl_infer.kernels.base import Kernel, StepInfo, per_chain
from cdrl_infer.random import RandomSource


class LangevinState(NamedTuple):
    """The points of the chains (B, ...). An unadjusted step needs no earlier energy or gradient."""

    y: Tensor


@dataclass(frozen=True)
class Langevin(Kernel[LangevinState]):
    """``y ← y - ½ s² ∇E(y) + s ε``, with ε standard normal.

    Roberts & Tweedie 1996. A step costs one gradient. The stationary density is ``exp(-E)`` up to an
    error of order s²: along a direction of curvature c the variance is too large by the factor
    ``1 / (1 - s² c / 4)``.

    Args:
        noise_scale: multiplies ε; 1 samples, 0 is gradient descent.
    """

    noise_scale: float = 1.0

    def init(self, y: Tensor, potential: Potential) -> LangevinState:
        """Start chains at y (B, ...)."""
        return LangevinState(y)

    def step(
        self, state: LangevinState, potential: Potential, step_size: Tensor, random: RandomSource
    ) -> tuple[LangevinState, StepInfo]:
        """One transition of every chain; it accepts every move."""
        _, grad = potential.value_and_grad(state.y)
        noise = random.normal(state.y.shape[1:])
        s2 = per_chain(step_size, state.y)
        y = state.y - 0.5 * s2 * grad + s2.sqrt() * self.noise_scale * noise
        always = y.new_ones(len(y))
        return LangevinState(y), StepInfo(always, always.bool())


@dataclass(frozen=True)
class BoxedLangevin(Langevin):
    """`Langevin`, after each step of which every value is clamped to [low, high].

    Clamping changes the stationary density: values gather at the ends. So the kernel is not in `KERNELS`;
    it makes the negatives of MPDR, and ``pipe(kernel=BoxedLangevin())`` draws as its training did.

    Args:
        noise_scale: see `Langevin`.
        low, high: the range of the images.
    """

    low: float = -1.0
    high: float = 1.0

    def step(
        self, state: LangevinState, potential: Potential, step_size: Tensor, random: RandomSource
    ) -> tuple[LangevinState, StepInfo]:
        """One transition of every chain."""
        moved, info = super().step(state, potential, step_size, random)
        return LangevinState(moved.y.clamp(self.low, self.high)), info
