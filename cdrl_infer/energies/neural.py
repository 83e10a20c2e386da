"""The energy of a network. Only this module handles the sign and the unit of a network's output."""

from __future__ import annotations

from typing import Any, Literal, Protocol, runtime_checkable

from torch import Tensor

from cdrl_infer.energies import recorded
from cdrl_infer.energies.base import Energy, FunctionPotential
from cdrl_infer.schedule import Level


@runtime_checkable
class EBMNetwork(Protocol):
    """A network whose output is a log-density in ``output_unit``: nats, or s_t² nats ("step")."""

    output_unit: Literal["nats", "step"]

    def condition(self, level: Level, labels: Tensor | None = None) -> Any:
        """Compute what depends only on the level and the labels."""
        ...

    def __call__(self, y: Tensor, condition: Any) -> Tensor:
        """(B, C, H, W) -> (B,) log-densities in ``output_unit``."""
        ...


class NeuralEnergy(Energy):
    """``E(y) = -f(y)`` if the network's ``output_unit`` is "nats", and ``-f(y)/s_t²`` if it is "step".

    Args:
        network: an `EBMNetwork`.
        labels: (B, A) integers bound to the batch, 0 = not given; None if unconditional.
    """

    def __init__(self, network: EBMNetwork, labels: Tensor | None = None) -> None:
        self.network = network
        self.labels = labels

    def at(self, level: Level) -> FunctionPotential:
        """(B, C, H, W) -> (B,) nats.

        The call computes the network's conditioning on level and labels. With gradients enabled, the
        conditioning keeps its graph, so its parameters learn too.
        """
        condition = self.network.condition(level, self.labels)

        def energy(y: Tensor) -> Tensor:
            f = recorded.call(self.network, y, condition)
            return -f if self.network.output_unit == "nats" else -f / level.step_variance

        return FunctionPotential(energy)
