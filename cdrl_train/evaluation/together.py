"""Images shared out over processes: all of them end with the same results, or the same error."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from cdrl_infer.device import usable_device
from cdrl_infer.errors import CDRLError
from cdrl_train.engine.distributed import make_accelerator
from cdrl_train.engine.ending import one_of_several

if TYPE_CHECKING:
    from accelerate import Accelerator

T = TypeVar("T")
Arrays = dict[str, NDArray[np.generic]]


class Processes:
    """Those that `torchrun` or `accelerate launch` has started, or this one alone.

    Args:
        accelerator: None for one process.
        device: of this process.
    """

    def __init__(self, accelerator: Accelerator | None, device: torch.device) -> None:
        self.accelerator = accelerator
        self.device = device
        self.rank = 0 if accelerator is None else accelerator.process_index
        self.count = 1 if accelerator is None else accelerator.num_processes

    @classmethod
    def join(cls, device: str | None) -> Processes:
        """Find the others.

        Args:
            device: to run on; None: a GPU where there is one, each process its own.

        Raises:
            InputError: no such device, or several processes and no accelerate.
        """
        place = None if device is None else usable_device(device)
        if one_of_several():
            accelerator = make_accelerator(device=place)
            return cls(accelerator, accelerator.device)
        return cls(None, place or usable_device("cuda" if torch.cuda.is_available() else "cpu"))

    @property
    def main(self) -> bool:
        """Is this the one that writes and tells?"""
        return self.rank == 0

    def together(self, work: Callable[[], T]) -> list[T]:
        """What each process makes, in their order; an error of one is raised in all."""
        if self.count == 1:
            return [work()]
        from accelerate.utils import gather_object

        mine: tuple[T | None, Exception | None]
        try:
            mine = (work(), None)
        except (CDRLError, OSError) as error:
            mine = (None, error)
        except Exception as error:  # which perhaps cannot be sent
            mine = (None, RuntimeError(f"process {self.rank}: {error!r}"))
        everyone = gather_object([mine])
        for _, failure in everyone:
            if failure is not None:
                raise failure
        return [result for result, _ in everyone]

    def alike(self, work: Callable[[], T]) -> T:
        """What this process makes of what all do; an error of one is raised in all."""
        made: list[T] = []
        self.together(lambda: made.append(work()))
        return made[0]

    def each_batch(
        self, count: int, batch_size: int, work: Callable[[int, int], Arrays], title: str
    ) -> Arrays:
        """The rows of all images, made batch by batch; whole batches are shared out.

        So each batch has the same images however many processes there are, and the same rows to the
        bit: a network rounds an image otherwise in other company.

        Args:
            count: N.
            batch_size: images at a time.
            work: (start, stop) -> arrays of as many rows.
            title: of the bar on stderr, shown if that is a terminal.
        """
        starts = range(0, count, batch_size)

        def mine() -> dict[int, Arrays]:
            found = {}
            hidden = None if self.main else True
            with tqdm(total=count, desc=title, unit="image", disable=hidden) as bar:
                for start in starts[self.rank :: self.count]:
                    stop = min(start + batch_size, count)
                    found[start] = work(start, stop)
                    bar.update(min((stop - start) * self.count, count - bar.n))
            return found

        parts: dict[int, Arrays] = {}
        for found in self.together(mine):
            parts.update(found)
        return {name: np.concatenate([parts[start][name] for start in starts]) for name in parts[0]}

    def leave(self) -> None:
        """End the group of processes."""
        if self.accelerator is not None:
            self.accelerator.end_training()
            if torch.distributed.is_initialized():
                torch.distributed.destroy_process_group()
