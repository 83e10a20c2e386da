"""The normalisers of a chain of levels, from the noisiest level, which is N(0, I), down to the data.

``log Z_{t-1} = log Z_t - d log m_{t+1} + Δ_t``: the normaliser of ``y = m x`` is ``m^d`` times that of x,
and Δ_t is the log-ratio of a transition's two normalisers (`cdrl_infer.likelihood.transition`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from cdrl_infer.arguments import positive
from cdrl_infer.device import default_switches
from cdrl_infer.energies.base import Energy
from cdrl_infer.errors import InputError
from cdrl_infer.likelihood.bar import (
    LEAST_OVERLAP,
    Works,
    effective_sample_size,
    estimate,
    pareto_k,
    resampled,
)
from cdrl_infer.likelihood.marginals import LevelDraws, walk
from cdrl_infer.likelihood.normalisers import Normaliser, TransitionResult
from cdrl_infer.likelihood.paths import Pilot, Plan, explore, forward_works, reverse_works
from cdrl_infer.likelihood.stationary import judge
from cdrl_infer.likelihood.transition import Transition
from cdrl_infer.proposals import MeanProposal
from cdrl_infer.random import BatchRandom
from cdrl_infer.schedule import NoiseSchedule

BOUNDS = 2.0  # standard errors that lower and upper lie beyond their estimates


@dataclass(frozen=True)
class Effort:
    """How much to compute.

    Args:
        chains: N, in each of the two directions.
        pilots: chains that only tune step sizes and temperatures.
        moves: HMC moves at each level.
        leapfrog_steps: gradients of a move.
        particles: draws for each x_t where importance sampling is enough.
        temperatures: of all annealed paths together.
        batch_size: points that a network sees at once.

    Raises:
        InputError: a number is not positive, or there are fewer than 4 chains, 4 pilots or 8 moves.
    """

    chains: int = 32
    pilots: int = 16
    moves: int = 24
    leapfrog_steps: int = 4
    particles: int = 32
    temperatures: int = 240
    batch_size: int = 64

    def __post_init__(self) -> None:
        for part in fields(self):
            positive(part.name, getattr(self, part.name))
        for name, least in (("chains", 4), ("pilots", 4), ("moves", 8), ("particles", 2)):
            if getattr(self, name) < least:
                raise InputError(f"{name} must be at least {least}, got {getattr(self, name)}")

    @property
    def points(self) -> int:
        """The number of chains in both directions and of pilots."""
        return 2 * self.chains + self.pilots


@default_switches()
@torch.no_grad()
def normalise(
    energy: Energy,
    proposal: MeanProposal,
    schedule: NoiseSchedule,
    shape: Sequence[int],
    generator: torch.Generator,
    *,
    data: Tensor | None = None,
    labels: Sequence[int] = (),
    effort: Effort | None = None,
    on_step: Callable[[], object] = lambda: None,
) -> Normaliser:
    """Estimate log Z of every level.

    Args:
        energy: the energies of all levels, for any number of points.
        proposal: gives the mean of y given x_t.
        schedule: the noise levels.
        shape: of one point.
        generator: of the noise, on the device of the points.
        data: (M, ...) clean points in [-1, 1]; every second chain begins at one. None: all chains begin
            at samples.
        labels: of the energy, for the record.
        effort: how much to compute.
        on_step: called 2T times, after each part of the work.

    Raises:
        InputError: the package arviz-stats is missing.
        NumericalError: a chain or a weight is not finite.
    """
    effort = Effort() if effort is None else effort
    pareto_k(torch.zeros(100))  # a missing package is told before any work
    noise = BatchRandom(effort.points, generator).normal(shape)
    if data is not None:
        rows = torch.arange(effort.points, device=data.device) % len(data)
        data = data[rows].to(noise)
    draws = walk(
        energy,
        proposal,
        schedule,
        noise,
        data,
        generator,
        pilots=effort.pilots,
        moves=effort.moves,
        leapfrog_steps=effort.leapfrog_steps,
        batch_size=effort.batch_size,
        after_level=on_step,
    )
    above = [noise, *(level.y / schedule.level(level.t).scale for level in draws[:-1])]
    device, batch = noise.device, effort.batch_size
    transitions = [
        Transition(energy, proposal, schedule, level.t, device, batch) for level in draws
    ]
    spare = slice(2 * effort.chains, None)
    pilots = [
        explore(
            transition,
            x_t[spare],
            level.y[spare],
            generator,
            particles=effort.particles,
            leapfrog_steps=effort.leapfrog_steps,
        )
        for transition, x_t, level in zip(transitions, above, draws, strict=True)
    ]
    works, plans = [], _allotted(pilots, effort.temperatures)
    for transition, plan, x_t, level in zip(transitions, plans, above, draws, strict=True):
        down = forward_works(transition, plan, x_t[: effort.chains], generator)
        up = reverse_works(transition, plan, level.y[effort.chains : spare.start], generator)
        works.append(Works(down, up))
        on_step()
    return _summed(schedule, math.prod(shape), labels, draws, plans, works)


def _allotted(pilots: Sequence[Pilot], temperatures: int) -> list[Plan]:
    """Importance sampling where it is enough; the others share the temperatures by their lengths."""
    total = math.fsum(pilot.length for pilot in pilots)
    shares = [pilot.length / total if total else 0.0 for pilot in pilots]
    return [
        pilot.annealed(max(2, round(temperatures * share)))
        for pilot, share in zip(pilots, shares, strict=True)
    ]


def log_volumes(schedule: NoiseSchedule, dim: int) -> Tensor:
    """``d Σ_{s > t} log m_s`` for t = T … 1, (T,) float64: from the Jacobians of ``y = m_s x``."""
    table = schedule.level(torch.arange(schedule.num_levels, 0, -1, device="cpu"))
    logs = table.scale.double().log()
    return dim * (logs.cumsum(0) - logs)


def _summed(
    schedule: NoiseSchedule,
    dim: int,
    labels: Sequence[int],
    draws: Sequence[LevelDraws],
    plans: Sequence[Plan],
    works: Sequence[Works],
) -> Normaliser:
    """The sums over the transitions, which come in the order t = T … 1."""
    table = Works(*(torch.stack(part) for part in zip(*works, strict=True)))
    found = estimate(table)
    deltas = resampled(table, seed=0)
    apart = torch.where(found.overlap < LEAST_OVERLAP, (found.upper - found.lower).abs() / 2, 0.0)
    errors = (deltas.var(0) + apart.square()).sqrt()
    total = (deltas.cumsum(1).var(0) + apart.square().cumsum(0)).sqrt()
    volumes = log_volumes(schedule, dim)
    log_z = found.delta.cumsum(0) - volumes
    below, above = found.lower.minimum(found.delta), found.upper.maximum(found.delta)
    lower = below.cumsum(0) - volumes - BOUNDS * total
    upper = above.cumsum(0) - volumes + BOUNDS * total
    spread = table.forward.var(1) / table.forward.shape[1]
    spread = (spread + table.reverse.var(1) / table.reverse.shape[1]).sqrt()
    sizes = [effective_sample_size(part) for part in (table.forward, -table.reverse)]
    results = []
    for k, (level, plan) in enumerate(zip(draws, plans, strict=True)):
        tails = max(pareto_k(table.forward[k]), pareto_k(-table.reverse[k]))
        results.append(
            TransitionResult(
                t=level.t,
                temperatures=len(plan.betas) - 1,
                particles=plan.particles,
                delta=float(found.delta[k]),
                error=float(errors[k]),
                lower=float(found.lower[k]),
                upper=float(found.upper[k]),
                jeffreys=float(found.jeffreys[k]),
                jeffreys_error=float(spread[k]),
                overlap=float(found.overlap[k]),
                ess_forward=float(sizes[0][k]),
                ess_reverse=float(sizes[1][k]),
                pareto_k=tails if math.isfinite(tails) else None,
                chains=judge(level.energies, level.from_data),
            )
        )

    def from_below(values: Tensor) -> tuple[float, ...]:
        return tuple(values.flip(0).tolist())

    return Normaliser(
        labels=tuple(labels),
        log_z=from_below(log_z),
        error=from_below(total),
        lower=from_below(lower),
        upper=from_below(upper),
        transitions=tuple(reversed(results)),
    )
