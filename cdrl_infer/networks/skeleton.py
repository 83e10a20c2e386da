"""A network without memory: built on the meta device, and refused where its sizes are absurd."""

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
    """What ``make`` builds, on the meta device: names and shapes, to be given tensors later.

    Args:
        make: builds a network.
        num_stored: the tensors there are for it. Building stops at several times as many, so that
            sizes from a file that is not trusted cost no time; a smaller excess is left to be told
            by name.

    Raises:
        ConfigError: sizes that no file of weights can have; or what ``make`` raises.
    """
    with torch.device("meta"), _Frugal(min(4 * num_stored + 64, MOST_TENSORS)):
        return make()


class _Frugal(TorchFunctionMode):
    """Counts new tensors, and skips the normal fills of them: the meta device has nothing to fill, and
    a second of imports to do it with."""

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
                    "absurd sizes, expected those of the network whose weights are stored; take the "
                    "files from the original again"
                )
        return func(*args, **(kwargs or {}))
