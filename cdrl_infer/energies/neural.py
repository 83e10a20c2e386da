"""The energy of a network: the one place where the sign and the step variance are dealt with."""

from __future__ import annotations

from typing import Any, Literal, Protocol, runtime_checkable

from torch import Tensor

from cdrl_infer.energies.base import Energy, FunctionPotential
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

    Args:
        network: an `EBMNetwork`.
        labels: (B, A) integers bound to the batch, 0 = not given; None if unconditional.
    """

    def __init__(self, network: EBMNetwork, labels: Tensor | None = None) -> None:
        self.network = network
        self.labels = labels

    def at(self, level: Level) -> FunctionPotential:
        """(B, C, H, W) -> (B,) nats.

        The network's conditioning on level and labels is computed here, once. If gradients are enabled
        it keeps its graph, so that the parameters of a network in training learn through it.
        """
        condition = self.network.condition(level, self.labels)

        def energy(y: Tensor) -> Tensor:
            f = self.network(y, condition)
            return -f if self.network.output_unit == "nats" else -f / level.step_variance

        return FunctionPotential(energy)
