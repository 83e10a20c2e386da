"""Pieces that several networks share."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def noise_angle(logsnr: Tensor) -> Tensor:
    """``arctan(exp(-λ/2)) / (π/2)`` in [0, 1]: 0 = clean, 1 = pure noise; same shape as ``logsnr``."""
    return torch.atan(torch.exp(-0.5 * logsnr)) / (0.5 * math.pi)


class LabelEmbedding(nn.Module):
    """Sum over attributes of one learnt vector per value; index 0 of each means "not given".

    Args:
        num_classes: how many values each of the A attributes has (without "not given").
        dim: width of the embedding.
    """

    def __init__(self, num_classes: tuple[int, ...], dim: int) -> None:
        super().__init__()
        self.tables = nn.ModuleList([nn.Embedding(n + 1, dim) for n in num_classes])

    def forward(self, labels: Tensor) -> Tensor:
        """(B, A) integers -> (B, dim)."""
        return torch.stack([table(labels[:, k]) for k, table in enumerate(self.tables)]).sum(0)


def sinusoidal_embedding(logsnr: Tensor, frequencies: int) -> Tensor:
    """``(sin(1000 u r_k), cos(1000 u r_k))``, ``u = noise_angle(λ)``, ``r_k = 10000^(-k/(n-1))``.

    Args:
        logsnr: (B,), clamped to [-20, 20].
        frequencies: n, at least 2; the result is (B, 2n).
    """
    k = torch.arange(frequencies, device=logsnr.device, dtype=logsnr.dtype)
    rates = torch.exp(k * (-math.log(10_000) / (frequencies - 1)))
    angle = 1000 * noise_angle(logsnr.clamp(-20, 20))[:, None] * rates
    return torch.cat([angle.sin(), angle.cos()], dim=1)


def one_hot_labels(labels: Tensor, num_classes: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """(B, A) integers, 0 = not given -> (B, Σ_k (num_classes[k] + 1)): one-hots side by side."""
    columns = [F.one_hot(labels[:, k], n + 1) for k, n in enumerate(num_classes)]
    return torch.cat(columns, dim=1).to(dtype)
