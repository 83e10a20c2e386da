"""Proposals draw the points where the chains of a transition start."""

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


class MeanProposal(Protocol):
    """A proposal with a mean, such as `InitializerProposal`."""

    def mean(self, x_t: Tensor, level: Any) -> Tensor:
        """x_t (B, ...) -> the mean of y (B, ...)."""
        ...


class InitializerNetwork(Protocol):
    """A network that gives the mean of the proposal."""

    def condition(self, level: Level, labels: Tensor | None = None) -> Any:
        """Compute what depends only on the level and the labels."""
        ...

    def __call__(self, x: Tensor, condition: Any) -> Tensor:
        """x_t (B, C, H, W) -> the mean of y, of the same shape."""
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
        """One draw per image, (B, C, H, W), without gradients."""
        with torch.no_grad():
            return self.around(self.mean(x_t, level), level, random)

    def around(self, mean: Tensor, level: Level, random: RandomSource) -> Tensor:
        """``mean + τ_t ε``: one draw per image around its mean, (B, ...)."""
        tau = level.expand(level.proposal_variance.sqrt(), mean)
        return mean + tau * random.normal(mean.shape[1:])


class ComposedProposal(InitializerProposal):
    """The initializer's Gaussian with the mean ``g(x_t|∅) + Σ_k w_k (g(x_t|c_k) - g(x_t|∅))``.

    The weights are those of the energies, and the variance stays τ_t² (CDRL section 3.4). The network
    sees one batch of (1 + k) B images.

    Args:
        network: gives ``g``.
        labels: (1 + k, B, A) integers, 0 = not given; ``labels[0]`` is all 0.
        weights: (k, B), the weights w_1 … w_k of each image.
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
    """``y⁰ = x_t``, for DRL, which has no initializer (Gao et al., ICLR 2021). It draws no noise."""

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
        labels: see `InitializerProposal`; with weights, see `ComposedProposal`.
        weights: see `ComposedProposal`; None for one set of labels.
    """
    if network is None:
        return IdentityProposal()
    if labels is None or weights is None:
        return InitializerProposal(network, labels)
    return ComposedProposal(network, labels, weights)


def posterior_mean(x: Tensor, x_t: Tensor, level: Level) -> Tensor:
    """The mean of y given x_t and the clean x, ``m_t E[x_{t-1} | x_t, x]`` (Ho et al. 2020, eq. 7)."""
    from_x_t = level.alpha_in / level.alpha * level.sigma_bar**2 / level.sigma_bar_in**2
    from_x = level.alpha * level.noise_variance / level.sigma_bar_in**2
    mean = level.expand(from_x_t, x) * x_t + level.expand(from_x, x) * x
    return level.expand(level.scale, x) * mean
