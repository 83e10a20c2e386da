"""What an energy is: nats, lower is likelier."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from cdrl_infer.schedule import Level


class Energy(ABC):
    """``E(y)`` at a level, with ``log p(y) = -E(y) + const``; the constant may depend on the level."""

    @abstractmethod
    def __call__(self, y: Tensor, level: Level) -> Tensor:
        """(B, ...) points -> (B,) energies in nats."""

    def value_and_grad(self, y: Tensor, level: Level) -> tuple[Tensor, Tensor]:
        """Energies (B,) and their gradient in y (B, ...), both detached.

        Works under `torch.no_grad`; under `torch.inference_mode` no gradient exists.
        """
        return differentiate(lambda point: self(point, level), y)


def differentiate(energy: Callable[[Tensor], Tensor], y: Tensor) -> tuple[Tensor, Tensor]:
    """Energies (B,) at y (B, ...) and their gradient in y (B, ...), both detached."""
    with torch.enable_grad():
        y = y.detach().requires_grad_(True)
        values = energy(y)
        (grad,) = torch.autograd.grad(values.sum(), y)
    return values.detach(), grad
