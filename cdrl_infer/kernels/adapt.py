"""Step sizes from acceptance rates: a warm-up, after which the step is fixed."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from cdrl_infer.energies.base import Energy
from cdrl_infer.kernels.hmc import HMC
from cdrl_infer.random import RandomSource
from cdrl_infer.schedule import Level

GAIN, DECAY = 4.0, 0.6


def tune(
    kernel: HMC,
    start: Callable[[], Tensor],
    energy: Energy,
    level: Level,
    random: RandomSource,
    *,
    chain_steps: int,
    target: float,
    steps: int,
) -> float:
    """The step_scale at which chains of ``chain_steps`` from ``start`` accept ``target`` of their moves.

    ::

        x ← x + 4 k^-0.6 (acceptance - target),     x = log step_scale,  k = 1, 2 … steps

    Robbins & Monro 1951, on the mean acceptance of the batch; the x of the later half are averaged
    (Polyak & Juditsky 1992). Chains start anew every ``chain_steps``, since proposals are not yet
    draws of the law and accept less, or more, than a long chain does. MALA accepts the less the larger
    the step; HMC's trajectories may come near to where they began, and then the target is met at more
    than one step_scale and the first guess decides which is found.

    Args:
        kernel: what to tune; its own step_scale at this level is the first guess.
        start: draws where chains begin, (B, ...).
        energy: what they sample.
        level: one level for the whole batch.
        random: their noise.
        chain_steps: K of the chains to come; where it is 0 the first guess stands.
        target: mean acceptance wanted.
        steps: made in all.
    """
    guess = float(kernel.step_variance(level) / level.step_variance)
    if chain_steps == 0:
        return guess
    x, path = math.log(guess), []
    for k in range(steps):
        if k % chain_steps == 0:
            state = kernel.init(start(), energy, level)
        trial = replace(kernel, step_scale=math.exp(x))
        state, info = trial.step(state, energy, level, random)
        x += GAIN * (k + 1) ** -DECAY * (float(info.acceptance.mean()) - target)
        path.append(x)
    late = path[steps // 2 :]
    return math.exp(sum(late) / len(late))
