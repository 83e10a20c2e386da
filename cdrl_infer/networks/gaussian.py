"""The Gaussian at which energies start, whose mean square is that of the noised data; its density."""

from __future__ import annotations

import math

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


def log_normal(difference: Tensor, variance: Tensor) -> Tensor:
    """The log-density of ``N(0, variance · I)`` at (B, ...), (B,) nats; the variance is () or (B,)."""
    square = difference.square().flatten(1).sum(1)
    return -0.5 * (square / variance + difference[0].numel() * (2 * math.pi * variance).log())
