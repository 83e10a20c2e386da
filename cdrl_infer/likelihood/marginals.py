"""Draws of every level of a chain, by Markov chains that a test of drift then accepts or refuses."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
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

DRIFT_LIMIT = 0.5  # standard deviations between the third and the last quarter of a chain
STARTS_LIMIT = 1.0  # standard deviations between chains begun at the data and at samples
LEAK_LIMIT = 2.0  # standard deviations below the data
ERRORS = 4.0  # standard errors that all of them must also exceed


class LevelDraws(NamedTuple):
    """Chains of the density of level t - 1."""

    t: int  # the transition t -> t-1
    y: Tensor  # (N, ...) the ends of the chains, on the energy's scale
    energies: Tensor  # (moves + 1, N) float64, along the chains, nats
    from_data: Tensor  # (N,) bool, whether a chain began at the data
    acceptance: float  # mean over all moves


@dataclass(frozen=True)
class Drift:
    """How far the mean energy of a level's chains moves, in standard deviations of the data's energies.

    Args:
        drift, drift_error: from the third quarter of the chains to the last; of the chains begun at the
            data or at samples, those that move more. The errors are standard errors.
        starts, starts_error: from the ends of chains begun at the data to those begun at samples; 0
            without data.
        leak, leak_error: from the data to the ends of the chains begun there; 0 without data.
    """

    drift: float
    drift_error: float
    starts: float
    starts_error: float
    leak: float
    leak_error: float

    @property
    def fault(self) -> str:
        """Why the chains are not draws of a density of the data; "" if nothing speaks against it."""
        if self.leak < -max(LEAK_LIMIT, ERRORS * self.leak_error):
            return (
                "the energy is lower off the data than on it: chains begun at the data end "
                f"{-self.leak:.1f} standard deviations lower"
            )
        if abs(self.drift) > max(DRIFT_LIMIT, ERRORS * self.drift_error):
            return (
                f"the chains are not stationary: their mean energy moves by {self.drift:+.1f} standard "
                "deviations in a quarter of their moves"
            )
        if abs(self.starts) > max(STARTS_LIMIT, ERRORS * self.starts_error):
            return (
                "the chains are not stationary: those begun at samples end "
                f"{self.starts:+.1f} standard deviations from those begun at the data"
            )
        return ""


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


def drift(draws: LevelDraws) -> Drift:
    """The drift of a level's chains."""
    energies, from_data = draws.energies, draws.from_data
    moves = len(energies) - 1
    third = energies[moves // 2 : moves - moves // 4].mean(0)
    last = energies[moves - moves // 4 :].mean(0)
    spread = float((energies[0, from_data] if from_data.any() else third).std())
    spread = max(spread, 1e-6)
    begun = [group for group in (from_data, ~from_data) if group.any()]
    moved = [_compared((last - third)[group], spread) for group in begun]
    most, error = max(moved, key=lambda pair: abs(pair[0]))
    starts, starts_error, leak, leak_error = 0.0, 0.0, 0.0, 0.0
    if len(begun) == 2:
        leak, leak_error = _compared((last - energies[0])[from_data], spread)
        theirs, mine = (last[group] for group in begun)
        starts = float(mine.mean() - theirs.mean()) / spread
        variance = float(mine.var()) / len(mine) + float(theirs.var()) / len(theirs)
        starts_error = math.sqrt(variance) / spread
    return Drift(most, error, starts, starts_error, leak, leak_error)


def _compared(changes: Tensor, spread: float) -> tuple[float, float]:
    """The mean change and its standard error, in units of ``spread``."""
    error = float(changes.std()) / math.sqrt(len(changes))
    return float(changes.mean()) / spread, error / spread
