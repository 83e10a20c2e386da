"""Long work that shows its steps while it goes on, and ends when its reader wants no more."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from queue import Empty, Full, Queue
from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")
WAIT = 0.1  # seconds between two looks at whether to stop


class Stopped(Exception):
    """The user stopped the work."""


class _End(NamedTuple, Generic[T]):
    """The end of the work: what it raised, if anything."""

    error: BaseException | None


class Runs:
    """What each session does now. A session does one thing at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stops: dict[str, threading.Event] = {}

    def begin(self, session: str) -> threading.Event:
        """The event that stops the new work of a session; its former work is stopped."""
        stop = threading.Event()
        with self._lock:
            former = self._stops.get(session)
            self._stops[session] = stop
        if former is not None:
            former.set()
        return stop

    def stop(self, session: str) -> None:
        """Stop what a session does, if it does anything."""
        with self._lock:
            stop = self._stops.pop(session, None)
        if stop is not None:
            stop.set()


def steps_of(work: Callable[[Callable[[T], None]], None], stop: threading.Event) -> Iterator[T]:
    """What ``work`` tells, as soon as it tells it. The work is done in a thread of its own.

    Args:
        work: is called with a function ``tell``, and calls it with whatever there is to show. ``tell``
            waits for the reader. Once ``stop`` is set, it raises `Stopped`, so the work ends at its next
            step.
        stop: is also set when the reader closes the iterator.

    Raises:
        Stopped: the work was stopped.
        Exception: whatever the work raises.
    """
    told: Queue[T | _End[T]] = Queue(maxsize=1)  # the work waits until its step is shown

    def tell(item: T | _End[T]) -> None:
        while not stop.is_set():
            with suppress(Full):
                told.put(item, timeout=WAIT)
                return
        raise Stopped

    def run() -> None:
        error: BaseException | None = None
        try:
            work(tell)
        except BaseException as raised:
            error = raised
        with suppress(Stopped):
            tell(_End(error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        while not stop.is_set():
            with suppress(Empty):
                item = told.get(timeout=WAIT)
                if not isinstance(item, _End):
                    yield item
                elif item.error is not None:
                    raise item.error
                else:
                    return
        raise Stopped
    finally:
        stop.set()
        thread.join()
