"""Log-weights of a transition: by importance sampling, or along an annealed path, in both directions.

Forward: ``x_t ~ p_t``, then the path leads y from the initializer's Gaussian to the recovery density.
Reverse: ``y ~ p_{t-1}``, ``x_t`` by the forward kernel, and the path leads back. Sources: Neal 2001
(annealed importance sampling); Grosse, Ancha & Roy 2016 (both directions); Wu et al. 2017.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from cdrl_infer.errors import NumericalError
from cdrl_infer.kernels.adapt import tune
from cdrl_infer.kernels.hmc import HMC, HMCState
from cdrl_infer.likelihood.bar import Works, log_mean_exp
from cdrl_infer.likelihood.transition import Path, Tempered, Transition
from cdrl_infer.random import BatchRandom

GRID = 7  # points on the pilot's path
PILOT_MOVES = 2  # kernel moves at each of them
CHEAP_GAP = 4.0  # nats between forward and reverse up to which importance sampling is enough
TUNE_STEPS, TUNE_CHAIN, FIRST_STEP = 20, 4, 0.1
ACCEPTANCE = 0.8  # higher than the best for one density: the step size serves all of a path


@dataclass(frozen=True)
class Plan:
    """How to weigh the draws of a transition.

    Args:
        variance: v, the shape of one point.
        betas: β_0 = 0 … β_n = 1; (0, 1) is importance sampling.
        particles: draws of y for each x_t.
        step_size: s² of the kernel for whitened points.
        kernel: moves the points between two temperatures.
    """

    variance: Tensor
    betas: tuple[float, ...]
    particles: int
    step_size: Tensor
    kernel: HMC


def anneal(
    path: Path, z: Tensor, plan: Plan, random: BatchRandom, *, reverse: bool = False
) -> Tensor:
    """The log-weight ``Σ_k (β_k - β_{k-1}) V(z_{k-1})`` of each point's path, (B,) float64 nats.

    z_k comes from z_{k-1} by a move of the kernel, which leaves π_β with β = β_k unchanged. In reverse,
    the points are draws of b, and the moves are made in the opposite order.

    Args:
        path: the densities.
        z: (B, ...) whitened draws of a, or of b.
        plan: the temperatures and the kernel.
        random: noise for B points.
        reverse: from b to a.
    """
    betas = plan.betas
    gaps = [after - before for before, after in pairwise(betas)]
    inner = list(betas[1:-1])
    if reverse:
        gaps, inner = gaps[::-1], inner[::-1]
    if not inner:
        return gaps[0] * path.log_ratio(z).double()
    value, grad = path.log_ratio_and_grad(z)
    total = gaps[0] * value.double()
    for gap, beta in zip(gaps[1:], inner, strict=True):
        potential = Tempered(path, beta)
        state = HMCState(z, *potential.mixed(z, value, grad))
        state, _ = plan.kernel.step(state, potential, plan.step_size, random)
        z = state.y
        value, grad = potential.unmixed(*state)
        total = total + gap * value.double()
    return total


def forward_works(
    transition: Transition, plan: Plan, x_t: Tensor, generator: torch.Generator
) -> Tensor:
    """The log-weights of draws of a, (N,) nats: the mean weight of several paths for each x_t.

    Args:
        transition: the two laws.
        plan: how to weigh.
        x_t: (N, ...) draws of level t.
        generator: of the noise.
    """
    path = Path.of(transition, x_t, plan.variance, plan.particles)
    random = BatchRandom(len(path.x_t), generator)
    weights = anneal(path, random.normal(x_t.shape[1:]), plan, random)
    return _joined(path, weights, plan)


def reverse_works(
    transition: Transition, plan: Plan, y: Tensor, generator: torch.Generator
) -> Tensor:
    """The log-weights of draws of b, (N,) nats.

    With several particles, one is the draw of b and the others are draws of a. So the log-weights are
    those of two densities of all particles, as Bennett's ratio needs (Andrieu et al. 2010).

    Args:
        transition, plan, generator: see `forward_works`.
        y: (N, ...) draws of the level t - 1, on the energy's scale.
    """
    shape = y.shape[1:]
    x_t = transition.noised(y, BatchRandom(len(y), generator).normal(shape))
    path = Path.of(transition, x_t, plan.variance)
    random = BatchRandom(len(y), generator)
    mine = anneal(path, path.whitened(y), plan, random, reverse=True)
    if plan.particles == 1:
        return _joined(path, mine, plan)
    others = Path.of(transition, x_t, plan.variance, plan.particles - 1)
    random = BatchRandom(len(others.x_t), generator)
    weights = anneal(others, random.normal(shape), plan, random)
    rows = torch.cat([mine[:, None], weights.reshape(len(y), -1)], 1)
    return _checked(transition.t, log_mean_exp(rows) + path.constant()).cpu()


def _joined(path: Path, weights: Tensor, plan: Plan) -> Tensor:
    rows = log_mean_exp(weights.reshape(-1, plan.particles))
    constant = path.constant()[:: plan.particles]
    return _checked(path.transition.t, rows + constant).cpu()


def _checked(t: int, works: Tensor) -> Tensor:
    if not bool(works.isfinite().all()):
        raise NumericalError(
            f"the log-weights of transition {t} are not finite; check the model, its energies may have "
            "no lower bound"
        )
    return works


@dataclass(frozen=True)
class Pilot:
    """What draws that are not weighed later tell about a transition.

    Args:
        cheap: a plan of importance sampling.
        profile: (GRID,) the standard deviation of V for one x_t at equidistant β, nats; None where
            importance sampling is enough.
        step_size: of the kernel along the path.
    """

    cheap: Plan
    profile: Tensor | None
    step_size: Tensor

    @property
    def length(self) -> float:
        """``∫ √Var V dβ``: n temperatures lose about length²/2n nats (Crooks 2007)."""
        return 0.0 if self.profile is None else float(torch.trapezoid(self.profile)) / (GRID - 1)

    def annealed(self, temperatures: int) -> Plan:
        """A plan of n temperatures that divide the length of the path into equal parts.

        It is the cheap plan if that is enough.
        """
        if self.profile is None:
            return self.cheap
        steps = torch.cat([self.profile.new_zeros(1), (self.profile[1:] + self.profile[:-1]) / 2])
        reached = (steps.cumsum(0) / steps.sum()).tolist()
        betas = [0.0]
        for k in range(1, temperatures):
            share = k / temperatures
            cell = next(j for j in range(1, GRID) if reached[j] >= share)
            inside = (share - reached[cell - 1]) / (reached[cell] - reached[cell - 1])
            betas.append((cell - 1 + inside) / (GRID - 1))
        path = (*betas, 1.0)
        return replace(self.cheap, betas=path, particles=1, step_size=self.step_size)


def explore(
    transition: Transition,
    x_t: Tensor,
    y: Tensor,
    generator: torch.Generator,
    *,
    particles: int,
    leapfrog_steps: int,
) -> Pilot:
    """Learn the variance of a, the step size and the cost of the path from draws that are spent on it.

    Args:
        transition: the two laws.
        x_t: (P, ...) draws of level t.
        y: (P, ...) draws of level t - 1, on the energy's scale.
        generator: of the noise.
        particles: of importance sampling.
        leapfrog_steps: of the kernel.
    """
    shape, kernel = y.shape[1:], HMC(leapfrog_steps)
    random = BatchRandom(len(y), generator)
    first = torch.tensor(FIRST_STEP, device=y.device)
    half = len(y) // 2  # fitted to one half, the variance is tried out on the other
    trial = Plan(transition.variance(y[:half], generator), (0.0, 1.0), particles, first, kernel)
    works = Works(
        forward_works(transition, trial, x_t[half:], generator),
        reverse_works(transition, trial, y[half:], generator),
    )
    variance = transition.variance(y, generator)
    cheap = replace(trial, variance=variance)
    if float((works.reverse.mean() - works.forward.mean()).abs()) <= CHEAP_GAP:
        return Pilot(cheap, None, first)
    partner = transition.noised(y, random.normal(shape))
    ends = Path.of(transition, partner, variance)
    scale = tune(
        kernel,
        lambda: ends.whitened(y),
        Tempered(ends, 1.0),
        first,
        random,
        chain_steps=TUNE_CHAIN,
        target=ACCEPTANCE,
        steps=TUNE_STEPS,
    )
    pairs = Path.of(transition, partner, variance, 2)
    random = BatchRandom(2 * len(y), generator)
    z, profile = random.normal(shape), []
    for k in range(GRID):
        potential = Tempered(pairs, k / (GRID - 1))
        if k > 0:
            z = kernel.run(z, potential, first * scale, random, PILOT_MOVES).y
        values = pairs.log_ratio(z).double().reshape(-1, 2)
        profile.append(math.sqrt(float((values[:, 0] - values[:, 1]).square().mean()) / 2))
    floor = 1e-3 * max(*profile, 1e-6)
    spreads = torch.tensor(profile, dtype=torch.float64).clamp(min=floor)
    return Pilot(cheap, spreads, first * scale)
