"""The Gaussian at which energies start; its mean square is that of the noised data."""

from __future__ import annotations

from torch import Tensor

from cdrl_infer.errors import ConfigError
from cdrl_infer.schedule import Level


def checked_variance(data_variance: float) -> float:
    """Return v; raise `ConfigError` unless it is positive."""
    if not data_variance > 0:
        raise ConfigError(f"data_variance must be positive, got {data_variance}")
    return data_variance


def gaussian_constants(level: Level, data_variance: float) -> tuple[Tensor, Tensor, Tensor]:
    """``1/m``, ``1/(α²v + σ̄²)`` and ``c/σ̄`` with ``c = √(α²v/(α²v + σ̄²))``; () or (B,) each."""
    signal = level.alpha**2 * data_variance
    precision = 1 / (signal + level.sigma_bar**2)
    weight = (signal * precision).sqrt() / level.sigma_bar
    return 1 / level.scale, precision, weight
