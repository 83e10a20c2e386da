"""Step sizes from acceptance rates: a warm-up, after which the step is fixed."""

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
) -> float:
    """The scale of ``step_size`` with which chains of ``chain_steps`` accept ``target`` of their moves.

    ::

        x ← x + 4 k^-0.6 (acceptance - target),     x = log scale,  k = 1, 2 … steps

    Robbins & Monro 1951, on the mean acceptance of the batch; the x of the later half are averaged
    (Polyak & Juditsky 1992). New chains start every ``chain_steps`` steps: proposals are not yet draws
    of the law, so short chains accept more or less than long ones. MALA accepts less as the step grows.
    HMC's trajectories may come back near their start; then several scales meet the target, and the
    first guess decides which is found.

    Args:
        kernel: what to tune.
        start: draws where chains begin, (B, ...).
        potential: what they sample.
        step_size: s², () or (B,), the first guess.
        random: their noise.
        chain_steps: K of the chains to come; if it is 0 the first guess stands, 1.
        target: the mean acceptance wanted.
        steps: made in all.
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
    late = path[steps // 2 :]
    return math.exp(sum(late) / len(late))
