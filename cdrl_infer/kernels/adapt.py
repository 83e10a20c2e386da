"""A warm-up finds the step size that gives a wanted acceptance rate; then the step size is fixed."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor

from cdrl_infer.energies.base import Potential
from cdrl_infer.kernels.base import Kernel
from cdrl_infer.random import RandomSource

GAIN, DECAY = 4.0, 0.6


def tune(
    kernel: Kernel[Any],
    start: Callable[[], Tensor],
    potential: Potential,
    step_size: Tensor,
    random: RandomSource,
    *,
    chain_steps: int,
    target: float,
    steps: int,
    after_step: Callable[[], object] = lambda: None,
) -> float:
    """The scale of ``step_size`` with which chains of ``chain_steps`` accept ``target`` of their moves.

    ::

        x ← x + 4 k^-0.6 (acceptance - target),     x = log scale,  k = 1, 2 … steps

    This is Robbins & Monro 1951 for the mean acceptance of the batch. The result is the average of x over
    the second half of the steps (Polyak & Juditsky 1992). New chains start every ``chain_steps`` steps:
    a chain does not start in equilibrium, so short chains and long chains accept different shares. MALA
    accepts less as the step grows. An HMC trajectory may return to its start. Then several scales reach
    the target, and the first guess decides which of them the function finds.

    Args:
        kernel: the kernel to tune.
        start: draws the points (B, ...) where chains start.
        potential: the potential of the chains.
        step_size: s², () or (B,), the first guess.
        random: the noise of the chains.
        chain_steps: K, the length of the chains; for 0 the scale is 1.
        target: the mean acceptance wanted.
        steps: number of steps in total.
        after_step: called after each step.
    """
    if chain_steps == 0:
        return 1.0
    x, path = 0.0, []
    for k in range(steps):
        if k % chain_steps == 0:
            state = kernel.init(start(), potential)
        state, info = kernel.step(state, potential, step_size * math.exp(x), random)
        x += GAIN * (k + 1) ** -DECAY * (float(info.acceptance.mean()) - target)
        path.append(x)
        after_step()
    late = path[steps // 2 :]
    return math.exp(sum(late) / len(late))
