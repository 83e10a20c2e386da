"""Networks without memory: built on the meta device, and refused if their sizes are absurd."""

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


def skeleton(make: Callable[[], T], *, num_stored: int) -> T:
    """Build a network on the meta device: it has names and shapes, and gets its tensors later.

    Args:
        make: builds a network.
        num_stored: how many tensors are stored for it. Building stops at several times as many, so
            that absurd sizes in an untrusted file cost no time. (The caller names the tensors that are
            missing where the excess is smaller.)

    Raises:
        ConfigError: no file of weights can have these sizes; or an error of ``make``.
    """
    with torch.device("meta"), _Frugal(min(4 * num_stored + 64, MOST_TENSORS)):
        return make()


class _Frugal(TorchFunctionMode):
    """Counts new tensors, and skips `normal_`: on the meta device it fills nothing, and imports modules
    for a second."""

    def __init__(self, left: int) -> None:
        super().__init__()
        self.left = left

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is nn.init.normal_:
            return kwargs["tensor"]
        if func in FACTORIES:
            shape = args[0] if isinstance(args[0], (tuple, list)) else args
            self.left -= 1
            if self.left < 0 or math.prod(shape) > LARGEST_TENSOR:
                raise ConfigError(
                    "absurd sizes, expected those of the stored weights; take the files from the "
                    "original again"
                )
        return func(*args, **(kwargs or {}))
