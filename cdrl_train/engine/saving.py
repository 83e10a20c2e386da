"""From a trainer to its folder and back: saving, and resuming to the bit."""

from __future__ import annotations

from pathlib import Path

import torch

from cdrl_infer.errors import CheckpointError, listing
from cdrl_train.engine import checkpoints
from cdrl_train.engine.distributed import by_main, gathered, main_first
from cdrl_train.engine.trainer import Trainer


def save(trainer: Trainer) -> Path:
    """Write the whole state; a run resumed from it continues to the bit on the same device.

    Raises:
        CheckpointError: the disk is full or refuses the file.
    """
    folder = trainer.folder / "checkpoints"
    generators = gathered(trainer.accelerator, trainer.global_generator.get_state())

    def write() -> None:
        state = {**trainer.state_dict(), "global_generators": generators}
        checkpoints.save(folder, trainer.step, state, trainer.config.keep_checkpoints)

    by_main(trainer.accelerator, write)
    trainer.saved_step = trainer.step
    return checkpoints.path_of(folder, trainer.step)


def newest(trainer: Trainer) -> checkpoints.Loaded | None:
    """The newest state that is whole; None without any.

    The main process looks first, since it renames damaged files.

    Raises:
        CheckpointError: all checkpoints are damaged, or the processes see different ones.
    """
    folder = trainer.folder / "checkpoints"
    with main_first(trainer.accelerator):
        found = checkpoints.load_newest(folder, trainer.tell)
    mine = torch.tensor(-1 if found is None else found.state["step"])
    steps = [int(step) for step in gathered(trainer.accelerator, mine)]
    if len(set(steps)) > 1:
        raise CheckpointError(
            f"the processes see different checkpoints in {folder}, of steps {listing(steps)} (-1: "
            "none); choose an --out on a disk that all of them share"
        )
    return found


def resume(trainer: Trainer) -> bool:
    """Continue from the newest checkpoint that is whole; returns whether there was one.

    Lines of the log after it are dropped: their steps were lost and will be done again.

    Raises:
        CheckpointError: all checkpoints are damaged, or they are of another run; or the disk is full.
    """
    found = newest(trainer)
    if found is not None:
        trainer.load_state_dict(found.state)
    logged = found.state["log_lines"] if found else 0
    with checkpoints.writing_to(trainer.folder):
        by_main(trainer.accelerator, lambda: trainer.log.cut(logged))
    return found is not None
