"""The levels loop: propose, refine, rescale, and one denoising step at the end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from cdrl_infer.energies.base import Energy
from cdrl_infer.energies.recovery import RecoveryEnergy
from cdrl_infer.errors import InputError
from cdrl_infer.kernels.langevin import Langevin
from cdrl_infer.proposals import Proposal
from cdrl_infer.random import RandomSource
from cdrl_infer.schedule import Level, NoiseSchedule


class LevelEnd(NamedTuple):
    """What a level has made: passed to the callback after each."""

    t: int  # the transition t -> t-1 that has just ended; T first, 1 last
    proposal: Tensor  # what the initializer proposed for x_{t-1} (B, C, H, W)
    refined: Tensor  # x_{t-1} after Langevin (B, C, H, W)


class SamplerOutput(NamedTuple):
    """Samples (B, C, H, W), not clamped, and the energies (B,) of x_0 at the lowest level, in nats."""

    samples: Tensor
    energies: Tensor


@dataclass(frozen=True)
class CooperativeSampler:
    """CDRL's sampling algorithm (paper, algorithm 2).

    ::

        x_T ~ N(0, I)
        for t = T … 1:
            y ~ q(y | x_t)                       proposal
            K_t times: y <- Langevin(y | x_t)    refinement
            x_{t-1} = y / m_t
        x̂ = (x_0 + κ σ̄_0² ∇log p(x_0)) / α_0     Tweedie

    Args:
        schedule: the levels.
        langevin_steps: K, one int for all levels or T ints for t = T … 1, the order in which they run.
        kernel: the transition kernel.
        score_scale: κ; 1 is Tweedie's formula, see `cdrl_infer.convert` for where another is needed.

    Raises:
        InputError: a negative number of steps, or not one per level.
    """

    schedule: NoiseSchedule
    langevin_steps: int | Sequence[int] = 15
    kernel: Langevin = field(default_factory=Langevin)
    score_scale: float = 1.0

    def __post_init__(self) -> None:
        steps, levels = self.langevin_steps, self.schedule.num_levels
        each = [steps] * levels if isinstance(steps, int) else list(steps)
        if len(each) != levels or min(each) < 0:
            raise InputError(
                f"langevin_steps must be one integer of at least 0, or {levels}, one per level, "
                f"got {steps}"
            )

    def steps_at(self, t: int) -> int:
        """K at transition t."""
        if isinstance(self.langevin_steps, int):
            return self.langevin_steps
        return self.langevin_steps[self.schedule.num_levels - t]

    @torch.no_grad()
    def sample(
        self,
        energy: Energy,
        proposal: Proposal,
        random: RandomSource,
        shape: Sequence[int],
        on_level_end: Callable[[LevelEnd], None] | None = None,
    ) -> SamplerOutput:
        """Draw one sample per stream of ``random``.

        Args:
            energy: the prior energy at each level, labels bound.
            proposal: where each level's chain starts, labels bound.
            random: the noise; x_T first, then per level the proposal's and K Langevin draws.
            shape: (C, H, W) of one image (or any shape, for energies on other spaces).
            on_level_end: called after each level.
        """
        x = random.normal(shape)
        for t in range(self.schedule.num_levels, 0, -1):
            level = self.schedule.level(t, x.device)
            start = proposal.sample(x, level, random)
            conditional = RecoveryEnergy(energy, x)
            y = self.kernel.run(start, conditional, level, random, self.steps_at(t))
            x = y / level.scale
            if on_level_end is not None:
                on_level_end(LevelEnd(t, start / level.scale, x))
        return self.denoise(energy, x, level)

    def denoise(self, energy: Energy, x: Tensor, level: Level) -> SamplerOutput:
        """Tweedie's formula at level 0: the posterior mean of the clean image given x_0."""
        value, grad = energy.value_and_grad(x * level.scale, level)
        score = -level.scale * grad  # ∇_x log p(x_0), by the chain rule through y = m_1 x_0
        clean = (x + self.score_scale * level.sigma_bar**2 * score) / level.alpha
        return SamplerOutput(clean, value)
