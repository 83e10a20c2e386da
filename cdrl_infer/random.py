"""Sources of random numbers: one stream per image, or one stream for a whole batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

FLOAT = torch.float32  # the type of all draws; it does not depend on the default dtype


class RandomSource(Protocol):
    """Draws for a batch; each call advances the stream."""

    def normal(self, shape: Sequence[int]) -> Tensor:
        """(B, *shape) independent standard normals."""
        ...

    def uniform(self) -> Tensor:
        """(B,) independent numbers in [0, 1)."""
        ...


class PerImageRandom:
    """One generator per image, so an image does not depend on the other images of its batch.

    Args:
        generators: B generators, one per image. Each draws on its own device.
        device: the device of the results.
    """

    def __init__(self, generators: Sequence[torch.Generator], device: torch.device | str) -> None:
        self.generators = list(generators)
        self.device = torch.device(device)

    @classmethod
    def from_seeds(
        cls, seeds: Sequence[int], device: torch.device | str, draw_on: torch.device | str = "cpu"
    ) -> PerImageRandom:
        """New generators with these seeds on the device ``draw_on``. Every CPU gives the same bits."""
        return cls([torch.Generator(draw_on).manual_seed(seed) for seed in seeds], device)

    def normal(self, shape: Sequence[int]) -> Tensor:
        """(B, *shape) standard normals, row k from generator k."""
        draws = [
            torch.randn(*shape, generator=g, device=g.device, dtype=FLOAT) for g in self.generators
        ]
        return torch.stack(draws).to(self.device)

    def uniform(self) -> Tensor:
        """(B,) numbers in [0, 1), number k from generator k."""
        draws = [torch.rand((), generator=g, device=g.device, dtype=FLOAT) for g in self.generators]
        return torch.stack(draws).to(self.device)


class BatchRandom:
    """One generator for a whole batch, for training.

    Args:
        batch_size: number of images in the whole batch.
        generator: draws the numbers, on its device.
        rows: the rows of the batch to return. The generator draws the numbers of all rows, so the noise
            of an image does not depend on how processes share the batch.
    """

    def __init__(
        self, batch_size: int, generator: torch.Generator, rows: slice = slice(None)
    ) -> None:
        self.batch_size = batch_size
        self.generator = generator
        self.rows = rows

    def normal(self, shape: Sequence[int]) -> Tensor:
        """(B, *shape) standard normals for the B rows."""
        g = self.generator
        whole = torch.randn(self.batch_size, *shape, generator=g, device=g.device, dtype=FLOAT)
        return whole[self.rows]

    def uniform(self) -> Tensor:
        """(B,) numbers in [0, 1) for the B rows."""
        g = self.generator
        return torch.rand(self.batch_size, generator=g, device=g.device, dtype=FLOAT)[self.rows]


class Repeated:
    """Several draws per image of another source, as one larger batch.

    Args:
        random: the source, for B images.
        count: k draws per image. Rows ``k i … k i + k - 1`` are those of image i.
    """

    def __init__(self, random: RandomSource, count: int) -> None:
        self.random = random
        self.count = count

    def normal(self, shape: Sequence[int]) -> Tensor:
        """(B k, *shape) standard normals."""
        return self.random.normal((self.count, *shape)).flatten(0, 1)

    def uniform(self) -> Tensor:
        """(B k,) numbers in [0, 1)."""
        return torch.stack([self.random.uniform() for _ in range(self.count)], 1).flatten()
