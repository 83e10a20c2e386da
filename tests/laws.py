"""Laws known exactly, also of the unadjusted chain; how far draws are from them; random numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from cdrl_infer.energies.analytic import ExponentialGaussianEnergy, GaussianMixtureEnergy
from cdrl_infer.random import BatchRandom, PerImageRandom
from cdrl_infer.schedule import Level

LIMIT = 5.0  # standard errors that right code stays below; two-sided, 6e-7 per statistic
CAUGHT = 10.0  # standard errors that a planted error exceeds

GAUSSIAN = GaussianMixtureEnergy([1.0], [[0.4, -0.3]], [[[0.8, 0.3], [0.3, 0.4]]])
SKEWED = ExponentialGaussianEnergy(location=[-0.8], spread=[0.3], rate=[1.25])
PLANE = ExponentialGaussianEnergy([-0.8, 0.2], [0.3, 0.4], [1.25, 2.0])
MIXTURE = GaussianMixtureEnergy(
    weights=[0.55, 0.3, 0.15],
    means=[[-0.8, 0.4], [1.0, 0.5], [0.6, -1.5]],
    covariances=[
        [[0.2, 0.08], [0.08, 0.15]],
        [[0.12, 0.0], [0.0, 0.3]],
        [[0.2, -0.1], [-0.1, 0.15]],
    ],
)


def streams(*seeds: int) -> PerImageRandom:
    return PerImageRandom.from_seeds(seeds, "cpu")


def batch_random(n: int, seed: int = 0) -> BatchRandom:
    return BatchRandom(n, torch.Generator().manual_seed(seed))


def deviation(draws: Tensor, expected: Tensor | float, bias: float = 0.0) -> float:
    """Largest ``(|mean - expected| - bias · sd) / (sd / √N)`` over columns of (N, ...) draws."""
    if not bool(draws.isfinite().all()):
        return math.inf
    sd = draws.std(0)
    excess = (draws.mean(0) - expected).abs() - bias * sd
    return float((excess / (sd / math.sqrt(len(draws)))).max())


def moment_deviation(
    draws: Tensor,
    mean: Tensor,
    covariance: Tensor,
    third: Tensor | None = None,
    bias: float = 0.0,
) -> float:
    """`deviation` of mean, covariance and, if given, the third central moments of (N, D) draws."""
    centred = draws.double() - mean
    products = centred[:, :, None] * centred[:, None, :]
    worst = [deviation(centred, 0.0, bias), deviation(products, covariance, bias)]
    if third is not None:
        worst.append(deviation(centred**3, third, bias))
    return max(worst)


def langevin_bias(step_size: float) -> float:
    """Allowed bias of a mean, in standard deviations of what is averaged.

    Under the "curvature" rule an unadjusted chain on a Gaussian inflates no variance by more than
    ``f = 1/(1 - step_size/4)``, and passing from level to level keeps that factor. By
    Cauchy-Schwarz ``|E_q h - E_p h| ≤ sd_p(h) √χ²(q, p)``, and for D = 2 such variances
    ``√χ² = f - 1`` to first order.
    """
    return 1 / (1 - step_size / 4) - 1


def effective_sample_size(draws: Tensor) -> float:
    """Of (steps, chains) stationary draws: their number over ``1 + 2 Σ ρ_k`` (Geyer 1992)."""
    steps, chains = draws.shape
    centred = draws - draws.mean()
    spectrum = torch.fft.rfft(centred, n=2 * steps, dim=0)
    autocovariance = torch.fft.irfft(spectrum.abs() ** 2, dim=0)[:steps].mean(1)
    rho = autocovariance / torch.arange(steps, 0, -1)
    pairs = (rho / rho[0])[: steps // 2 * 2].reshape(-1, 2).sum(1)
    positive = int((pairs < 0).int().argmax()) or len(pairs)
    return steps * chains / float(2 * pairs[:positive].sum() - 1)


# --- laws of the unadjusted chain ----------------------------------------------------------------


class Affine(NamedTuple):
    """``y | x_t ~ N(A x_t + b, N)``."""

    A: Tensor
    b: Tensor
    N: Tensor

    def push(self, mean: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and covariance of y where x_t has these."""
        return self.A @ mean + self.b, self.A @ covariance @ self.A.mT + self.N


def gaussian_at(level: Level) -> tuple[Tensor, Tensor]:
    """Mean and covariance of ``x_{t-1}`` for the Gaussian data."""
    a, s = level.alpha.double(), level.sigma_bar.double()
    return a * GAUSSIAN.mean, a**2 * GAUSSIAN.covariance + s**2 * torch.eye(2).double()


def gaussian_proposal(level: Level) -> Affine:
    """``N(E[y | x_t], τ_t² I)`` by conditioning the pair ``x_t = √r x_{t-1} + σ_t ε``."""
    eye = torch.eye(2).double()
    mean, covariance = gaussian_at(level)
    m, root_r = level.scale.double(), (level.alpha_in / level.alpha).double()
    joint = root_r**2 * covariance + level.noise_variance * eye
    A = m * root_r * covariance @ torch.linalg.inv(joint)
    return Affine(A, m * mean - A @ (root_r * mean), level.proposal_variance * eye)


def gaussian_langevin(start: Affine, level: Level, steps: int) -> Affine:
    """After ``y ← y - ½s² (V⁻¹(y - M) + R (y - x_t)) + s ε``, again and again."""
    eye = torch.eye(2).double()
    m, s2 = level.scale.double(), level.step_variance.double()
    mean, covariance = gaussian_at(level)
    P = torch.linalg.inv(m**2 * covariance)
    R = (level.recovery / level.noise_variance).double()
    keep = eye - 0.5 * s2 * (P + R * eye)
    A, b, N = start
    for _ in range(steps):
        A = keep @ A + 0.5 * s2 * R * eye
        b = keep @ b + 0.5 * s2 * P @ (m * mean)
        N = keep @ N @ keep.mT + s2 * eye
    return Affine(A, b, N)


@dataclass(frozen=True)
class Grid:
    """Densities of one coordinate as vectors of probabilities on equidistant points."""

    points: Tensor

    def normal(self, mean: Tensor, variance: Tensor | float) -> Tensor:
        """(..., G) probabilities of normals with means (...)."""
        z2 = (self.points - mean[..., None]) ** 2 / variance
        return (
            z2.mul_(-0.5).exp_()
            * (self.points[1] - self.points[0])
            / math.sqrt(2 * math.pi * variance)
        )

    def langevin(
        self, start: Tensor, level: Level, steps: int, x_t: Tensor | None = None
    ) -> Tensor:
        """``start`` after steps of ULA on the skewed energy, with recovery where x_t is given."""
        s2 = level.step_variance.item()
        width = 1e-5
        ends = (self.points[:, None] + width, self.points[:, None] - width)
        slope = (SKEWED(ends[0], level) - SKEWED(ends[1], level)) / (2 * width)
        if x_t is not None:
            slope = slope + level.recovery / level.noise_variance * (self.points - x_t)
        transition = self.normal(self.points - 0.5 * s2 * slope, s2)
        for _ in range(steps):
            start = start @ transition
        return start

    def moments(self, probabilities: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean (1,), covariance (1, 1) and third central moment (1,)."""
        assert abs(probabilities.sum() - 1) < 1e-6
        mean = probabilities @ self.points
        centred = self.points - mean
        second, third = (probabilities @ centred**k for k in (2, 3))
        return mean.reshape(1), second.reshape(1, 1), third.reshape(1)
