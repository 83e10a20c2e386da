"""A training step waits for its device once: nothing but `Results.shared` reads values from it."""

from __future__ import annotations

import dataclasses
import sys
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from runs import images, tiny, trainer
from torch.utils._python_dispatch import TorchDispatchMode

import cdrl_infer
import cdrl_train
from cdrl_infer.schedule import NoiseSchedule
from cdrl_train.data.stream import BatchStream
from cdrl_train.engine.trainer import Trainer

OURS = tuple(str(Path(str(package.__file__)).parent) for package in (cdrl_infer, cdrl_train))
READS = ("_local_scalar_dense", "nonzero", "unique", "masked_select", "is_nonzero", "equal")
# The levels of indices that are on the CPU are checked, those on a device are not; the counter of an
# average is always on the CPU, and Adam's are where the device has no fused Adam.
ON_THE_CPU = {"level", "update", "apply_gradients"}


class Readers(TorchDispatchMode):
    """Counts which of our functions read the value of a tensor, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if any(name in str(func) for name in READS):
            frame: FrameType | None = sys._getframe(1)
            while frame is not None and not frame.f_code.co_filename.startswith(OURS):
                frame = frame.f_back
            if frame is not None:
                self.found[frame.f_code.co_name] += 1
        return func(*args, **(kwargs or {}))


PERSISTENT = {"name": "persistent", "langevin_steps": 2, "chains": 8, "chain_steps": 2}


@pytest.mark.parametrize("objective", ["score_matching", "cooperative", "persistent"])
def test_no_function_of_a_step_reads_a_value(objective: str, tmp_path: Path) -> None:
    config = tiny()
    by_name = {phase.name: phase for phase in config.phases}
    phase = by_name.get(objective) or dataclasses.replace(
        by_name["cooperative"], objective=PERSISTENT
    )
    run = trainer(dataclasses.replace(config, phases=(phase,)), tmp_path)
    run.train_step()
    with Readers() as readers:
        run.train_step()
    assert readers.found.keys() <= ON_THE_CPU


def test_a_value_that_is_read_is_found() -> None:
    with Readers() as readers:
        NoiseSchedule().level(torch.tensor([1, 2]))
    assert readers.found == {"level": 1}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("position", [0, 1])
def test_a_step_on_a_device_waits_once(
    position: int, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    config = tiny()
    config = dataclasses.replace(config, phases=config.phases[position : position + 1])
    run = Trainer(config, BatchStream(images(), config.data, 0, "cuda"), tmp_path)
    for _ in range(2):
        run.train_step()
    recwarn.clear()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        run.train_step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len([w for w in recwarn if "synchronizing" in str(w.message)]) == 1
