"""One run per folder: a lock that a killed run cannot leave behind."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from cdrl_infer.errors import InputError

NAME = "run.lock"
FAR = 2**30  # Windows locks bytes, so one that nobody reads

if sys.platform == "win32":
    import msvcrt

    def _lock(file: IO[str]) -> None:
        file.seek(FAR)
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except PermissionError as error:
            raise BlockingIOError(*error.args) from error
else:
    import fcntl

    def _lock(file: IO[str]) -> None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextmanager
def locked(folder: Path, tell: Callable[[str], object]) -> Iterator[None]:
    """Hold the folder's ``run.lock`` inside the block.

    The system itself lets go of it when the process ends, however it ends: the file that stays says who
    was last and locks nothing.

    Args:
        folder: of the run; it exists.
        tell: hears that a file system has no locks, on which nothing keeps two runs apart.

    Raises:
        InputError: another process writes to the folder.
    """
    with open(folder / NAME, "a+", encoding="utf-8") as file:
        try:
            _lock(file)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise InputError(
                f"{folder} is in use by {holder}; stop it first or choose another --out"
            ) from None
        except OSError as error:
            tell(
                f"{folder} cannot be locked ({error.strerror}): see that no other run writes there"
            )
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield
