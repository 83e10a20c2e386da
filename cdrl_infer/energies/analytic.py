"""Energies with a closed form at every level, to test samplers, to teach, and for examples.

The points are vectors (B, D). Results have the floating type of the points.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cdrl_infer.energies.base import Energy, FunctionPotential
from cdrl_infer.errors import InputError
from cdrl_infer.random import RandomSource
from cdrl_infer.schedule import Level


def _column(value: Tensor | float, u: Tensor) -> Tensor:
    """() or (B,) as (1, 1) or (B, 1), in the type of u and on its device."""
    return torch.as_tensor(value, dtype=u.dtype, device=u.device).reshape(-1, 1)


class AnalyticEnergy(Energy):
    """``E(y) = -log p(y)``, normalised, where ``y = m_t (α_{t-1} x + σ̄_{t-1} ε)`` for data x.

    A subclass defines the density of ``u = signal · x + noise · ε``. The energy of every level follows.
    """

    @property
    @abstractmethod
    def mean(self) -> Tensor:
        """(D,) the mean of the data, float64."""

    @property
    @abstractmethod
    def covariance(self) -> Tensor:
        """(D, D) the covariance of the data, float64."""

    @abstractmethod
    def log_density(self, u: Tensor, signal: Tensor | float, noise: Tensor | float) -> Tensor:
        """``log p(u)`` of ``u = signal · x + noise · ε``: (B, D) -> (B,) nats.

        Args:
            u: the points.
            signal: () or (B,), positive.
            noise: () or (B,); 0 gives the density of the scaled data.
        """

    @abstractmethod
    def sample(self, num: int, generator: torch.Generator) -> Tensor:
        """(num, D) exact and independent draws of the data, float64."""

    def at(self, level: Level) -> FunctionPotential:
        """(B, D) -> (B,) nats."""
        signal, noise = level.scale * level.alpha, level.scale * level.sigma_bar
        return FunctionPotential(lambda y: -self.log_density(y, signal, noise))

    def sample_level(self, level: Level, num: int, generator: torch.Generator) -> Tensor:
        """(num, D) exact and independent draws of ``y`` at a level, float64."""
        x = self.sample(num, generator)
        noise = torch.randn(x.shape, generator=generator, dtype=x.dtype)
        clean = level.expand(level.alpha, x) * x + level.expand(level.sigma_bar, x) * noise
        return level.expand(level.scale, x) * clean

    def _check(self, u: Tensor) -> None:
        dim = len(self.mean)
        if u.ndim != 2 or u.shape[1] != dim:
            raise InputError(f"expected points of shape (B, {dim}), got {tuple(u.shape)}")


class GaussianMixtureEnergy(AnalyticEnergy):
    """Data ``x ~ Σ_k w_k N(μ_k, Σ_k)``, so ``y ~ Σ_k w_k N(mα μ_k, m²(α² Σ_k + σ̄² I))``.

    Args:
        weights: (K,) positive, normalised here.
        means: (K, D).
        covariances: (K, D, D), or (K, D) variances along the axes.

    Raises:
        InputError: the shapes do not fit, or a weight or a variance is not positive.
    """

    def __init__(
        self,
        weights: Tensor | Sequence[Any],
        means: Tensor | Sequence[Any],
        covariances: Tensor | Sequence[Any],
    ) -> None:
        w, mu, cov = (
            torch.as_tensor(value, dtype=torch.float64) for value in (weights, means, covariances)
        )
        if mu.ndim != 2 or w.shape != mu.shape[:1] or cov.shape[:2] != mu.shape:
            raise InputError(
                "expected weights (K,), means (K, D) and covariances (K, D) or (K, D, D), "
                f"got {tuple(w.shape)}, {tuple(mu.shape)} and {tuple(cov.shape)}"
            )
        if cov.ndim == 2:
            cov = torch.diag_embed(cov)
        if cov.shape != (*mu.shape, mu.shape[1]) or not torch.allclose(cov, cov.mT):
            raise InputError(
                "expected symmetric covariances (K, D, D) or variances (K, D), "
                f"got shape {tuple(cov.shape)}"
            )
        variances, axes = torch.linalg.eigh(cov)
        if not bool((w > 0).all() and (variances > 0).all()):
            raise InputError(
                "expected positive weights and positive definite covariances, "
                f"got weights {w.tolist()} and smallest variance {float(variances.min()):g}"
            )
        self.weights = w / w.sum()
        self.means = mu
        self.covariances = cov
        self._variances = variances  # (K, D), along the columns of _axes
        self._axes = axes  # (K, D, D)

    @property
    def mean(self) -> Tensor:
        """``Σ_k w_k μ_k``."""
        return self.weights @ self.means

    @property
    def covariance(self) -> Tensor:
        """``Σ_k w_k (Σ_k + (μ_k - μ)(μ_k - μ)ᵀ)``."""
        shift = self.means - self.mean
        between = shift[:, :, None] * shift[:, None, :]
        return torch.einsum("k,kde->de", self.weights, self.covariances + between)

    def log_components(self, u: Tensor, signal: Tensor | float, noise: Tensor | float) -> Tensor:
        """``log(w_k p(u | k))``, (B, D) -> (B, K). Its softmax is the probability of each component."""
        self._check(u)
        a, n = _column(signal, u)[:, None], _column(noise, u)[:, None]
        z: Tensor = torch.einsum(
            "bkd,kde->bke", u[:, None] - a * self.means.to(u), self._axes.to(u)
        )
        variance = a.square() * self._variances.to(u) + n.square()
        log_normal = -0.5 * (z.square() / variance + (2 * math.pi * variance).log()).sum(2)
        log_joint: Tensor = self.weights.to(u).log() + log_normal
        return log_joint

    def log_density(self, u: Tensor, signal: Tensor | float, noise: Tensor | float) -> Tensor:
        """``logsumexp_k`` of `log_components`."""
        return self.log_components(u, signal, noise).logsumexp(1)

    def sample(self, num: int, generator: torch.Generator) -> Tensor:
        """(num, D) draws: choose a component, then draw from it."""
        k = torch.multinomial(self.weights, num, replacement=True, generator=generator)
        z = torch.randn(num, self.means.shape[1], generator=generator, dtype=torch.float64)
        z = z * self._variances[k].sqrt()
        return self.means[k] + torch.einsum("nde,ne->nd", self._axes[k], z)


class ExponentialGaussianEnergy(AnalyticEnergy):
    """Skewed data ``x_d = μ_d + ς_d ε + e_d`` with ``e_d ~ Exp(rate_d)``, independent in d.

    The noised data ``u = a x + n ε`` are of the same family, with location ``a μ``, variance
    ``v = a²ς² + n²`` and rate ``ρ = rate/a``:

    ``log p(u) = log ρ - ρ δ + ρ² v / 2 + log Φ(δ/√v - ρ √v)``, ``δ = u - a μ``.

    The mean is ``μ + 1/rate``, the variance ``ς² + 1/rate²`` and the third central moment ``2/rate³``.
    The skew lets tests find a wrong sign.

    Args:
        location: (D,) μ.
        spread: (D,) ς, positive.
        rate: (D,) positive.

    Raises:
        InputError: the shapes differ, or a spread or a rate is not positive.
    """

    def __init__(
        self,
        location: Tensor | Sequence[float],
        spread: Tensor | Sequence[float],
        rate: Tensor | Sequence[float],
    ) -> None:
        mu, sd, lam = (
            torch.as_tensor(value, dtype=torch.float64) for value in (location, spread, rate)
        )
        if mu.ndim != 1 or not mu.shape == sd.shape == lam.shape:
            raise InputError(
                "expected location, spread and rate of one shape (D,), "
                f"got {tuple(mu.shape)}, {tuple(sd.shape)} and {tuple(lam.shape)}"
            )
        if not bool((sd > 0).all() and (lam > 0).all()):
            raise InputError(
                f"expected positive spread and rate, got {sd.tolist()} and {lam.tolist()}"
            )
        self.location = mu
        self.spread = sd
        self.rate = lam

    @property
    def mean(self) -> Tensor:
        """``μ + 1/rate``."""
        return self.location + 1 / self.rate

    @property
    def covariance(self) -> Tensor:
        """Diagonal, ``ς² + 1/rate²``."""
        return (self.spread**2 + self.rate**-2).diag()

    @property
    def third_moment(self) -> Tensor:
        """(D,) ``E (x - E x)³ = 2/rate³``."""
        return 2 / self.rate**3

    def log_density(self, u: Tensor, signal: Tensor | float, noise: Tensor | float) -> Tensor:
        """The sum over d of the formula of the class, (B, D) -> (B,) nats."""
        self._check(u)
        a, n = _column(signal, u), _column(noise, u)
        delta = u - a * self.location.to(u)
        sd = ((a * self.spread.to(u)).square() + n.square()).sqrt()
        rho = self.rate.to(u) / a
        cut: Tensor = torch.special.log_ndtr(delta / sd - rho * sd)
        return (rho.log() - rho * delta + (rho * sd).square() / 2 + cut).sum(1)

    def sample(self, num: int, generator: torch.Generator) -> Tensor:
        """(num, D) draws: a normal number plus an exponential number."""
        normal = torch.randn(num, len(self.rate), generator=generator, dtype=torch.float64)
        tail = torch.empty_like(normal).exponential_(generator=generator) / self.rate
        return self.location + self.spread * normal + tail


class PosteriorMeanProposal:
    """The ideal result of regression for the initializer: ``q(y | x_t) = N(E[y | x_t], τ_t² I)``.

    Tweedie's formula for the step ``x_t = √r_t x_{t-1} + σ_t ε`` with ``√r_t = α_t/α_{t-1}`` gives
    ``E[y | x_t] = m_t (x_t + σ_t² ∇log p(x_t)) / √r_t``.

    Args:
        energy: the data's distribution.
    """

    def __init__(self, energy: AnalyticEnergy) -> None:
        self.energy = energy

    def mean(self, x_t: Tensor, level: Level) -> Tensor:
        """``E[y | x_t]``, (B, D) -> (B, D), without a graph."""
        with torch.enable_grad():
            x = x_t.detach().requires_grad_(True)
            log_density = self.energy.log_density(x, level.alpha_in, level.sigma_bar_in)
            (score,) = torch.autograd.grad(log_density.sum(), x)
        gain = level.expand(level.scale * level.alpha / level.alpha_in, x_t)
        return gain * (x_t.detach() + level.expand(level.noise_variance, x_t) * score)

    def sample(self, x_t: Tensor, level: Level, random: RandomSource) -> Tensor:
        """One draw per point, (B, D)."""
        tau = level.expand(level.proposal_variance.sqrt(), x_t)
        return self.mean(x_t, level) + tau * random.normal(x_t.shape[1:])
