"""One process of a run on several: ``python -m ddp_worker FOLDER`` with the environment of `torchrun`.

Trains every case of `CASES` and leaves what it ended with in ``FOLDER/CASE-PROCESS.pt``.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from runs import SMALL, fit, tiny, trainer, unet

from cdrl_infer.errors import CheckpointError, ConfigError, NumericalError
from cdrl_infer.processes import end_process
from cdrl_train.engine import checkpoints
from cdrl_train.engine.saving import resume, save
from cdrl_train.engine.trainer import Trainer

PROCESS = int(os.environ.get("RANK", "0"))


class Recorder(Trainer):
    """Keeps the losses of every step."""

    losses: list[dict[str, float]]

    def train_step(self) -> dict[str, float]:
        self.losses.append(super().train_step())
        return self.losses[-1]


def make(folder: Path, *assignments: str, **changes: Any) -> Any:
    run = trainer(tiny(*assignments, **changes), folder, Recorder)
    run.losses = []
    return run


def trained(run: Any) -> dict[str, Any]:
    """Train to the end without writing anything; the losses and the last state."""
    while run.step < run.config.total_steps:
        run.train_step()
    return {"losses": run.losses, **run.state_dict()}


def plain(folder: Path) -> dict[str, Any]:
    """With files: each process would write into a folder of its own."""
    run = make(folder / f"own-{PROCESS}", log_every=3, sample_every=4)
    called: list[str] = []
    fit(
        run,
        on_log=lambda line: called.append("log"),
        on_sample=lambda run: called.append("sample"),
        on_step=lambda run: called.append("step"),
    )
    return {"called": called, "losses": run.losses, **run.state_dict()}


def spectral_norm(folder: Path) -> dict[str, Any]:
    """In parts, too."""
    return trained(make(folder, spectral_norm=True, ebm=SMALL, accumulate=2))


def dropped_out(folder: Path) -> dict[str, Any]:
    run = make(folder / "whole", initializer=unet())
    fit(run)
    return run.state_dict()


def resumed(folder: Path) -> dict[str, Any]:
    """The same run, which the last process alone is asked to stop after 3 steps."""
    first = make(folder / "cut", initializer=unet())
    fit(first, stop=lambda: PROCESS == 1 and first.step == 3)
    torch.rand(1 + PROCESS)
    second = make(folder / "cut", initializer=unet())
    assert resume(second)
    fit(second)
    return {"stopped": first.step, "resumed": second.step, **second.state_dict()}


def diverged(folder: Path) -> dict[str, Any]:
    run = make(folder / "diverged", "cooperative.max_displacement=1e-9", retries=1)
    try:
        fit(run)
    except NumericalError as error:
        return {"error": str(error), "step": run.step, "halvings": run.guard.halvings}
    return {}


def full(folder: Path) -> dict[str, Any]:
    """The main process alone sees that its disk is full."""
    run = make(folder / "full")

    def refuse(*_: object) -> None:
        raise CheckpointError("cannot save step 0")

    with patch("cdrl_train.engine.checkpoints.save", refuse):
        try:
            fit(run)
        except CheckpointError as error:
            return {"error": str(error)}
    return {}


def apart(folder: Path) -> dict[str, Any]:
    """Each process sees a folder of its own, of which the main one's has a checkpoint."""
    if PROCESS == 0:
        state = {**make(folder / "apart-0").state_dict(), "step": 4}
        checkpoints.save(folder / "apart-0" / "checkpoints", 4, state, keep=2)
    else:
        make(folder / "apart-1")
    try:
        resume(make(folder / f"apart-{PROCESS}"))
    except CheckpointError as error:
        return {"error": str(error)}
    return {}


def damaged(folder: Path) -> dict[str, Any]:
    """What the main process finds, the others find too."""
    run = make(folder / "damaged")
    save(run).write_bytes(b"PK")
    try:
        resume(run)
    except CheckpointError as error:
        return {"error": str(error)}
    return {}


def unequal(folder: Path) -> dict[str, Any]:
    try:
        make(folder, accumulate=3)
    except ConfigError as error:
        return {"error": str(error)}
    return {}


CASES: dict[str, Callable[[Path], dict[str, Any]]] = {
    case.__name__: case
    for case in (
        *(plain, spectral_norm, dropped_out, resumed, diverged),
        *(full, apart, damaged, unequal),
    )
}

if __name__ == "__main__":
    torch.set_num_threads(1)
    place = Path(sys.argv[1])
    torch.distributed.init_process_group(  # by a file: a free port may be taken by the time it is used
        "gloo",
        init_method=f"file://{place.resolve()}/rendezvous",
        rank=PROCESS,
        world_size=int(os.environ["WORLD_SIZE"]),
    )
    for name, case in CASES.items():
        torch.save(case(place), place / f"{name}-{PROCESS}.pt")
    torch.distributed.destroy_process_group()
    end_process(0)
