"""Langevin steps whose noise is averaged over two steps: exact where the energy is quadratic."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from cdrl_infer.energies.base import Potential
from cdrl_infer.kernels.base import Kernel, StepInfo, per_chain
from cdrl_infer.random import RandomSource


class AveragedNoiseState(NamedTuple):
    """The points of the chains (B, ...), and the noise of the last step; None before the first."""

    y: Tensor
    noise: Tensor | None


@dataclass(frozen=True)
class LeimkuhlerMatthews(Kernel[AveragedNoiseState]):
    """``y ← y - ½ s² ∇E(y) + ½ s (ε + ε')``; the next step uses ε' again.

    Leimkuhler & Matthews, "Rational construction of stochastic numerical methods for molecular
    sampling" (2013). A step costs one gradient, as in Langevin. But on a quadratic energy the chain has
    exactly the variance of ``exp(-E)``, for every stable step, ``s² < 4 / curvature``. So the energy of a
    noise level, whose curvature is nearly known, allows much longer steps.
    """

    def init(self, y: Tensor, potential: Potential) -> AveragedNoiseState:
        """Start chains at y (B, ...)."""
        return AveragedNoiseState(y, None)

    def step(
        self,
        state: AveragedNoiseState,
        potential: Potential,
        step_size: Tensor,
        random: RandomSource,
    ) -> tuple[AveragedNoiseState, StepInfo]:
        """One transition of every chain; it accepts every move."""
        _, grad = potential.value_and_grad(state.y)
        shape = state.y.shape[1:]
        old = random.normal(shape) if state.noise is None else state.noise
        new = random.normal(shape)
        s2 = per_chain(step_size, state.y)
        y = state.y - 0.5 * s2 * grad + 0.5 * s2.sqrt() * (old + new)
        always = y.new_ones(len(y))
        return AveragedNoiseState(y, new), StepInfo(always, always.bool())
