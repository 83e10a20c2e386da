"""Chains that show whether an energy is the density of the data: started at data, do they stay?

Langevin steps without acceptance leave the density by an error of their step size, so these chains are
Hamiltonian Monte Carlo with acceptance: `exp(-E)` is exactly stationary. If the energy is the density
of the noised data, chains that start at noised data are stationary from the first move, and the mean
of their energies stays the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cdrl_infer.energies.base import Energy, Potential
from cdrl_infer.energies.recorded import recorded
from cdrl_infer.energies.recovery import RecoveryEnergy
from cdrl_infer.kernels.adapt import tune
from cdrl_infer.kernels.hmc import HMC
from cdrl_infer.likelihood.stationary import Drift, judge
from cdrl_infer.optional import needed
from cdrl_infer.random import PerImageRandom
from cdrl_infer.schedule import Level, NoiseSchedule
from cdrl_train.objectives.losses import noised_pair

KINDS = ("marginal", "recovery")
WARM_UP, TURNS = 30, 5  # moves that tune the step size; a chain of the warm-up has so many moves
Floats = NDArray[np.float64]


class Starts(NamedTuple):
    """Where the chains of a transition start; rows are chains.

    Args:
        y: (B, C, H, W) the points.
        x_t: (B, C, H, W) the noisier images, for the recovery energy.
    """

    y: Tensor
    x_t: Tensor


@dataclass(frozen=True)
class Chains:
    """The chains of one transition and one kind of energy.

    Args:
        t: the transition; the energy is that of level t - 1.
        kind: "marginal", ``E(y)``; or "recovery", ``E(y | x_t)``.
        data: (N,) energies E(y) of noised data in nats.
        traces: (moves + 1, B) energies E(y) of the chains after each move, in nats. For both kinds this
            is the marginal energy, since only that can leak.
        from_data: (B,) bool, True for a chain that started at noised data, False at the model's sample.
        largest: (moves + 1,) the largest |y| / m_t of all chains.
        acceptance: mean acceptance probability.
        step_scale: what the warm-up found, times the schedule's step variance.
    """

    t: int
    kind: str
    data: Floats
    traces: Floats
    from_data: NDArray[np.bool_]
    largest: Floats
    acceptance: float
    step_scale: float

    @property
    def unit(self) -> float:
        """The standard deviation of the data's energies, in nats."""
        return float(self.data.std(ddof=1))

    @property
    def judged(self) -> Drift:
        """What moves, in units of `unit`; see `cdrl_infer.likelihood.stationary`.

        Recovery chains start at exact draws of the true posterior, so from data nothing moves there,
        either.
        """
        energies, from_data = torch.from_numpy(self.traces), torch.from_numpy(self.from_data)
        return judge(energies, from_data, unit=self.unit, same_law=self.kind == "marginal")

    def gap(self) -> tuple[float, float]:
        """How far chains from the model's samples end from the data's mean energy: (nats, error).

        (NaN, NaN) if no chain started there.
        """
        mine = self.traces[:, ~self.from_data]
        if mine.shape[1] < 2:
            return float("nan"), float("nan")
        ends = mine[-max(1, (len(mine) - 1) // 4) :].mean(0)
        error = np.hypot(ends.std(ddof=1) / np.sqrt(ends.size), self.unit / np.sqrt(self.data.size))
        return float(ends.mean() - self.data.mean()), float(error)

    def mixing(self) -> tuple[float, float]:
        """Split-R̂ and effective sample size of the energies in the second half of all chains.

        Vehtari et al. 2021, by ArviZ. Chains of different images differ, so R̂ is above 1.01 where a
        chain does not leave its image; it says how much the chains mix, not whether they leak.
        """
        statistics = _arviz()
        late = self.traces[len(self.traces) // 2 :].T
        return (
            float(statistics.rhat(late, chain_axis=0, draw_axis=1)),
            float(statistics.ess(late, chain_axis=0, draw_axis=1)),
        )


def _arviz() -> Any:
    with needed("arviz-stats", "stationarity needs", "eval"):
        from arviz_stats.base import array_stats
    return array_stats


def starts_at_data(x: Tensor, level: Level, random: PerImageRandom) -> Starts:
    """Noised data and their noisier neighbours by the forward process, for images x in [-1, 1]."""
    pair = noised_pair(x, level, "markov", random)
    return Starts(pair.y, pair.x_t)


@torch.no_grad()
@recorded()
def run_chains(
    energy: Energy,
    schedule: NoiseSchedule,
    t: int,
    kind: str,
    data: Starts,
    own: Starts | None,
    *,
    energies: Floats,
    moves: int,
    leapfrog_steps: int,
    seeds: Sequence[int],
) -> Chains:
    """HMC chains from noised data and from the model's samples, on the energy of one level.

    Args:
        energy: the energy E(y), with the labels of all chains: first those of ``data``.
        schedule: the levels.
        t: the transition.
        kind: an element of `KINDS`.
        data: the starts at noised data.
        own: the starts at the model's samples; None for none.
        energies: (N,) energies of noised data at this level, to compare with.
        moves: number of moves of each chain.
        leapfrog_steps: gradients per move.
        seeds: one per chain, for the noise.
    """
    parts = [data] if own is None else [data, own]
    y, x_t = (torch.cat([part[i] for part in parts]) for i in range(2))
    level, kernel = schedule.level(t, y.device), HMC(leapfrog_steps)
    marginal = energy.at(level)
    potential: Potential = marginal
    if kind == "recovery":
        potential = RecoveryEnergy(energy, x_t).at(level)
    random = PerImageRandom.from_seeds(seeds, y.device)
    scale = tune(
        kernel,
        lambda: y,
        potential,
        level.step_variance,
        random,
        chain_steps=TURNS,
        target=kernel.optimal_acceptance,
        steps=WARM_UP,
    )
    state = kernel.init(y, potential)
    traces, largest, accepted = [marginal(y)], [_largest(y, level)], []
    for _ in range(moves):
        state, info = kernel.step(state, potential, level.step_variance * scale, random)
        accepted.append(float(info.acceptance.mean()))
        traces.append(marginal(state.y) if kind == "recovery" else state.energy)
        largest.append(_largest(state.y, level))
    return Chains(
        t=t,
        kind=kind,
        data=energies,
        traces=torch.stack(traces).double().cpu().numpy(),
        from_data=np.arange(len(y)) < len(data.y),
        largest=np.array(largest),
        acceptance=float(np.mean(accepted)),
        step_scale=scale,
    )


def _largest(y: Tensor, level: Level) -> float:
    return float(y.abs().max() / level.scale)
