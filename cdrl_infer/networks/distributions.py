"""Distributions with a density, as proposals of their own or as the base of an energy."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from cdrl_infer.errors import ConfigError
from cdrl_infer.networks.base import Network
from cdrl_infer.networks.registry import DISTRIBUTIONS
from cdrl_infer.random import RandomSource
from cdrl_infer.registry import Registry
from cdrl_infer.schedule import Level

Covariance = Literal["full", "diagonal"]


class Distribution(Network, ABC):
    """``q(y)``, a density of images that can be drawn from. It does not depend on level or labels.

    As an initializer it proposes without looking at x_t. The first ``num_given`` values of an image,
    in the order of `torch.flatten`, may be conditions x of the others: then q is also ``q(y | x)``.
    A subclass has annotated, named arguments, see `Network`; `DISTRIBUTIONS.register` gives it a name as
    the base of an energy, `INITIALIZERS.register` as an initializer.

    Attributes:
        num_given: number of values that may be given; 0 for none.
    """

    registry: ClassVar[Registry[Any]] = DISTRIBUTIONS
    num_given: int = 0

    @abstractmethod
    def log_prob(self, y: Tensor) -> Tensor:
        """``log q(y)``, (B, ...) -> (B,) nats; differentiable in y and in the parameters."""

    @abstractmethod
    def log_given(self, y: Tensor) -> Tensor:
        """The log-density of the given values of y alone, (B,) nats; 0 without given values."""

    def log_conditional(self, y: Tensor) -> Tensor:
        """The log-density of the other values of y given the given ones, (B,) nats."""
        return self.log_prob(y) - self.log_given(y)

    @abstractmethod
    def draw(
        self, shape: Sequence[int], random: RandomSource, given: Tensor | None = None
    ) -> Tensor:
        """One draw per image of ``random``, (B, *shape).

        Args:
            shape: of one image.
            random: the noise.
            given: (B, *shape) whose given values the draws keep; None: they are drawn too.
        """

    @abstractmethod
    def mean(self) -> Tensor:
        """The mean of q, one number for each value of an image, (D,)."""

    def condition(self, level: Level, labels: Tensor | None = None) -> None:
        """Nothing depends on the level or the labels."""

    def forward(self, x: Tensor, condition: None = None) -> Tensor:
        """The mean for each x_t (B, C, H, W)."""
        return self.mean().reshape(x.shape[1:]).expand_as(x)


class MixtureDistribution(Distribution):
    """``Σ_k π_k N(μ_k, L_k L_kᵀ)`` over all values of an image, with a share of one wide Gaussian.

    L_k is lower triangular, so the first values of a component have the marginal of its leading block,
    and the others given the first are Gaussian too. The wide Gaussian bounds importance weights where
    the fitted components have thin tails (Hesterberg 1995, defensive mixtures). It is a part of q in
    training mode only: a chain that starts far out would need many steps to come back.

    Args:
        in_channels: image channels.
        num_pixels: height times width of an image.
        components: number of fitted Gaussians, at least 1.
        covariance: "full", or "diagonal" for many values.
        scale: standard deviation of the wide Gaussian, and about that of the whole mixture at first.
        defensive: share of the wide Gaussian ``N(0, scale²)``, which does not learn.
        num_given: the first values that may be given, see `Distribution`.
        num_classes: values of each attribute of the data; q does not depend on them.

    Raises:
        ConfigError: a value out of range.
    """

    def __init__(
        self,
        in_channels: int = 1,
        num_pixels: int = 2,
        components: int = 8,
        covariance: Covariance = "full",
        scale: float = 0.7,
        defensive: float = 0.1,
        num_given: int = 0,
        num_classes: tuple[int, ...] = (),
    ) -> None:
        super().__init__()
        values = in_channels * num_pixels
        if min(values, components) < 1 or not scale > 0:
            raise ConfigError(
                f"expected positive sizes, got in_channels={in_channels}, num_pixels={num_pixels}, "
                f"components={components}, scale={scale}"
            )
        if not 0 <= defensive < 1:
            raise ConfigError(f"defensive must lie in [0, 1), got {defensive}")
        if not 0 <= num_given < values:
            raise ConfigError(
                f"num_given must be at least 0 and less than the {values} values of an image, got "
                f"{num_given}"
            )
        self.in_channels, self.num_classes = in_channels, tuple(num_classes)
        self.num_pixels, self.num_given = num_pixels, num_given
        self.scale, self.defensive = scale, defensive
        start = torch.zeros(components, values)
        width = scale
        if components > 1:
            start = scale * torch.randn(components, values)
            width = scale * components ** (-1 / values)
        self.means = nn.Parameter(start)
        self.log_scales = nn.Parameter(torch.full((components, values), math.log(width)))
        self.logits = nn.Parameter(torch.zeros(components)) if components > 1 else None
        self.lower = (
            nn.Parameter(torch.zeros(components, values, values)) if covariance == "full" else None
        )

    @property
    def _share(self) -> float:
        """The share of the wide Gaussian now."""
        return self.defensive if self.training else 0.0

    def _wide(self, fitted: Tensor, value: float) -> Tensor:
        """Values of the components (K, ...), with one of the wide Gaussian after them."""
        if not self._share:
            return fitted
        return torch.cat([fitted, torch.full_like(fitted[:1], value)])

    def log_shares(self) -> Tensor:
        """``log π``, (K,), or (K + 1,) with the wide Gaussian."""
        logits = torch.zeros_like(self.means[:, 0]) if self.logits is None else self.logits
        fitted = logits.log_softmax(0) + math.log1p(-self._share)
        return self._wide(fitted, math.log(self._share or 1.0))

    def _factors(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """μ and log diag L, (K, D) each, and L (K, D, D); L is None if it is diagonal."""
        means, log_scales = (
            self._wide(self.means, 0.0),
            self._wide(self.log_scales, math.log(self.scale)),
        )
        if self.lower is None:
            return means, log_scales, None
        lower = self._wide(self.lower.tril(-1), 0.0)
        return means, log_scales, lower + torch.diag_embed(log_scales.exp())

    def _terms(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """``z = L⁻¹ (y - μ)`` and ``log N(z_d; 0, 1) - log L_dd``, (B, K, D) each."""
        means, log_scales, factor = self._factors()
        flat = y.flatten(1)
        if factor is None:
            z = (flat[:, None] - means) / log_scales.exp()
        else:  # one affine map to all components
            eye = torch.eye(flat.shape[1]).to(factor).expand_as(factor)
            inverse = torch.linalg.solve_triangular(factor, eye, upper=False)
            shift = (inverse @ means[:, :, None]).flatten()
            z = (flat @ inverse.flatten(0, 1).T - shift).reshape(-1, *means.shape)
        return z, -0.5 * z.square() - log_scales - 0.5 * math.log(2 * math.pi)

    def log_prob(self, y: Tensor) -> Tensor:
        """``log q(y)``, (B, C, H, W) -> (B,) nats."""
        _, terms = self._terms(y)
        return (self.log_shares() + terms.sum(2)).logsumexp(1)

    def log_given(self, y: Tensor) -> Tensor:
        """The log-density of the first ``num_given`` values, (B,) nats."""
        _, terms = self._terms(y)
        return (self.log_shares() + terms[:, :, : self.num_given].sum(2)).logsumexp(1)

    def log_conditional(self, y: Tensor) -> Tensor:
        """``log q(y | its given values)``, (B,) nats; the components are weighed once."""
        _, terms = self._terms(y)
        given = self.log_shares() + terms[:, :, : self.num_given].sum(2)
        joint = given + terms[:, :, self.num_given :].sum(2)
        return joint.logsumexp(1) - given.logsumexp(1)

    def draw(
        self, shape: Sequence[int], random: RandomSource, given: Tensor | None = None
    ) -> Tensor:
        """One draw per image; it takes one uniform number for the component, then normals."""
        means, log_scales, factor = self._factors()
        uniform, z = random.uniform(), random.normal(shape).flatten(1)
        logits = self.log_shares().expand(len(z), -1)
        known = self.num_given if given is not None else 0
        if given is not None:
            given_z, terms = self._terms(given)
            logits = logits + terms[:, :, :known].sum(2)
        chosen = choose(logits, uniform)
        if given is not None:
            rows = given_z[torch.arange(len(z), device=z.device), chosen]
            z = torch.cat([rows[:, :known], z[:, known:]], 1)
        if factor is None:
            moved = log_scales.exp()[chosen] * z
        else:
            moved = (factor[chosen] @ z[:, :, None])[:, :, 0]
        y = means[chosen] + moved
        if given is not None:  # the bits of the given values, not their rounding
            y = torch.cat([given.flatten(1)[:, :known], y[:, known:]], 1)
        return y.reshape(-1, *shape)

    def mean(self) -> Tensor:
        """``Σ_k π_k μ_k``, (D,)."""
        means, _, _ = self._factors()
        return self.log_shares().exp() @ means


class GaussianDistribution(MixtureDistribution):
    """``N(μ, L Lᵀ)`` over all values of an image; it starts at ``N(0, scale²)``.

    Args:
        in_channels, num_pixels, covariance, num_given, num_classes: see `MixtureDistribution`.
        scale: standard deviation of each value at first.
    """

    def __init__(
        self,
        in_channels: int = 1,
        num_pixels: int = 2,
        covariance: Covariance = "diagonal",
        scale: float = 1.0,
        num_given: int = 0,
        num_classes: tuple[int, ...] = (),
    ) -> None:
        super().__init__(in_channels, num_pixels, 1, covariance, scale, 0.0, num_given, num_classes)


def choose(logits: Tensor, uniform: Tensor) -> Tensor:
    """One of K for each row, with the probabilities ``softmax(logits)``.

    Args:
        logits: (B, K).
        uniform: (B,) in [0, 1], which decides.

    Returns:
        (B,) indices.
    """
    ends = logits.softmax(1).cumsum(1)
    return (ends < uniform[:, None]).sum(1).clamp(max=logits.shape[1] - 1)
