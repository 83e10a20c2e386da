"""Build networks on the meta device, where they take no memory, and refuse absurd sizes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from cdrl_infer.errors import ConfigError

T = TypeVar("T", bound=nn.Module)
LARGEST_TENSOR = 2**40  # values; torch counts in 64 bits and must not overflow
MOST_TENSORS = 5_000  # the paper's largest network has 400
FACTORIES = (torch.empty, torch.ones, torch.zeros)


def skeleton(make: Callable[[], T], *, num_stored: int | None = None) -> T:
    """Build a network on the meta device: its tensors have names and shapes, but no values yet.

    Args:
        make: builds a network.
        num_stored: how many tensors the file holds for it; None: there is no file. Building stops at
            several times as many, so absurd sizes in an untrusted file cost no time. The caller reports
            smaller differences.

    Raises:
        ConfigError: no file of weights can have these sizes, or ``make`` raised it.
    """
    most = MOST_TENSORS if num_stored is None else min(4 * num_stored + 64, MOST_TENSORS)
    expected = "those of the stored weights; download or copy the files again"
    if num_stored is None:
        expected = f"at most {most:,} tensors of at most {LARGEST_TENSOR:.0e} values"
    with torch.device("meta"), _Frugal(most, expected):
        return make()


class _Frugal(TorchFunctionMode):
    """Counts new tensors. Skips `normal_`, which does nothing on the meta device but takes a second."""

    def __init__(self, left: int, expected: str) -> None:
        super().__init__()
        self.left = left
        self.expected = expected

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is nn.init.normal_:
            return kwargs["tensor"]
        if func in FACTORIES:
            shape = args[0] if isinstance(args[0], (tuple, list)) else args
            self.left -= 1
            if self.left < 0 or math.prod(shape) > LARGEST_TENSOR:
                raise ConfigError(f"the sizes of the network are absurd, expected {self.expected}")
        return func(*args, **(kwargs or {}))
