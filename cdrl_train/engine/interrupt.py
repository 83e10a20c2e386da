"""Being told to stop: a signal becomes a question, asked between two steps or two levels of a picture."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

ONE_REQUEST = 1.0  # seconds


class Stopped(Exception):
    """A piece of work was left unfinished, since the run was asked to stop."""


class StopRequest:
    """Whether, and by which signal, this process was asked to stop."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    def __call__(self) -> bool:
        """Whether to stop."""
        return self.signal is not None


@contextmanager
def stop_request() -> Iterator[StopRequest]:
    """Inside the block SIGTERM and Ctrl-C ask to stop; a second one of either does what it always did.

    Signals of the same second are one request: where a scheduler or a terminal signals a launcher and
    its processes alike, the launcher passes its own on, and each process hears two.

    Only the main thread hears signals; elsewhere the block changes nothing.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
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
