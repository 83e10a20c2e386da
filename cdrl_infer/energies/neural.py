"""The energy of a network: the one place where the sign and the step variance are dealt with."""

from __future__ import annotations

from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from cdrl_infer.energies.base import Energy, differentiate
from cdrl_infer.schedule import Level


@runtime_checkable
class EBMNetwork(Protocol):
    """A network whose output is a log-density in ``output_unit``: nats, or s_t² nats ("step")."""

    output_unit: Literal["nats", "step"]

    def condition(self, level: Level, labels: Tensor | None = None) -> Any:
        """What depends on level and labels alone."""
        ...

    def __call__(self, y: Tensor, condition: Any) -> Tensor:
        """(B, C, H, W) -> (B,) log-densities in ``output_unit``."""
        ...


class NeuralEnergy(Energy):
    """``E(y) = -f(y)`` for a network in nats, ``-f(y)/s_t²`` for one in units of the step variance.

    What depends on level and labels alone is computed once per `Level` object; make a new
    `NeuralEnergy` when the network's weights change. A call that is to train the network (gradients
    enabled, parameters that require them) computes it anew, so that its parameters learn too.

    Args:
        network: an `EBMNetwork`.
        labels: (B, A) integers bound to the batch, 0 = not given; None if unconditional.
    """

    def __init__(self, network: EBMNetwork, labels: Tensor | None = None) -> None:
        self.network = network
        self.labels = labels
        self._level: Level | None = None
        self._condition: Any = None

    def __call__(self, y: Tensor, level: Level) -> Tensor:
        """(B, C, H, W) -> (B,) nats."""
        if torch.is_grad_enabled() and self._learns():
            return self._nats(y, level, self.network.condition(level, self.labels))
        return self._nats(y, level, self._kept_condition(level))

    def value_and_grad(self, y: Tensor, level: Level) -> tuple[Tensor, Tensor]:
        """Energies (B,) and gradient (B, C, H, W); the conditioning is kept out of the graph."""
        condition = self._kept_condition(level)
        return differentiate(lambda point: self._nats(point, level, condition), y)

    def _nats(self, y: Tensor, level: Level, condition: Any) -> Tensor:
        f = self.network(y, condition)
        return -f if self.network.output_unit == "nats" else -f / level.step_variance

    @torch.no_grad()
    def _kept_condition(self, level: Level) -> Any:
        if level is not self._level:
            self._level, self._condition = level, self.network.condition(level, self.labels)
        return self._condition

    def _learns(self) -> bool:
        network = self.network
        return isinstance(network, nn.Module) and any(p.requires_grad for p in network.parameters())
