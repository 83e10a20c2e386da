"""One run per folder: a lock that ends with its process, however the process ends.

The `filelock` package would empty the file before it asks for the lock. Then the message could not name
the process that holds it.
"""

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
FAR = 2**30  # Windows locks a byte; this one is never read

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
    """Hold ``run.lock`` in the folder inside the block.

    The system releases the lock when the process ends. The file stays and names the last holder.

    Args:
        folder: folder of the run; it exists.
        tell: called with a message if the file system has no locks. Nothing then keeps two runs apart.

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
                f"{folder} cannot be locked ({error.strerror}); make sure that no other run writes there"
            )
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield
