"""Devices by name, refused before any work where they cannot be used."""

from __future__ import annotations

import torch

from cdrl_infer.errors import InputError


def usable_device(name: torch.device | str) -> torch.device:
    """The device of that name.

    Raises:
        InputError: there is no such device here.
    """
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"device {str(name)!r} cannot be used here ({reason}); try 'cpu'"
        ) from None
