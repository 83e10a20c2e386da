"""A run on several processes: they share the images and average the gradients.

accelerate provides devices, the process group, precision and trackers. Its wrapper around
`DistributedDataParallel` is not used: DDP supports one call of a network's ``forward`` before one
backward pass, and the losses need more. Energies call ``condition`` and ``forward`` several times before
one backward pass. Score matching uses ``autograd.grad`` inside the loss, which DDP forbids. Langevin
sampling calls the network K times for gradients in the images. So this module averages the complete
gradients once a step. DDP would average them during the backward pass. That saves little: the K + 3
passes through the network take much longer than the exchange.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

import torch
from torch import Tensor, nn

from cdrl_infer.device import Precision, fastest_precision
from cdrl_infer.errors import CheckpointError, ConfigError, InputError, did_you_mean, listing
from cdrl_infer.optional import needed
from cdrl_infer.processes import RANKS, launched

if TYPE_CHECKING:
    from accelerate import Accelerator

T = TypeVar("T")
TRACKERS = ("tensorboard", "wandb", "trackio")
MIXED = {"float32": "no", "bfloat16": "bf16"}
PATIENCE = timedelta(hours=2)  # how long processes wait while the main one samples or saves


def make_accelerator(
    precision: Precision = "float32",
    device: torch.device | None = None,
    *,
    trackers: Sequence[str] = (),
    logs: Path | None = None,
) -> Accelerator:
    """Join the processes that `torchrun` or `accelerate launch` started, or be the only one.

    The run's precision overrides ``accelerate launch --mixed_precision``.

    Args:
        precision: see `TrainConfig`; "auto" becomes `fastest_precision`, which `precision_of` tells.
        device: device to train on; None: the process's own GPU, if there is one.
        trackers: names in `TRACKERS`.
        logs: folder for trackers that write files.

    Raises:
        InputError: a package is not installed, an unknown tracker, or a device that is not there.
    """
    with needed("accelerate", "training needs", "train"):
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState
        from accelerate.tracking import get_available_trackers
        from accelerate.utils import InitProcessGroupKwargs, ProjectConfiguration
    for name in trackers:
        if name not in TRACKERS:
            raise InputError(
                f"unknown tracker {name!r}, expected of {listing(TRACKERS)}"
                f"{did_you_mean(name, TRACKERS)}"
            )
        if name not in map(str, get_available_trackers()):
            raise InputError(f"{name} is not installed: pip install {name}, or track with another")
        if name == "tensorboard":  # the others are imported by accelerate alone
            with needed(name, f"--track {name} needs", "train"):
                from torch.utils import tensorboard  # noqa: F401
    if precision == "auto":
        gpu = "cuda" if torch.cuda.is_available() else "mps"
        usable = torch.cuda.is_available() or torch.backends.mps.is_available()
        precision = fastest_precision(device or torch.device(gpu if usable else "cpu"))
    # accelerate keeps its first precision, but a process may train a second run with another one.
    if AcceleratorState._shared_state.get("_mixed_precision", MIXED[precision]) != MIXED[precision]:
        AcceleratorState._reset_state()
    if device is not None and device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    with _no_leftovers():
        accelerator = Accelerator(
            cpu=device is not None and device.type == "cpu",
            mixed_precision=MIXED[precision],
            log_with=list(trackers) or None,
            project_config=ProjectConfiguration(logging_dir=None if logs is None else str(logs)),
            kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)],
        )
    if device is not None and accelerator.device.type != device.type:
        raise InputError(
            f"expected to train on {device}, but this process has {accelerator.device}; leave the device "
            "out, or start another process"
        )
    return accelerator


def precision_of(accelerator: Accelerator) -> Literal["float32", "bfloat16"]:
    """The precision that `make_accelerator` gave it."""
    return "bfloat16" if accelerator.mixed_precision == MIXED["bfloat16"] else "float32"


@contextmanager
def _no_leftovers() -> Iterator[None]:
    """Hide the environment's variables that accelerate would obey although no launcher set them now."""
    hidden = {
        name: value
        for name, value in os.environ.items()
        if (name in RANKS and not launched())
        or (name.startswith("ACCELERATE_") and name != "ACCELERATE_USE_CPU")
    }
    for name in hidden:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(hidden)


def shares(batch_size: int, *, process: int, processes: int, parts: int, name: str) -> list[slice]:
    """The rows of a batch that a process works on, in ``parts`` one after the other.

    Args:
        batch_size: images of all processes together.
        process: index of the process.
        processes: number of processes.
        parts: number of parts over which gradients are accumulated.
        name: name of the batch size, for the message.

    Raises:
        ConfigError: the shares are not equal, so their mean would not be the mean of the batch.
    """
    size, rest = divmod(batch_size, processes * parts)
    if rest or not size:
        raise ConfigError(
            f"{name} must be a multiple of {processes * parts} ({processes} processes, each with "
            f"accumulate={parts} parts), got {batch_size}"
        )
    first = process * parts
    return [slice(k * size, (k + 1) * size) for k in range(first, first + parts)]


@torch.no_grad()
def average_gradients(accelerator: Accelerator, networks: Iterable[nn.Module]) -> None:
    """Replace every gradient by its mean over the processes, in one exchange.

    All processes get the same bits, so their weights stay equal.
    """
    if accelerator.num_processes == 1:
        return
    gradients = [p.grad for n in networks for p in n.parameters() if p.grad is not None]
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    mean: Tensor = accelerator.reduce(flat, "mean")
    parts = torch.split(mean, [gradient.numel() for gradient in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view(gradient.shape))


def anywhere(accelerator: Accelerator, *answers: bool) -> list[bool]:
    """For each question, whether any process answers yes. All processes get the same answers."""
    if accelerator.num_processes == 1:
        return list(answers)
    votes = torch.tensor(answers, dtype=torch.float32, device=accelerator.device)
    total: Tensor = accelerator.reduce(votes, "sum")
    return [count > 0 for count in total.tolist()]


@contextmanager
def main_first(accelerator: Accelerator) -> Iterator[None]:
    """The main process runs the block before the others do.

    If the block fails there, the others still run it. accelerate's own function would leave them
    waiting.
    """
    if not accelerator.is_main_process:
        accelerator.wait_for_everyone()
    try:
        yield
    finally:
        if accelerator.is_main_process:
            accelerator.wait_for_everyone()


def by_main(accelerator: Accelerator, work: Callable[[], T]) -> T | None:
    """Let the main process work while the others wait; returns its result, and None on the others.

    Raises:
        CheckpointError: on the other processes, if the main one failed. The main process raises its
            own error.
    """
    result, failure = None, None
    if accelerator.is_main_process:
        try:
            result = work()
        except Exception as error:
            failure = error
    (failed,) = anywhere(accelerator, failure is not None)
    if failure is not None:
        raise failure
    if failed:
        raise CheckpointError(
            f"process {accelerator.process_index} ends because the main process failed; see its message"
        )
    return result


def gathered(accelerator: Accelerator, mine: Tensor) -> list[Tensor]:
    """A small tensor from every process, in their order; sizes may differ."""
    from accelerate.utils import gather_object

    return list(gather_object([mine])) if accelerator.num_processes > 1 else [mine]
