"""Guidance and composition combine the energies of one network given several labels."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from cdrl_infer.energies.base import Energy, FunctionPotential
from cdrl_infer.energies.neural import EBMNetwork, NeuralEnergy
from cdrl_infer.schedule import Level


class ComposedEnergy(Energy):
    """``E(y) = E(y|∅) - r(y)``; r is a function of the log-ratios ``r_k(y) = E(y|∅) - E(y|c_k)`` in nats.

    ``r = g r_1`` is classifier-free guidance, ``(1 - g) E(y|∅) + g E(y|c)`` (Ho & Salimans 2022; CDRL's w
    is g - 1). `cdrl_infer.conditions.expressions` has other functions r. The network sees one batch of
    (1 + k) B images, all at one level.

    Args:
        network: an `EBMNetwork`.
        labels: (1 + k, B, A) integers, 0 = not given; ``labels[0]`` is all 0.
        log_ratio: differentiable function of r_1 … r_k (k, B) with the value r (B,).
        offsets: (k, T) ``log Z(c_k) - log Z(∅)`` of each level in nats, level 0 first. With them the r_k
            are log-ratios of densities, ``log p(y|c_k) - log p(y|∅)``. None: 0.
    """

    def __init__(
        self,
        network: EBMNetwork,
        labels: Tensor,
        log_ratio: Callable[[Tensor], Tensor],
        offsets: Tensor | None = None,
    ) -> None:
        self.count = len(labels)
        self.energy = NeuralEnergy(network, labels.flatten(0, 1))
        self.log_ratio = log_ratio
        self.offsets = offsets

    def at(self, level: Level) -> FunctionPotential:
        """(B, C, H, W) -> (B,) nats; one level for the whole batch."""
        potential = self.energy.at(level)
        offset = None if self.offsets is None else self.offsets[:, int(level.t) - 1, None]

        def composed(y: Tensor) -> Tensor:
            stacked = y.repeat(self.count, *[1] * (y.ndim - 1))
            unconditional, *conditional = potential(stacked).chunk(self.count)
            ratios = unconditional - torch.stack(conditional)
            return unconditional - self.log_ratio(ratios if offset is None else ratios - offset)

        return FunctionPotential(composed)
