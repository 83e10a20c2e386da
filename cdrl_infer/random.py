"""Where random numbers come from: one stream per image, or one for a whole batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor


class RandomSource(Protocol):
    """Draws for a batch; each call advances the stream."""

    def normal(self, shape: Sequence[int]) -> Tensor:
        """(B, *shape) independent standard normals."""
        ...

    def uniform(self) -> Tensor:
        """(B,) independent numbers in [0, 1)."""
        ...


class PerImageRandom:
    """One generator per image, so image k does not depend on the batch it is drawn in.

    Args:
        generators: B generators; each image draws from its own.
        device: where the numbers are wanted. They are drawn on the generator's own device.
    """

    def __init__(self, generators: Sequence[torch.Generator], device: torch.device | str) -> None:
        self.generators = list(generators)
        self.device = torch.device(device)

    @classmethod
    def from_seeds(
        cls, seeds: Sequence[int], device: torch.device | str, draw_on: torch.device | str = "cpu"
    ) -> PerImageRandom:
        """Fresh generators with these seeds, drawing on ``draw_on`` (the same bits on every CPU)."""
        return cls([torch.Generator(draw_on).manual_seed(seed) for seed in seeds], device)

    def normal(self, shape: Sequence[int]) -> Tensor:
        """(B, *shape) standard normals, row k from generator k."""
        draws = [torch.randn(*shape, generator=g, device=g.device) for g in self.generators]
        return torch.stack(draws).to(self.device)

    def uniform(self) -> Tensor:
        """(B,) numbers in [0, 1), number k from generator k."""
        draws = [torch.rand((), generator=g, device=g.device) for g in self.generators]
        return torch.stack(draws).to(self.device)


class BatchRandom:
    """One generator for a whole batch: what training uses.

    Args:
        batch_size: of the whole batch.
        generator: whose device the numbers are on.
        rows: the part of the batch that is handed out. The numbers of all of it are drawn, so that an
            image has the same noise however the batch is split over processes.
    """

    def __init__(
        self, batch_size: int, generator: torch.Generator, rows: slice = slice(None)
    ) -> None:
        self.batch_size = batch_size
        self.generator = generator
        self.rows = rows

    def normal(self, shape: Sequence[int]) -> Tensor:
        """(B, *shape) standard normals, B the number of rows handed out."""
        return torch.randn(
            self.batch_size, *shape, generator=self.generator, device=self.generator.device
        )[self.rows]

    def uniform(self) -> Tensor:
        """(B,) numbers in [0, 1), likewise."""
        return torch.rand(self.batch_size, generator=self.generator, device=self.generator.device)[
            self.rows
        ]
