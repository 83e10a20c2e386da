"""Time several pieces of work fairly: on one thread, in turns, by the processor's clock."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Generic, NamedTuple, TypeVar

import torch

T = TypeVar("T")


class Timed(NamedTuple, Generic[T]):
    """A result, and the processor's seconds that it took."""

    seconds: float
    result: T


@contextmanager
def one_thread() -> Iterator[None]:
    """A block in which PyTorch has one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def turn(names: Iterable[str], k: int) -> list[str]:
    """The names in the order of round k. Every round starts with another one."""
    ordered = [*names]
    first = k % len(ordered)
    return ordered[first:] + ordered[:first]


def in_turns(
    work: Mapping[str, Callable[[], T]],
    rounds: int,
    tell: Callable[[str], object] = lambda text: None,
) -> dict[str, list[Timed[T]]]:
    """What each piece of work gave and took in each round, after a round to warm up.

    The clock counts the time that the processor spends on this process, so other programs do not count,
    though they may slow it down. Every round starts with another piece, so none always follows the same.
    """
    found: dict[str, list[Timed[T]]] = {name: [] for name in work}
    with one_thread():
        for k in range(rounds + 1):
            for name in turn(work, k):
                started = time.process_time()
                result = work[name]()
                if k:
                    found[name].append(Timed(time.process_time() - started, result))
            tell(f"round {k} of {rounds}")
    return found
