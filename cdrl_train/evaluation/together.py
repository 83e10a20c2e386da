"""Share work between processes; all processes get the same results, or raise the same error."""

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
    """The processes that `torchrun` or `accelerate launch` started, or only this process.

    Args:
        accelerator: connects the processes; None for one process.
        device: the device of this process.
    """

    def __init__(self, accelerator: Accelerator | None, device: torch.device) -> None:
        self.accelerator = accelerator
        self.device = device
        self.rank = 0 if accelerator is None else accelerator.process_index
        self.count = 1 if accelerator is None else accelerator.num_processes

    @classmethod
    def join(cls, device: str | None) -> Processes:
        """Find the other processes.

        Args:
            device: the device to use. For None, each process takes its own GPU, or the CPU if there is
                no GPU.

        Raises:
            InputError: the device does not exist, or several processes need accelerate and it is not
                installed.
        """
        place = None if device is None else usable_device(device)
        if one_of_several():
            accelerator = make_accelerator(device=place)
            return cls(accelerator, accelerator.device)
        return cls(None, place or usable_device("cuda" if torch.cuda.is_available() else "cpu"))

    @property
    def main(self) -> bool:
        """Whether this process writes and prints."""
        return self.rank == 0

    def together(self, work: Callable[[], T]) -> list[T]:
        """Call ``work`` in all processes and return all results in order; all raise the error of one."""
        if self.count == 1:
            return [work()]
        from accelerate.utils import gather_object

        mine: tuple[T | None, Exception | None]
        try:
            mine = (work(), None)
        except (CDRLError, OSError) as error:
            mine = (None, error)
        except Exception as error:  # it may not be picklable
            mine = (None, RuntimeError(f"process {self.rank}: {error!r}"))
        everyone = gather_object([mine])
        for _, failure in everyone:
            if failure is not None:
                raise failure
        return [result for result, _ in everyone]

    def alike(self, work: Callable[[], T]) -> T:
        """Call ``work`` in all processes and return this one's result; all raise the error of one."""
        made: list[T] = []
        self.together(lambda: made.append(work()))
        return made[0]

    def each_batch(
        self,
        count: int,
        batch_size: int,
        work: Callable[[int, int], Arrays],
        title: str | None,
        unit: str = "image",
    ) -> Arrays:
        """Compute the rows of all images. The processes share the batches.

        Rounding depends on the batch of an image. Each batch has the same images for any number of
        processes, so all bits of the rows are the same.

        Args:
            count: N.
            batch_size: number of images at once.
            work: (start, stop) -> arrays with a row for each image.
            title: the title of the bar on stderr, if stderr is a terminal; None for no bar.
            unit: what the bar counts.
        """
        starts = range(0, count, batch_size)

        def mine() -> dict[int, Arrays]:
            found = {}
            hidden = None if self.main and title is not None else True
            with tqdm(total=count, desc=title, unit=unit, disable=hidden) as bar:
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
        """Leave the group of processes at the end."""
        if self.accelerator is not None:
            self.accelerator.end_training()
            if torch.distributed.is_initialized():
                torch.distributed.destroy_process_group()


ALONE = Processes(None, torch.device("cpu"))
