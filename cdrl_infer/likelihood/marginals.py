"""Draws of every level of a chain, by Markov chains that `cdrl_infer.likelihood.stationary` judges."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from cdrl_infer.energies.base import Energy
from cdrl_infer.energies.recovery import RecoveryPotential
from cdrl_infer.errors import NumericalError
from cdrl_infer.kernels.adapt import tune
from cdrl_infer.kernels.hmc import HMC
from cdrl_infer.likelihood.paths import ACCEPTANCE, TUNE_CHAIN, TUNE_STEPS
from cdrl_infer.likelihood.transition import InParts
from cdrl_infer.proposals import MeanProposal
from cdrl_infer.random import BatchRandom
from cdrl_infer.schedule import NoiseSchedule


class LevelDraws(NamedTuple):
    """Chains of the density of level t - 1."""

    t: int  # the transition t -> t-1
    y: Tensor  # (N, ...) the ends of the chains, on the energy's scale
    energies: Tensor  # (moves + 1, N) float64, along the chains, nats
    from_data: Tensor  # (N,) bool, whether a chain began at the data
    acceptance: float  # mean over all moves


def walk(
    energy: Energy,
    proposal: MeanProposal,
    schedule: NoiseSchedule,
    noise: Tensor,
    data: Tensor | None,
    generator: torch.Generator,
    *,
    pilots: int,
    moves: int,
    leapfrog_steps: int,
    batch_size: int,
    after_level: Callable[[], object] = lambda: None,
) -> list[LevelDraws]:
    """Draw N points of each level, the noisiest first: exact MCMC of each level's own density.

    A chain at level t - 1 begins at a proposal given the chain's end at level t and makes moves on the
    recovery density, then on the density of the level. Every second chain begins at the data instead,
    if there are any: ``y = m_t (α_{t-1} x + σ̄_{t-1} ε)``.

    Args:
        energy, proposal, schedule: the chain of levels.
        noise: (N, ...) draws of N(0, I), the noisiest level.
        data: (N, ...) clean points in [-1, 1]; None: no chain begins at the data.
        generator: of the noise.
        pilots: the last rows of N; they tune the step sizes.
        moves: HMC moves on the density of a level.
        leapfrog_steps: of a move.
        batch_size: points that a network sees at once.
        after_level: called after each level.

    Raises:
        NumericalError: a chain became infinite or NaN.
    """
    count, shape = len(noise), noise.shape[1:]
    kernel = HMC(leapfrog_steps)
    from_data = torch.arange(count, device=noise.device) % 2 == 1
    if data is None:
        from_data = torch.zeros_like(from_data)
    rows = (~from_data).nonzero().flatten()
    random, some = BatchRandom(count, generator), BatchRandom(len(rows), generator)
    few = BatchRandom(pilots, generator)
    x, found = noise, []
    for t in range(schedule.num_levels, 0, -1):
        level = schedule.level(t, noise.device)
        x_t = x[rows]
        mean = torch.cat([proposal.mean(part, level) for part in torch.split(x_t, batch_size)])
        start = mean + level.proposal_variance.sqrt() * some.normal(shape)
        prior = InParts(energy.at(level), batch_size)
        recovery = RecoveryPotential(prior, x_t, level)
        step = level.step_variance
        y = noise.clone()
        y[rows] = kernel.run(start, recovery, step, some, moves // 2).y
        if data is not None:
            y[from_data] = level.scale * level.diffused(data, random.normal(shape))[from_data]
        scale = tune(
            kernel,
            y[count - pilots :].clone,
            prior,
            step,
            few,
            chain_steps=TUNE_CHAIN,
            target=ACCEPTANCE,
            steps=TUNE_STEPS,
        )
        state = kernel.init(y, prior)
        trace, accepted = [state.energy], []
        for _ in range(moves):
            state, info = kernel.step(state, prior, step * scale, random)
            trace.append(state.energy)
            accepted.append(float(info.acceptance.mean()))
        if not bool(state.y.isfinite().all() and state.energy.isfinite().all()):
            raise NumericalError(f"the chains of level {t - 1} are not finite; check the model")
        energies = torch.stack(trace).double().cpu()
        share = math.fsum(accepted) / len(accepted)
        found.append(LevelDraws(t, state.y, energies, from_data.cpu(), share))
        x = state.y / level.scale
        after_level()
    return found
