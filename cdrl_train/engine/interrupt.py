"""Requests to stop: a signal sets a flag, which is read between steps and between levels of a picture."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

ONE_REQUEST = 1.0  # seconds


class Stopped(Exception):
    """Work was left unfinished because the run was asked to stop."""


class StopRequest:
    """Whether this process was asked to stop, and by which signal."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    def __call__(self) -> bool:
        """Whether to stop."""
        return self.signal is not None


@contextmanager
def stop_request() -> Iterator[StopRequest]:
    """Inside the block, SIGTERM, SIGHUP and Ctrl-C request a stop; a second one has its usual effect.

    Signals within a second are one request: if a scheduler or a terminal signals a launcher and its
    processes, the launcher passes its own signal on, and each process gets two.

    A SIGHUP that is ignored, as under ``nohup``, stays ignored. Only the main thread gets signals; in
    other threads the block changes nothing.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    names = [name for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name)]
    before = {getattr(signal, name): signal.getsignal(getattr(signal, name)) for name in names}
    hangup = getattr(signal, "SIGHUP", None)
    if before.get(hangup) == signal.SIG_IGN:
        del before[hangup]
    asked = 0.0

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if request.signal is None:
            request.signal, asked = signal.Signals(number), time.monotonic()
        elif time.monotonic() - asked > ONE_REQUEST:
            restore()
            signal.raise_signal(number)

    for number in before:
        signal.signal(number, ask)
    try:
        yield request
    finally:
        restore()
