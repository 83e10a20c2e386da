"""Devices by name, and a block in which PyTorch's switches are at their defaults."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

from cdrl_infer.errors import InputError, quoted


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
