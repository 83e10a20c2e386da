"""Proposals draw the points where the chains of a transition start."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from cdrl_infer.model import original
from cdrl_infer.networks.autoencoder import SphereNetwork
from cdrl_infer.networks.base import GenerativeNetwork
from cdrl_infer.networks.distributions import Distribution
from cdrl_infer.networks.gaussian import log_normal
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


class Networks(Protocol):
    """What has an energy and perhaps an initializer, such as a `CDRLModel`."""

    @property
    def ebm(self) -> Any:
        """The energy network."""
        ...

    @property
    def initializer(self) -> Any:
        """The initializer, or None."""
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

    def log_prob(self, y: Tensor, x_t: Tensor, level: Level) -> Tensor:
        """``log q(y | x_t)``, (B,) nats."""
        return log_normal(y - self.mean(x_t, level), level.proposal_variance)


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


class AutoencoderProposal:
    """``y⁰ = f_d(z)`` with z on the unit sphere, for a model of one transition (MPDR).

    The latent is a projection of the noise x_T, see `SphereNetwork`. The proposal adds no noise, so it
    has no density.

    Args:
        network: the autoencoder.
    """

    def __init__(self, network: SphereNetwork) -> None:
        self.network = network

    def mean(self, x_t: Tensor, level: Level) -> Tensor:
        """The decoded latent, (B, C, H, W)."""
        images: Tensor = self.network(x_t)
        return images

    def sample(self, x_t: Tensor, level: Level, random: RandomSource) -> Tensor:
        """The decoded latent, (B, C, H, W), without gradients. It draws no noise."""
        with torch.no_grad():
            return self.mean(x_t, level)

    def errors(self, u: Tensor) -> Tensor:
        """The errors of reconstruction ``‖u - f_d(f_e(u))‖²``, (B,)."""
        return self.network.errors(u)


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


class DistributionProposal:
    """``q(y)``: a distribution of its own, which does not look at x_t.

    Args:
        network: the distribution.
        given: (B, ...) points whose first ``network.num_given`` values all draws keep; None: the draws
            have values of their own there too.
    """

    def __init__(self, network: Distribution, given: Tensor | None = None) -> None:
        self.network = network
        self.points = given

    def given(self, points: Tensor) -> DistributionProposal:
        """The proposal of the other values given the first ones of these points (B, ...)."""
        return DistributionProposal(self.network, points)

    def holding(self, known: Tensor, mask: Tensor) -> DistributionProposal:
        """The proposal given pixels, if q has a density given just these; else the proposal itself.

        Args:
            known: (B, ...) y of the known image.
            mask: True where a pixel is unknown; it broadcasts against ``known``.
        """
        count = self.network.num_given
        unknown = mask.expand_as(known).flatten(1)
        fits = count and bool(unknown[:, count:].all()) and not bool(unknown[:, :count].any())
        return self.given(known) if fits else self

    def mean(self, x_t: Tensor, level: Level) -> Tensor:
        """The mean of q for each image, (B, ...)."""
        mean: Tensor = self.network(x_t)
        return mean

    def sample(self, x_t: Tensor, level: Level, random: RandomSource) -> Tensor:
        """One draw per image, (B, ...), without gradients."""
        with torch.no_grad():
            return self.network.draw(x_t.shape[1:], random, self.points)

    def log_prob(self, y: Tensor, x_t: Tensor, level: Level) -> Tensor:
        """``log q(y)``, or ``log q(y | its given values)`` if there are some, (B,) nats."""
        if self.points is None:
            return self.network.log_prob(y)
        return self.network.log_conditional(y)


class GenerativeProposal:
    """The draws of an energy that draws by itself; it does not look at x_t.

    Args:
        network: the energy.
    """

    def __init__(self, network: GenerativeNetwork) -> None:
        self.network = network

    def mean(self, x_t: Tensor, level: Level) -> Tensor:
        """A typical image for each x_t, (B, C, H, W)."""
        return self.network.typical(x_t)

    def sample(self, x_t: Tensor, level: Level, random: RandomSource) -> Tensor:
        """One draw per image, (B, C, H, W), without gradients."""
        with torch.no_grad():
            return self.network.draw(x_t.shape[1:], random, level)


def proposal_class(
    network: type[Any] | None,
) -> type[InitializerProposal | IdentityProposal | DistributionProposal | AutoencoderProposal]:
    """The class of the proposal that `make_proposal` makes of a network of this class.

    A proposal with a density has the method ``log_prob(y, x_t, level)``.
    """
    if network is None:
        return IdentityProposal
    if issubclass(network, SphereNetwork):
        return AutoencoderProposal
    return DistributionProposal if issubclass(network, Distribution) else InitializerProposal


def make_proposal(
    network: InitializerNetwork | None, labels: Tensor | None = None, weights: Tensor | None = None
) -> InitializerProposal | IdentityProposal | DistributionProposal | AutoencoderProposal:
    """The proposal of a model's initializer.

    Args:
        network: the initializer; None for DRL.
        labels: see `InitializerProposal`; with weights, see `ComposedProposal`.
        weights: see `ComposedProposal`; None for one set of labels.
    """
    if network is None:
        return IdentityProposal()
    own = original(network)
    if isinstance(own, Distribution):
        return DistributionProposal(own)
    if isinstance(own, SphereNetwork):
        return AutoencoderProposal(own)
    if labels is None or weights is None:
        return InitializerProposal(network, labels)
    return ComposedProposal(network, labels, weights)


def proposal_of(
    model: Networks, labels: Tensor | None = None, weights: Tensor | None = None
) -> (
    InitializerProposal
    | IdentityProposal
    | DistributionProposal
    | AutoencoderProposal
    | GenerativeProposal
):
    """The proposal of a model: `make_proposal` of its initializer, or its energy's own draws.

    Args:
        model: has the networks. An energy draws by itself if it is a `GenerativeNetwork` and there is no
            initializer.
        labels, weights: see `make_proposal`.
    """
    energy = original(model.ebm)
    if model.initializer is None and isinstance(energy, GenerativeNetwork):
        return GenerativeProposal(energy)
    return make_proposal(model.initializer, labels, weights)


def posterior_mean(x: Tensor, x_t: Tensor, level: Level) -> Tensor:
    """The mean of y given x_t and the clean x, ``m_t E[x_{t-1} | x_t, x]`` (Ho et al. 2020, eq. 7)."""
    from_x_t = level.alpha_in / level.alpha * level.sigma_bar**2 / level.sigma_bar_in**2
    from_x = level.alpha * level.noise_variance / level.sigma_bar_in**2
    mean = level.expand(from_x_t, x) * x_t + level.expand(from_x, x) * x
    return level.expand(level.scale, x) * mean
