"""Laws known exactly, how far draws are from them, and random numbers to draw with."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cdrl_infer.energies.analytic import ExponentialGaussianEnergy, GaussianMixtureEnergy
from cdrl_infer.random import BatchRandom, PerImageRandom

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
