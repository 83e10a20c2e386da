"""Pieces that several networks share."""

from __future__ import annotations

import math

import torch
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
