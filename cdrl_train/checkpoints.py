"""Training states on disk: written beside, synced, renamed; the newest few are kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from cdrl_infer.errors import CheckpointError
from cdrl_infer.files import replaced_file

PATTERN = "step-*.pt"


def save(folder: Path, step: int, state: dict[str, Any], keep: int) -> Path:
    """Write ``folder/step-XXXXXXXX.pt`` atomically and delete all but the newest ``keep``."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"step-{step:08d}.pt"
    with replaced_file(target) as beside, open(beside, "wb") as file:
        torch.save(state, file)
    for old in all_of(folder)[:-keep]:
        old.unlink()
    return target


def all_of(folder: Path) -> list[Path]:
    """The checkpoints in the folder, the newest last."""
    return sorted(folder.glob(PATTERN))


def newest(folder: Path) -> Path | None:
    """The newest checkpoint in the folder, if any."""
    files = all_of(folder)
    return files[-1] if files else None


def load(path: Path) -> dict[str, Any]:
    """Read a training state; nothing in the file is executed.

    Raises:
        CheckpointError: the file is damaged or holds something else.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a foreign pickle can raise anything
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise CheckpointError(
            f"{path} cannot be read ({reason}); delete it to resume from the one before"
        ) from error
    if not isinstance(state, dict) or "step" not in state:
        raise CheckpointError(f"{path} is not a training state of this package")
    return state
