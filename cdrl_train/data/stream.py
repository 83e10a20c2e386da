"""Batches of images, endless and shuffled."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from cdrl_train.config import DataConfig
from cdrl_train.data.image_set import ImageSet


class Batch(NamedTuple):
    """Network input."""

    x: Tensor  # (B, C, H, W) float32 in [-1, 1]
    labels: Tensor | None  # (B, A) int64; 0 hides the label, k + 1 is index k of `ImageSet`


class BatchStream:
    """Endless shuffled batches.

    The order of an epoch depends only on the seed and the epoch, so ``state()`` is enough to resume.

    Args:
        data: the images.
        config: how they become network input.
        seed: seed of the orders.
        device: where the batches are needed.
    """

    def __init__(
        self, data: ImageSet, config: DataConfig, seed: int, device: torch.device | str
    ) -> None:
        self.data = data
        self.config = config
        self.seed = seed
        self.device = torch.device(device)
        # Large sets stay mapped from the disk; each batch is sent to the device by itself.
        resident = data.images.nbytes <= config.in_memory_mib * 2**20
        self.images = data.images.to(device) if resident else data.images
        self.labels = None if data.labels is None else data.labels.to(device)
        self.epoch = 0
        self.position = 0
        self._order = self._shuffle()

    def _shuffle(self) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        return torch.randperm(len(self.data), generator=generator)

    def state(self) -> dict[str, int]:
        """The epoch and the number of its images that were taken."""
        return {"epoch": self.epoch, "position": self.position}

    def load_state(self, state: dict[str, int]) -> None:
        """Continue from the state of another stream of the same seed and data."""
        self.epoch, self.position = state["epoch"], state["position"]
        self._order = self._shuffle()

    def next(self, batch_size: int, generator: torch.Generator) -> Batch:
        """The next images; ``generator`` decides on dequantisation, flips and hidden labels."""
        return self.load(self.take(batch_size), generator)

    def take(self, batch_size: int) -> Tensor:
        """The indices (B,) of the next images, on the CPU."""
        parts, missing = [], batch_size
        while missing:
            if self.position >= len(self.data):
                self.epoch, self.position = self.epoch + 1, 0
                self._order = self._shuffle()
            part = self._order[self.position : self.position + missing]
            self.position += len(part)
            missing -= len(part)
            parts.append(part)
        return torch.cat(parts)

    def load(self, index: Tensor, generator: torch.Generator, rows: slice = slice(None)) -> Batch:
        """The images of these indices (B,), or of some rows of them.

        The random numbers of all B images are drawn, so splitting a batch does not change its images.
        """
        chosen = index[rows]

        def uniform(*shape: int) -> Tensor:
            whole = torch.rand(
                (len(index), *shape), generator=generator, device=self.device, dtype=torch.float32
            )
            return whole[rows]

        sent = chosen
        if self.device.type == "cuda" and chosen.device.type == "cpu":
            # From pinned memory, so that nobody waits for the device.
            sent = chosen.pin_memory().to(self.device, non_blocking=True)
        here = sent if self.images.device == sent.device else chosen.to(self.images.device)
        x = self.images[here].to(self.device).float()
        x = (x + uniform(*x.shape[1:])) / 128 - 1 if self.config.dequantise else x / 127.5 - 1
        if self.config.flip:
            x = torch.where(uniform(1, 1, 1) < 0.5, x, x.flip(-1))
        if self.labels is None:
            return Batch(x, None)
        labels = self.labels[sent.to(self.device)] + 1
        return Batch(x, labels * (uniform(*labels.shape[1:]) >= self.config.label_dropout))
