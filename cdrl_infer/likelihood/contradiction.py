"""How far adjacent levels contradict each other, cheaply: without chains, from noised data.

With ``R_t(x_t) = exp(e_t(x_t)) Z̃_t(x_t)``, where ``Z̃_t`` normalises the recovery density given x_t, the
noised level below and level t have the densities ``p̂_t`` and ``p_t`` with ``p̂_t / p_t ∝ R_t``: levels
that fit each other have a constant R_t. The Jeffreys divergence is ``E_p̂ log R_t - E_p log R_t``. Where
both densities are near that of noised data, it is to first order

    J_t ≈ Var log R_t(x_t),   x_t = noised data

and exactly so for Gaussians that differ in their means. ``log Z̃_t`` comes from importance sampling around
the initializer's mean, twice with noise of its own; the covariance of the two has no noise of the
sampling in it. Where single draws are not enough (the cleanest levels of images), the misfit of the
proposal adds to J_t.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cdrl_infer.device import default_switches
from cdrl_infer.energies.base import Energy
from cdrl_infer.kernels.hmc import HMC
from cdrl_infer.likelihood.paths import FIRST_STEP, Plan, forward_works
from cdrl_infer.likelihood.transition import Transition
from cdrl_infer.proposals import MeanProposal
from cdrl_infer.random import BatchRandom
from cdrl_infer.schedule import NoiseSchedule


@default_switches()
@torch.no_grad()
def contradictions(
    energy: Energy,
    proposal: MeanProposal,
    schedule: NoiseSchedule,
    data: Tensor,
    generator: torch.Generator,
    *,
    particles: int = 8,
    batch_size: int = 64,
) -> Tensor:
    """J_t of the transitions t = 1 … T, (T,) float64 nats; its relative error is about √(2/N).

    It costs N (2 particles + 1) energies and 8 N means of the proposal for each transition.

    Args:
        energy: the energies of all levels, for any number of points.
        proposal: gives the mean of y given x_t.
        schedule: the noise levels.
        data: (N, ...) clean points in [-1, 1], at least 2.
        generator: of the noise, on the device of the points.
        particles: draws of y for each x_t, twice.
        batch_size: points that a network sees at once.

    Raises:
        NumericalError: a weight is not finite.
    """
    shape, found = data.shape[1:], []
    random = BatchRandom(len(data), generator)
    for t in range(1, schedule.num_levels + 1):
        transition = Transition(energy, proposal, schedule, t, data.device, batch_size)
        level = transition.level
        y = level.scale * level.diffused(data, random.normal(shape))
        x_t = transition.noised(y, random.normal(shape))
        variance = transition.variance(y, generator)
        plan = Plan(variance, (0.0, 1.0), particles, torch.tensor(FIRST_STEP), HMC())
        twice = [forward_works(transition, plan, x_t, generator) for _ in range(2)]
        found.append(torch.stack(twice).cov()[0, 1])
    return torch.stack(found)
