"""Hamiltonian Monte Carlo (HMC), and MALA, which is HMC with one leapfrog step."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from cdrl_infer.arguments import positive
from cdrl_infer.energies.base import Potential
from cdrl_infer.kernels.base import Kernel, StepInfo, per_chain
from cdrl_infer.random import RandomSource


class HMCState(NamedTuple):
    """The points of the chains (B, ...), with their energies (B,) and gradients (B, ...)."""

    y: Tensor
    energy: Tensor
    grad: Tensor


@dataclass(frozen=True)
class HMC(Kernel[HMCState]):
    """L leapfrog steps on ``H(y, p) = E(y) + ½‖p‖²``; then each chain accepts or rejects its move.

    ::

        p ~ N(0, I)
        L times:  p ← p - ½ s ∇E(y),  y ← y + s p,  p ← p - ½ s ∇E(y)
        accept with probability min(1, exp(H(before) - H(after)))

    Duane et al. 1987; Neal 2011, section 3. ``exp(-E)`` is the stationary density for every step size.
    A step costs L gradients, and the start of a chain costs one.

    L = 1 is MALA (Roberts & Tweedie 1996). It proposes a Langevin step, ``y' = y - ½ s² ∇E(y) + s p``.
    The momentum at the end is ``p' = p - ½ s (∇E(y) + ∇E(y'))``, so ``-s p' = y - (y' - ½ s² ∇E(y'))``
    and ``½‖p‖² - ½‖p'‖² = log q(y | y') - log q(y' | y)`` for ``q(y' | y) = N(y - ½ s² ∇E(y), s² I)``.
    This is the ratio of Metropolis and Hastings.

    The kernel rejects a move to a point whose energy or gradient is not finite. A chain that *starts* at
    such a point becomes NaN, as with an unadjusted kernel, so the caller can see it.

    The kernel compares energies in the precision of the network. In float32 the energies of the bundled
    model (up to 1,100 nats) and the acceptance probabilities have errors below 3e-4. In bfloat16
    (autocast) the errors would be several nats, and acceptance would mean nothing.

    Args:
        leapfrog_steps: L, at least 1. The length of a trajectory is about s·L.

    Raises:
        InputError: leapfrog_steps is out of range.
    """

    leapfrog_steps: int = 5

    def __post_init__(self) -> None:
        object.__setattr__(self, "leapfrog_steps", positive("leapfrog_steps", self.leapfrog_steps))

    @property
    def optimal_acceptance(self) -> float:
        """The mean acceptance that gives the longest moves for the cost, in many dimensions.

        0.574 for L = 1 (Roberts & Rosenthal 1998), else 0.651 (Beskos et al. 2013).
        """
        return 0.574 if self.leapfrog_steps == 1 else 0.651

    def init(self, y: Tensor, potential: Potential) -> HMCState:
        """Start chains at y (B, ...). It costs one gradient."""
        value, grad = potential.value_and_grad(y)
        sound = value.isfinite() & grad.isfinite().flatten(1).all(1)
        return HMCState(y.where(per_chain(sound, y), math.nan), value, grad)

    def step(
        self, state: HMCState, potential: Potential, step_size: Tensor, random: RandomSource
    ) -> tuple[HMCState, StepInfo]:
        """One transition of every chain. It costs L gradients."""
        momentum = random.normal(state.y.shape[1:])
        s = per_chain(step_size.sqrt(), state.y)
        proposed, end_momentum = state, momentum
        for _ in range(self.leapfrog_steps):
            proposed, end_momentum = leapfrog(proposed, end_momentum, s, potential)
        ratio = log_ratio(state, proposed, momentum, end_momentum)
        acceptance = torch.where(ratio.isfinite(), ratio.clamp(max=0).exp(), 0.0)
        accepted = random.uniform() < acceptance
        return choose(accepted, proposed, state), StepInfo(acceptance, accepted)


@dataclass(frozen=True)
class MALA(HMC):
    """The Metropolis-adjusted Langevin algorithm: `HMC` with one leapfrog step.

    With the same step size it proposes the move that `Langevin` makes. A step costs the same.
    """

    leapfrog_steps: int = field(default=1, init=False)


def leapfrog(
    state: HMCState, p: Tensor, s: Tensor, potential: Potential
) -> tuple[HMCState, Tensor]:
    """``p ← p - ½ s ∇E(y), y ← y + s p, p ← p - ½ s ∇E(y)``. It is reversible and preserves volume."""
    p = p - 0.5 * s * state.grad
    y = state.y + s * p
    value, grad = potential.value_and_grad(y)
    return HMCState(y, value, grad), p - 0.5 * s * grad


def log_ratio(old: HMCState, new: HMCState, p: Tensor, p_new: Tensor) -> Tensor:
    """``H(old) - H(new)``, (B,) nats.

    It computes ``½‖p‖² - ½‖p'‖²`` as ``½ Σ (p - p')(p + p')``. The difference of two large sums would
    lose digits.
    """
    kinetic = 0.5 * ((p - p_new) * (p + p_new)).flatten(1).sum(1)
    return old.energy - new.energy + kinetic


def choose(accepted: Tensor, new: HMCState, old: HMCState) -> HMCState:
    """For each chain, the new state if ``accepted`` (B,) is true, else the old state."""
    return HMCState(*(a.where(per_chain(accepted, a), b) for a, b in zip(new, old, strict=True)))
