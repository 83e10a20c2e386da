"""The results of a run: of one step on all processes, and their running means."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from accelerate import Accelerator


class Sum(NamedTuple):
    """Observations of one result, added up."""

    total: float
    size: int  # how many

    @property
    def mean(self) -> float:
        """Of the observations."""
        return self.total / self.size


class Results:
    """What one step observes, by name. Sums are taken on the device.

    Args:
        num_levels: T.
        device: of the step; only `shared` waits for it.
    """

    def __init__(self, num_levels: int, device: torch.device) -> None:
        self.num_levels = num_levels
        self.device = device
        self._found: dict[str, Tensor] = {}  # (2,) or, by level, (2, T): sums and counts

    def add(self, name: str, value: Tensor) -> None:
        """Add one observation ()."""
        self._add(name, torch.stack([value.detach().float(), torch.ones((), device=self.device)]))

    def add_by_level(self, name: str, values: Tensor, t: Tensor) -> None:
        """Add values (B,) of images in transitions t (B,), each under ``name/t``."""
        observed = torch.stack(
            [values.detach().float(), torch.ones(len(values), device=self.device)]
        )
        found = torch.zeros(2, self.num_levels, device=self.device)
        self._add(name, found.index_add_(1, t - 1, observed))

    def _add(self, name: str, found: Tensor) -> None:
        before = self._found.get(name)
        self._found[name] = found.detach() if before is None else before + found.detach()

    def _by_level(self, name: str) -> list[str]:
        return [f"{name}/{t}" for t in range(1, self.num_levels + 1)]

    def shared(
        self, accelerator: Accelerator, norms: dict[str, Tensor]
    ) -> tuple[dict[str, Sum], dict[str, float]]:
        """The sums over all processes, which have to have added the same names in the same order.

        This waits for the device, once a step.

        Args:
            accelerator: connects the processes.
            norms: numbers () that are the same in all processes; they come back as they are.
        """
        columns = [found.reshape(2, -1) for found in self._found.values()]
        reduced: Tensor = accelerator.reduce(torch.cat(columns, dim=1), "sum")
        own = torch.stack([norm.detach().float() for norm in norms.values()])
        read = torch.cat([reduced.flatten(), own]).tolist()
        totals, counts = read[: reduced.shape[1]], read[reduced.shape[1] : 2 * reduced.shape[1]]
        keys = [
            key
            for name, found in self._found.items()
            for key in ([name] if found.ndim == 1 else self._by_level(name))
        ]
        sums = {
            key: Sum(total, int(count))
            for key, total, count in zip(keys, totals, counts, strict=True)
            if count
        }
        return sums, dict(zip(norms, read[2 * reduced.shape[1] :], strict=True))


class Metrics:
    """Running means between two lines of the log, by name."""

    def __init__(self) -> None:
        self.sums: dict[str, float] = {}
        self.counts: dict[str, int] = {}

    def add(self, name: str, value: float, count: int = 1) -> None:
        """Add ``count`` observations whose sum is ``value``."""
        self.sums[name] = self.sums.get(name, 0.0) + value
        self.counts[name] = self.counts.get(name, 0) + count

    def take(self) -> dict[str, float]:
        """The means, and start anew."""
        means = {name: self.sums[name] / self.counts[name] for name in self.sums}
        self.sums, self.counts = {}, {}
        return means
