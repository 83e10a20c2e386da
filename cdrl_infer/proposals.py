"""Proposals: the points where the chains of a transition start."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from cdrl_infer.random import RandomSource
from cdrl_infer.schedule import Level


class Proposal(Protocol):
    """Draws a starting point for ``y`` from the noisier image ``x_t``."""

    def sample(self, x_t: Tensor, level: Level, random: RandomSource) -> Tensor:
        """(B, ...) -> (B, ...)."""
        ...


class InitializerNetwork(Protocol):
    """A network that gives the mean of the proposal."""

    def condition(self, level: Level, labels: Tensor | None = None) -> Any:
        """What depends on level and labels alone."""
        ...

    def __call__(self, x: Tensor, condition: Any) -> Tensor:
        """x_t (B, C, H, W) -> the mean for y, the same shape."""
        ...


class InitializerProposal:
    """``q(y | x_t) = N(g(x_t), τ_t² I)``, CDRL section 3.2.

    Args:
        network: gives ``g``.
        labels: (B, A) integers bound to the batch, 0 = not given; None if unconditional.
    """

    def __init__(self, network: InitializerNetwork, labels: Tensor | None = None) -> None:
        self.network = network
        self.labels = labels

    def mean(self, x_t: Tensor, level: Level) -> Tensor:
        """``g(x_t)``, (B, C, H, W); differentiable in the network's parameters."""
        return self.network(x_t, self.network.condition(level, self.labels))

    def sample(self, x_t: Tensor, level: Level, random: RandomSource) -> Tensor:
        """One draw per image, (B, C, H, W), without a graph."""
        with torch.no_grad():
            return self.around(self.mean(x_t, level), level, random)

    def around(self, mean: Tensor, level: Level, random: RandomSource) -> Tensor:
        """``mean + τ_t ε``: one draw per image given its mean, (B, ...)."""
        tau = level.expand(level.proposal_variance.sqrt(), mean)
        return mean + tau * random.normal(mean.shape[1:])


class ComposedProposal(InitializerProposal):
    """The initializer's Gaussian around ``g(x_t|∅) + Σ_k w_k (g(x_t|c_k) - g(x_t|∅))``.

    The means are combined with the weights of the energies, the noise is not (CDRL section 3.4); all go
    through the network in one batch of (1 + k) B.

    Args:
        network: gives ``g``.
        labels: (1 + k, B, A) integers, the unconditional ones (all 0) first.
        weights: (k, B) w of each image.
    """

    def __init__(self, network: InitializerNetwork, labels: Tensor, weights: Tensor) -> None:
        super().__init__(network, labels.flatten(0, 1))
        self.weights = weights

    def mean(self, x_t: Tensor, level: Level) -> Tensor:
        """The combined mean, (B, C, H, W)."""
        count = 1 + len(self.weights)
        means = super().mean(x_t.repeat(count, *[1] * (x_t.ndim - 1)), level)
        unconditional, *conditional = means.chunk(count)
        weights = self.weights.reshape(*self.weights.shape, *[1] * (x_t.ndim - 1))
        pulls = torch.stack(conditional) - unconditional
        return unconditional + torch.sum(weights * pulls, 0)


class IdentityProposal:
    """``y⁰ = x_t``: DRL, which has no initializer (Gao et al., ICLR 2021). It draws no noise."""

    def mean(self, x_t: Tensor, level: Level) -> Tensor:
        """x_t itself, (B, ...)."""
        return x_t

    def sample(self, x_t: Tensor, level: Level, random: RandomSource) -> Tensor:
        """x_t itself, (B, ...)."""
        return x_t

    def around(self, mean: Tensor, level: Level, random: RandomSource) -> Tensor:
        """The mean itself, (B, ...)."""
        return mean


def make_proposal(
    network: InitializerNetwork | None, labels: Tensor | None = None, weights: Tensor | None = None
) -> InitializerProposal | IdentityProposal:
    """The proposal of a model's initializer.

    Args:
        network: the initializer; None for DRL.
        labels, weights: see `InitializerProposal`, or with weights `ComposedProposal`.
    """
    if network is None:
        return IdentityProposal()
    if labels is None or weights is None:
        return InitializerProposal(network, labels)
    return ComposedProposal(network, labels, weights)


def posterior_mean(x: Tensor, x_t: Tensor, level: Level) -> Tensor:
    """``m_t E[x_{t-1} | x_t, x]`` of the forward process (Ho et al. 2020, eq. 7)."""
    from_x_t = level.alpha_in / level.alpha * level.sigma_bar**2 / level.sigma_bar_in**2
    from_x = level.alpha * level.noise_variance / level.sigma_bar_in**2
    mean = level.expand(from_x_t, x) * x_t + level.expand(from_x, x) * x
    return level.expand(level.scale, x) * mean
