"""Energies in nats; lower is likelier. At one level an energy is a potential, a function of y alone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from cdrl_infer.schedule import Level


class Potential(Protocol):
    """``E(y)`` at one level. A transition kernel needs nothing else of an energy."""

    def __call__(self, y: Tensor) -> Tensor:
        """(B, ...) points -> (B,) energies in nats."""
        ...

    def value_and_grad(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Energies (B,) and their gradient in y (B, ...), both detached."""
        ...


class FunctionPotential:
    """A potential that finds its gradient by automatic differentiation.

    Args:
        function: (B, ...) points -> (B,) energies in nats; differentiable.
    """

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        self.function = function

    def __call__(self, y: Tensor) -> Tensor:
        """(B, ...) -> (B,) nats."""
        return self.function(y)

    def value_and_grad(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Energies (B,) and gradient (B, ...), both detached.

        This works under `torch.no_grad`, but not under `torch.inference_mode`.
        """
        with torch.enable_grad():
            y = y.detach().requires_grad_(True)
            values = self.function(y)
            (grad,) = torch.autograd.grad(values.sum(), y)
        return values.detach(), grad


class Energy(ABC):
    """``E(y) = -log p(y) + const`` at every level; the constant may depend on the level."""

    @abstractmethod
    def at(self, level: Level) -> Potential:
        """The energy at one level. If the level is a batch of B, each image has its own level.

        The call computes what does not depend on y, such as a network's conditioning.
        """

    def __call__(self, y: Tensor, level: Level) -> Tensor:
        """(B, ...) points -> (B,) energies in nats."""
        return self.at(level)(y)

    def denoised(self, x: Tensor, level: Level, score_scale: float = 1.0) -> tuple[Tensor, Tensor]:
        """Tweedie's formula: the posterior mean of the clean image given ``x = x_{t-1}``.

        Args:
            x: (B, ...) images with the noise of level t - 1.
            level: the transition t.
            score_scale: multiplies the score; 1 is Tweedie's formula.

        Returns:
            The posterior mean (B, ...), and the energies (B,) of x in nats; without gradients.
        """
        value, grad = self.at(level).value_and_grad(x * level.scale)
        score = -level.scale * grad  # ∇_x log p(x), by the chain rule through y = m x
        return (x + score_scale * level.sigma_bar**2 * score) / level.alpha, value
