"""Layers that several networks share."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cdrl_infer.errors import InputError


def noise_angle(logsnr: Tensor) -> Tensor:
    """``arctan(exp(-λ/2)) / (π/2)`` in [0, 1]: 0 = clean, 1 = pure noise; same shape as ``logsnr``."""
    return torch.atan(torch.exp(-0.5 * logsnr)) / (0.5 * math.pi)


def start_at_zero(layer: nn.Conv2d | nn.Linear) -> None:
    """Set the weights and the bias to zero."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)


class LabelEmbedding(nn.Module):
    """Adds one learnt vector for the value of each attribute; index 0 means "not given".

    Args:
        num_classes: how many values each of the A attributes has, without "not given".
        dim: width of the embedding.
    """

    def __init__(self, num_classes: tuple[int, ...], dim: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.tables = nn.ModuleList([nn.Embedding(n + 1, dim) for n in num_classes])

    def forward(self, labels: Tensor) -> Tensor:
        """(B, A) integers -> (B, dim)."""
        return torch.stack([table(labels[:, k]) for k, table in enumerate(self.tables)]).sum(0)


class OneHotEmbedding(nn.Linear):
    """The paper's embedding of labels: a linear layer on the concatenated one-hot labels.

    Args:
        num_classes: how many values each of the A attributes has; index 0 means "not given".
        dim: width of the embedding.
    """

    def __init__(self, num_classes: tuple[int, ...], dim: int) -> None:
        super().__init__(sum(n + 1 for n in num_classes), dim)
        self.num_classes = num_classes

    def forward(self, labels: Tensor) -> Tensor:
        """(B, A) integers -> (B, dim)."""
        columns = [F.one_hot(labels[:, k], n + 1) for k, n in enumerate(self.num_classes)]
        return super().forward(torch.cat(columns, dim=1).to(self.weight.dtype))


def add_labels(
    embedding: Tensor, table: LabelEmbedding | OneHotEmbedding | None, labels: Tensor | None
) -> Tensor:
    """``embedding`` (B or 1, dim) plus the embedding of the labels, (B, dim).

    Args:
        embedding: the embedding of the noise level.
        table: the network's embedding of labels; None for an unconditional network.
        labels: (B, A) integers, 0 = not given; None for an unconditional network.

    Raises:
        InputError: labels are missing, or have a wrong number of attributes, or the network is
            unconditional and takes none.
    """
    if table is None:
        if labels is not None:
            raise InputError(
                f"this network is unconditional: expected no labels, got {tuple(labels.shape)}"
            )
        return embedding
    if labels is None or labels.ndim != 2 or labels.shape[1] != len(table.num_classes):
        got = "none" if labels is None else tuple(labels.shape)
        raise InputError(
            f"this network is conditional: expected labels (B, {len(table.num_classes)}), got {got}"
        )
    rows: Tensor = table(labels)
    return embedding + rows


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
