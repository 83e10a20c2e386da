"""CDRL's sampling algorithm: each level proposes, refines and rescales; one denoising step at the end."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from cdrl_infer.device import ResolvedPrecision, autocast_to, default_switches
from cdrl_infer.energies.base import Energy
from cdrl_infer.energies.pinned import PinnedEnergy, PinnedPixels
from cdrl_infer.energies.recorded import recorded
from cdrl_infer.energies.recovery import RecoveryEnergy
from cdrl_infer.errors import InputError, NumericalError
from cdrl_infer.kernels.adapt import tune
from cdrl_infer.kernels.base import Kernel
from cdrl_infer.kernels.langevin import Langevin
from cdrl_infer.proposals import DistributionProposal, Proposal
from cdrl_infer.random import RandomSource
from cdrl_infer.schedule import Level, NoiseSchedule

T = TypeVar("T")


class LevelEnd(NamedTuple):
    """The result of one transition, for the callback."""

    t: int  # the transition t -> t-1 that has just ended; T is the first, 1 the last
    proposal: Tensor  # what the initializer proposed for x_{t-1} (B, C, H, W)
    refined: Tensor  # x_{t-1} after the kernel's steps (B, C, H, W)
    acceptance: Tensor  # (B,) mean acceptance of each image's steps; see `ChainEnd`


class SamplerOutput(NamedTuple):
    """The result of sampling, image by image."""

    samples: Tensor  # (B, C, H, W), not clamped
    energies: Tensor  # (B,) nats, the energy of x_0 at level 0
    acceptance: Tensor  # (B, T) mean acceptance at t = T … 1; NaN for a transition of zero steps


class Adaptation(NamedTuple):
    """The result of `CooperativeSampler.adapt`, for t = T … 1."""

    step_scale: tuple[float, ...]
    acceptance: tuple[float, ...]  # mean over the images and K steps at this scale; NaN if K = 0


@dataclass(frozen=True)
class CooperativeSampler:
    """CDRL's sampling algorithm (paper, algorithm 2).

    ::

        x_T ~ N(0, I)
        for t = T … 1:
            y ~ q(y | x_t)                       proposal
            K_t times: y <- kernel(y | x_t)      refinement
            x_{t-1} = y / m_t
            R times: x_t ~ q(x_t | x_{t-1}), and the three lines above again
        x̂ = (x_0 + κ σ̄_0² ∇log p(x_0)) / α_0     Tweedie

    The paper has no restarts, R = 0. Restarts draw x_{t-1} given x_t and x_t given x_{t-1} in turn, which
    is a Gibbs sampler of the pair. After more turns, x_{t-1} depends less on errors of earlier levels and
    more on the energy of its own level. This helps with pinned pixels (Lugmayr et al. 2022, RePaint),
    composed energies (Du et al. 2023) and sampling errors (Xu et al. 2023, Restart sampling).

    Args:
        schedule: the levels.
        langevin_steps: K, one int for all transitions, or T ints in the order t = T … 1.
        kernel: the transition kernel; the paper has Langevin.
        step_scale: multiplies the schedule's step variance, s² = step_scale · s_t². One float for all
            transitions, or T floats in the order t = T … 1.
        score_scale: κ; 1 is Tweedie's formula, see `cdrl_infer.storage.authors`.
        restarts: R; each restart costs as much as sampling without restarts.
        precision: "bfloat16" computes the convolutions of the chains in bfloat16; the steps, the last
            denoising and the energies stay float32.
        cuda_graphs: on a GPU, record the network's gradient once and launch its operations together.

    Raises:
        InputError: a number of steps or restarts is negative, a step scale is not positive and finite,
            the number of values is not 1 or T, or the kernel needs float32.
    """

    schedule: NoiseSchedule
    langevin_steps: int | Sequence[int] = 15
    kernel: Kernel[Any] = field(default_factory=Langevin)
    step_scale: float | Sequence[float] = 1.0
    score_scale: float = 1.0
    restarts: int = 0
    precision: ResolvedPrecision = "float32"
    cuda_graphs: bool = True

    def __post_init__(self) -> None:
        num = self.schedule.num_levels
        steps, scales = _each(self.langevin_steps, num), _each(self.step_scale, num)
        if len(steps) != num or min(steps) < 0:
            raise InputError(
                f"langevin_steps must be one integer of at least 0, or {num}, one per transition, "
                f"got {self.langevin_steps}"
            )
        if len(scales) != num or not all(0 < scale < math.inf for scale in scales):
            raise InputError(
                f"step_scale must be one positive, finite number, or {num}, one per transition, "
                f"got {self.step_scale}"
            )
        if self.precision == "bfloat16" and self.kernel.optimal_acceptance is not None:
            raise InputError(
                "precision='bfloat16' is for a kernel that accepts every move, such as 'langevin': "
                f"{type(self.kernel).__name__} decides by differences of energies, which are too coarse "
                "in bfloat16; leave the precision out"
            )
        if self.restarts < 0:
            raise InputError(f"restarts must be at least 0, got {self.restarts}")

    def steps_at(self, t: int) -> int:
        """K at transition t."""
        return _each(self.langevin_steps, self.schedule.num_levels)[-t]

    def scale_at(self, t: int) -> float:
        """The step scale at transition t."""
        return _each(self.step_scale, self.schedule.num_levels)[-t]

    @default_switches()
    @torch.no_grad()
    def sample(
        self,
        energy: Energy,
        proposal: Proposal,
        random: RandomSource,
        shape: Sequence[int],
        on_level_end: Callable[[LevelEnd], None] | None = None,
        pinned: PinnedPixels | None = None,
    ) -> SamplerOutput:
        """Draw one sample per stream of ``random``.

        Args:
            energy: the prior energy at each level; it has the labels.
            proposal: draws the starting points at each level; it has the labels.
            random: the noise. The order is: x_T; at each level, the proposal and K kernel steps; for each
                restart, x_t and the same again.
            shape: (C, H, W) of one image, or any shape for energies on other spaces.
            on_level_end: called after each level.
            pinned: the known pixels for inpainting; every x_t keeps them.
        """
        x = random.normal(shape)
        if pinned is not None:
            x = pinned.hold(x, self.schedule.num_levels)
        acceptance = []
        for t in range(self.schedule.num_levels, 0, -1):
            level = self.schedule.level(t, x.device)
            turns = []
            for turn in range(1 + self.restarts):
                if turn > 0:
                    x = level.noised(x, random.normal(shape))
                    x = x if pinned is None else pinned.hold(x, t)
                end = self._descend(energy, proposal, random, t, level, pinned, x)
                x = end.refined
                turns.append(end.acceptance)
            acceptance.append(torch.stack(turns).mean(0))
            if on_level_end is not None:
                on_level_end(end._replace(acceptance=acceptance[-1]))
        return SamplerOutput(*self.denoise(energy, x, level), torch.stack(acceptance, 1))

    def _descend(
        self,
        energy: Energy,
        proposal: Proposal,
        random: RandomSource,
        t: int,
        level: Level,
        pinned: PinnedPixels | None,
        x: Tensor,
    ) -> LevelEnd:
        """Propose and refine once: from x_t to x_{t-1}."""
        if pinned is not None and isinstance(proposal, DistributionProposal):
            proposal = proposal.holding(level.scale * pinned.path[t - 1], pinned.mask)
        with autocast_to(self.precision, x.device):
            start = proposal.sample(x, level, random)
        step_size = level.step_variance * self.scale_at(t)
        conditional: Energy = RecoveryEnergy(energy, x)
        if pinned is not None:
            conditional = PinnedEnergy(conditional, pinned)
        potential = conditional.at(level)
        with autocast_to(self.precision, x.device), recorded(self.cuda_graphs):
            end = self.kernel.run(start, potential, step_size, random, self.steps_at(t))
        proposed, x = start / level.scale, end.y / level.scale
        if pinned is not None:
            proposed, x = pinned.hold(proposed, t - 1), pinned.hold(x, t - 1)
        return LevelEnd(t, proposed, x, end.acceptance)

    def denoise(self, energy: Energy, x: Tensor, level: Level) -> tuple[Tensor, Tensor]:
        """Tweedie's formula at level 0: the posterior mean of the clean image given x_0.

        Returns:
            The posterior mean (B, C, H, W), and the energies (B,) of x_0 in nats.
        """
        return energy.denoised(x, level, self.score_scale)

    @default_switches()
    @torch.no_grad()
    def adapt(
        self,
        energy: Energy,
        proposal: Proposal,
        random: RandomSource,
        shape: Sequence[int],
        *,
        target: float | None = None,
        steps: int = 60,
        after_step: Callable[[], object] = lambda: None,
    ) -> Adaptation:
        """Find the step scales with which the kernel accepts the share ``target`` of all moves.

        This is a warm-up before sampling. Each transition tunes its scale and then makes K steps with it.
        The same noise gives the same scales. To sample with the scales::

            replace(sampler, step_scale=found.step_scale)

        Args:
            energy, proposal, shape: see `sample`.
            random: the noise, one stream per image; about 16 images are enough.
            target: mean acceptance wanted, in (0, 1); by default the kernel's `optimal_acceptance`.
            steps: number of kernel steps that tune the scale of a transition.
            after_step: called after each of these steps.

        Raises:
            InputError: the kernel accepts every move, or a value is out of range.
            NumericalError: the chains became infinite or NaN.
        """
        if self.kernel.optimal_acceptance is None:
            raise InputError(
                "adapting needs a kernel that can reject a move, such as MALA or HMC, "
                f"got {type(self.kernel).__name__}"
            )
        target = self.kernel.optimal_acceptance if target is None else target
        if not 0 < target < 1 or steps < 1:
            raise InputError(
                "expected target in (0, 1) and steps of at least 1, "
                f"got target={target}, steps={steps}"
            )
        x = random.normal(shape)
        scales, acceptance = [], []
        for t in range(self.schedule.num_levels, 0, -1):
            level, k = self.schedule.level(t, x.device), self.steps_at(t)
            potential = RecoveryEnergy(energy, x).at(level)
            step_size = level.step_variance * self.scale_at(t)
            start = partial(proposal.sample, x, level, random)
            scale = tune(
                self.kernel,
                start,
                potential,
                step_size,
                random,
                chain_steps=k,
                target=target,
                steps=steps,
                after_step=after_step,
            )
            end = self.kernel.run(start(), potential, step_size * scale, random, k)
            if not bool(end.y.isfinite().all()):
                raise NumericalError(
                    f"the chains became infinite or NaN at transition {t}, expected a finite energy and "
                    "a finite proposal; check the model"
                )
            x = end.y / level.scale
            scales.append(self.scale_at(t) * scale)
            acceptance.append(float(end.acceptance.mean()))
        return Adaptation(tuple(scales), tuple(acceptance))


def _each(value: T | Sequence[T], count: int) -> Sequence[T]:
    """One value for each transition; a sequence stays as it is."""
    return value if isinstance(value, Sequence) else [value] * count
