"""Devices by name, refused before any work where they cannot be used."""

from __future__ import annotations

import torch

from cdrl_infer.errors import InputError


def usable_device(name: torch.device | str) -> torch.device:
    """The device of that name.

    Raises:
        InputError: there is no such device here, or it holds no values ("meta").
    """
    try:
        tensor = torch.zeros(1, device=name)
        tensor.cpu()
        return tensor.device
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = str(error).splitlines()[0].split(". ")[0]  # torch may go on for pages
        raise InputError(
            f"device {str(name)!r} cannot be used here ({reason}); try 'cpu'"
        ) from None
