"""Several processes share one piece of work, and all get its results or raise the same error.

`torchrun`, `accelerate launch` and other launchers start the same command several times and say in the
environment who is who. This module needs PyTorch alone, and not even that for one process.
"""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from cdrl_infer.errors import ProcessError, shown

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

T = TypeVar("T")
Arrays = dict[str, "NDArray[np.generic]"]
RANKS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT")
PATIENCE = timedelta(hours=2)  # how long processes wait for one that works
FAREWELL = timedelta(seconds=20)  # how long they wait for the main one to tell the error


def launched() -> bool:
    """Whether a launcher started this process; others may leave some of its variables behind."""
    return (
        all(os.environ.get(name, "").isdecimal() for name in RANKS) and "MASTER_ADDR" in os.environ
    )


def one_of_several() -> bool:
    """Whether `torchrun` or `accelerate launch` started this process together with others."""
    return launched() and os.environ["WORLD_SIZE"] != "1"


def end_process(code: int) -> NoReturn:
    """End one of several processes at once. Files and connections must be closed before.

    If an interpreter shuts down while PyTorch's gloo threads are alive, they can abort it ("terminate
    called without an active exception": PyTorch's pull request 179291). A launcher then reports a
    failure although the work is done. This skips that shutdown.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


class Processes:
    """The processes that a launcher started, or only this process.

    They exchange Python objects by gloo, through the memory of the CPU, on any device.

    Args:
        rank: which of them this one is; the main process has rank 0.
        count: how many they are.

    Attributes:
        failure: the error that all of them raised, or None.
    """

    def __init__(self, rank: int = 0, count: int = 1) -> None:
        self.rank = rank
        self.count = count
        self.failure: Exception | None = None

    @classmethod
    def join(cls) -> Processes:
        """Meet the other processes that the launcher started, if there are any.

        Raises:
            ProcessError: they do not meet.
        """
        if not one_of_several():
            return cls()
        from torch import distributed

        if not distributed.is_initialized():
            try:
                distributed.init_process_group("gloo", timeout=PATIENCE)
            except (RuntimeError, ValueError) as error:
                rank, count = os.environ["RANK"], os.environ["WORLD_SIZE"]
                raise ProcessError(
                    f"process {rank} of {count} does not meet the others ({shown(error)}); check the "
                    "launcher's addresses"
                ) from None
        return cls(distributed.get_rank(), distributed.get_world_size())

    @property
    def main(self) -> bool:
        """Whether this process writes and prints."""
        return self.rank == 0

    def device(self, name: str | None) -> torch.device:
        """The device of this process; of several GPUs each process takes its own.

        Args:
            name: the device that the user wants; None: a GPU, or the CPU if there is none.

        Raises:
            InputError: there is no such device.
        """
        import torch

        from cdrl_infer.device import usable_device, usual_device

        name = name or usual_device()
        if name == "cuda" and self.count > 1 and torch.cuda.is_available():
            name = f"cuda:{int(os.environ['LOCAL_RANK']) % torch.cuda.device_count()}"
        return usable_device(name)

    def mine(self, parts: Sequence[T]) -> Sequence[T]:
        """Every P-th part of the work, from that of the number of this process on."""
        return parts[self.rank :: self.count]

    def together(self, work: Callable[[], T]) -> list[T]:
        """Call ``work`` in all processes and return all results in order; all raise the error of one.

        ``work`` may itself work together.

        Raises:
            ProcessError: another process has ended.
        """
        if self.count == 1:
            return [work()]
        mine: tuple[T | None, Exception | None]
        try:
            mine = (work(), None)
        except Exception as error:
            if error is self.failure or isinstance(error, ProcessError):  # there is nobody to tell
                raise
            mine = (None, self._sendable(error))
        everyone = self._exchange(mine)
        for _, failure in everyone:
            if failure is not None:
                self.failure = failure
                raise failure
        return [result for result, _ in everyone]

    def alike(self, work: Callable[[], T]) -> T:
        """Call ``work`` in all processes and return this one's result; all raise the error of one."""
        made: list[T] = []
        self.together(lambda: made.append(work()))
        return made[0]

    def by_main(self, work: Callable[[], T]) -> T:
        """Call ``work`` in the main process alone and return its result in all; all raise its error."""
        results = self.together(lambda: [work()] if self.main else [])
        return results[0][0]

    @contextmanager
    def one_fate(self) -> Iterator[None]:
        """A block that succeeds in all processes; all raise the error of one, where they next meet.

        They meet where they work together, and at the end of the block.
        """
        failure: Exception | None = None
        try:
            yield
        except Exception as error:
            failure = error

        def end() -> None:
            if failure is not None:
                raise failure

        self.together(end)

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
        import numpy as np
        from tqdm import tqdm

        starts = range(0, count, batch_size)

        def mine() -> dict[int, Arrays]:
            found = {}
            hidden = None if self.main and title is not None else True
            with tqdm(total=count, desc=title, unit=unit, disable=hidden) as bar:
                for start in self.mine(starts):
                    stop = min(start + batch_size, count)
                    found[start] = work(start, stop)
                    bar.update(self.advance(stop - start, count - bar.n))
            return found

        parts: dict[int, Arrays] = {}
        for found in self.together(mine):
            parts.update(found)
        return {name: np.concatenate([parts[start][name] for start in starts]) for name in parts[0]}

    def advance(self, done: int, left: float) -> float:
        """How far the main process's bar of progress moves, if the others are as fast as it.

        Args:
            done: units of work that it has just done.
            left: units that the bar still lacks.
        """
        return done if self.count == 1 else max(0, min(done * self.count, left))

    def leave(self) -> None:
        """Leave the group at the end; after an error of all, wait until the main process has told it.

        Else the launcher may end the main process because another has ended.
        """
        if self.count == 1:
            return
        from torch import distributed

        if not distributed.is_initialized():
            return
        if self.failure is not None:
            with suppress(RuntimeError):
                distributed.monitored_barrier(timeout=FAREWELL)
        distributed.destroy_process_group()

    def _exchange(self, mine: Any) -> list[Any]:
        from torch import distributed

        everyone: list[Any] = [None] * self.count
        try:
            distributed.all_gather_object(everyone, mine)
        except RuntimeError:  # gloo says which address closed the connection
            raise ProcessError(
                f"process {self.rank} of {self.count} ends because another one has ended"
            ) from None
        return everyone

    def _sendable(self, error: Exception) -> Exception:
        """The error itself, if the other processes can read it."""
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:
            return RuntimeError(f"process {self.rank}: {error!r}")
        return error


ALONE = Processes()
