"""Fréchet distance between two sets of features."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cdrl_infer.errors import InputError


def frechet_distance(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """``‖μ_a - μ_b‖² + tr(Σ_a + Σ_b - 2 (Σ_a Σ_b)^½)`` of two sets of features, in float64.

    With ``Σ = FᵀF``, ``tr (Σ_a Σ_b)^½`` is the sum of the singular values of ``F_a F_bᵀ``: no root
    of a matrix, so it also holds for fewer rows than columns, where the covariances are singular.

    Args:
        a: (N, D), N at least 2.
        b: (M, D), M at least 2.
    """
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise InputError(
            f"expected features (N, D) and (M, D), N and M at least 2, got {a.shape} and {b.shape}"
        )
    means, factors = [], []
    for features in (a.astype(np.float64), b.astype(np.float64)):
        mean = features.mean(0)
        means.append(mean)
        factors.append(np.linalg.qr((features - mean) / np.sqrt(len(features) - 1), mode="r"))
    overlap = np.linalg.svd(factors[0] @ factors[1].T, compute_uv=False).sum()
    traces = sum(np.square(factor).sum() for factor in factors)
    return float(np.square(means[0] - means[1]).sum() + traces - 2 * overlap)
