"""Devices by name, and a block in which PyTorch's switches are at their defaults."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Literal

import torch
from torch.nn import functional

from cdrl_infer.errors import InputError, quoted

Precision = Literal["float32", "bfloat16", "auto"]
ResolvedPrecision = Literal["float32", "bfloat16"]  # with "auto" decided

FASTER = 0.8  # bfloat16 is chosen if it takes at most this share of float32's time


@contextmanager
def default_switches() -> Iterator[None]:
    """A block, or a function that it decorates, without inference mode, autocast and default device.

    Energies need gradients, which inference mode forbids, and float32, which autocast takes away. The
    default dtype has no such block, since all threads share it: whatever is made here names its dtype.
    """
    with ExitStack() as block:
        if torch.is_inference_mode_enabled():
            block.enter_context(torch.inference_mode(False))
        for kind in ("cpu", "cuda", "mps", "xpu"):
            if torch.is_autocast_enabled(kind):
                block.enter_context(torch.autocast(kind, enabled=False))
        if torch.get_default_device().type != "cpu":
            block.enter_context(torch.device("cpu"))
        yield


def usual_device() -> str:
    """The device where none is named: "cuda" if there is one, else "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"


@default_switches()
def usable_device(name: torch.device | str) -> torch.device:
    """The device of that name.

    Raises:
        InputError: there is no such device here, or it holds no values ("meta").
    """
    try:
        tensor = torch.zeros(1, device=name)
        tensor.cpu()
        return tensor.device
    except Exception as error:  # of many types
        reason = f"{error}\n".splitlines()[0].split(". ")[0]  # torch may go on for pages
        raise InputError(
            f"device {quoted(name)} cannot be used here ({reason}); try 'cpu'"
        ) from None


def resolved_precision(precision: Precision, device: torch.device) -> ResolvedPrecision:
    """The precision itself, or for "auto" the `fastest_precision` of the device."""
    return fastest_precision(device) if precision == "auto" else precision


def autocast_to(
    precision: ResolvedPrecision, device: torch.device
) -> AbstractContextManager[object]:
    """A block whose convolutions and matrix products have that precision."""
    if precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


def fastest_precision(device: torch.device) -> ResolvedPrecision:
    """Measure which precision convolves faster on a device; this takes less than a second.

    A processor without bfloat16 instructions emulates them and takes several times as long. One thread
    measures, because several would measure how busy the machine is.
    """
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return "bfloat16" if native else "float32"
    if device.type != "cpu":
        return "float32"
    x, kernel = torch.ones(4, 64, 14, 14), torch.ones(64, 64, 3, 3)
    best = {torch.float32: math.inf, torch.bfloat16: math.inf}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for _ in range(6):
        for dtype in best:
            a, b = x.to(dtype), kernel.to(dtype)
            started = time.perf_counter()
            functional.conv2d(a, b, padding=1)
            best[dtype] = min(best[dtype], time.perf_counter() - started)
    torch.set_num_threads(threads)
    faster = best[torch.bfloat16] < FASTER * best[torch.float32]
    return "bfloat16" if faster else "float32"
