"""The parts that a check puts together: the package's own, or one replaced by a classic error."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from cdrl_infer.energies.base import Energy, Potential
from cdrl_infer.energies.neural import NeuralEnergy
from cdrl_infer.energies.recovery import RecoveryEnergy, RecoveryPotential
from cdrl_infer.kernels.base import StepInfo
from cdrl_infer.kernels.langevin import Langevin, LangevinState
from cdrl_infer.random import RandomSource
from cdrl_infer.schedule import Level


@dataclass(frozen=True)
class Parts:
    """The parts that a check puts together."""

    kernel: Langevin = field(default_factory=Langevin)
    prior: Callable[[Energy], Energy] = lambda energy: energy
    recovery: type[RecoveryEnergy] = RecoveryEnergy
    score_scale: float = 1.0


class LogDensityNetwork:
    """An energy dressed as a network that returns log-densities in a unit, and says which."""

    def __init__(
        self,
        energy: Energy,
        returns: Literal["nats", "step"],
        says: Literal["nats", "step"],
    ) -> None:
        self.energy = energy
        self.returns = returns
        self.output_unit = says

    def condition(self, level: Level, labels: Tensor | None = None) -> Level:
        return level

    def __call__(self, y: Tensor, condition: Level) -> Tensor:
        log_density = -self.energy(y, condition)
        return log_density * condition.step_variance if self.returns == "step" else log_density


class MissingRoot(Langevin):
    """The noise is scaled by s² instead of s."""

    def step(
        self, state: LangevinState, potential: Potential, step_size: Tensor, random: RandomSource
    ) -> tuple[LangevinState, StepInfo]:
        _, grad = potential.value_and_grad(state.y)
        y = state.y - 0.5 * step_size * grad + step_size * random.normal(state.y.shape[1:])
        return LangevinState(y), StepInfo(torch.ones(len(y)), torch.ones(len(y)).bool())


class WrongSignRecovery(RecoveryEnergy):
    """The quadratic term is subtracted."""

    def at(self, level: Level) -> RecoveryPotential:
        return WrongSignPotential(self.prior.at(level), self.x_t, level)


class WrongSignPotential(RecoveryPotential):
    def value_and_grad(self, y: Tensor) -> tuple[Tensor, Tensor]:
        energy, grad = self.prior.value_and_grad(y)
        level = self.level
        return energy, grad - level.recovery / level.noise_variance * (y - self.x_t)


def as_network(returns: Literal["nats", "step"], says: Literal["nats", "step"]) -> Parts:
    return Parts(prior=lambda e: NeuralEnergy(LogDensityNetwork(e, returns, says)))


RIGHT = {
    "analytic": Parts(),
    "network in steps": as_network("step", "step"),
}
PRIOR_ERRORS = {
    "noise variance doubled": Parts(kernel=Langevin(noise_scale=math.sqrt(2))),
    "noise variance halved": Parts(kernel=Langevin(noise_scale=math.sqrt(0.5))),
    "missing root": Parts(kernel=MissingRoot()),
    "divided by s2 twice": as_network("nats", "step"),
    "never divided by s2": as_network("step", "nats"),
}
ERRORS = PRIOR_ERRORS | {"wrong sign of recovery": Parts(recovery=WrongSignRecovery)}
LAST_STEP_ERRORS = ERRORS | {"last score doubled": Parts(score_scale=2.0)}
