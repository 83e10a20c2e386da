"""One run on several processes: who does which images, and what is averaged between them.

Devices, the process group, precision and trackers are accelerate's. Its wrapper around
`DistributedDataParallel` is not used, because DDP's hooks support one call of a network's ``forward``
followed by one backward pass, and the losses need more: energies call ``condition`` beside ``forward``,
several times before one backward pass; score matching differentiates a gradient (``autograd.grad`` inside
the loss, which DDP forbids); Langevin calls the network K times for its input's gradient alone. So
gradients are averaged here, once a step, when they are complete. The exchange is not hidden behind the
backward pass as DDP's would be; beside K + 3 passes through the network it is small.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

import torch
from torch import Tensor, nn

from cdrl_infer.errors import CheckpointError, ConfigError, InputError, did_you_mean, listing

if TYPE_CHECKING:
    from accelerate import Accelerator

T = TypeVar("T")
TRACKERS = ("tensorboard", "wandb", "trackio")
MIXED = {"float32": "no", "bfloat16": "bf16"}
PATIENCE = timedelta(hours=2)  # while the main process draws samples or saves, the others wait


def make_accelerator(
    precision: Literal["float32", "bfloat16"] = "float32",
    device: torch.device | None = None,
    *,
    trackers: Sequence[str] = (),
    logs: Path | None = None,
) -> Accelerator:
    """Join the processes that `torchrun` or `accelerate launch` has started, or be the only one.

    The precision is the run's, whatever ``accelerate launch --mixed_precision`` says.

    Args:
        precision: of `TrainConfig`.
        device: to train on; None: a process's own GPU where there are any.
        trackers: of `TRACKERS`.
        logs: the folder for those that write files.

    Raises:
        InputError: a package is not installed, an unknown tracker, or a device that is not there.
    """
    try:
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState
        from accelerate.tracking import get_available_trackers
        from accelerate.utils import InitProcessGroupKwargs, ProjectConfiguration
    except ImportError as error:
        raise InputError("accelerate is needed to train: pip install 'cdrl[train]'") from error
    for name in trackers:
        if name not in TRACKERS:
            raise InputError(
                f"unknown tracker {name!r}, expected of {listing(TRACKERS)}"
                f"{did_you_mean(name, TRACKERS)}"
            )
        if name not in map(str, get_available_trackers()):
            raise InputError(f"{name} is not installed: pip install {name}, or track with another")
    # accelerate keeps the first precision for the life of a process, which may train a second run.
    if AcceleratorState._shared_state.get("_mixed_precision", MIXED[precision]) != MIXED[precision]:
        AcceleratorState._reset_state()
    if device is not None and device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    accelerator = Accelerator(
        cpu=device is not None and device.type == "cpu",
        mixed_precision=MIXED[precision],
        log_with=list(trackers) or None,
        project_config=ProjectConfiguration(logging_dir=None if logs is None else str(logs)),
        kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)],
    )
    if device is not None and accelerator.device.type != device.type:
        raise InputError(
            f"asked to train on {device}, but this process was given {accelerator.device}; leave the "
            "device out, or start another process"
        )
    return accelerator


def shares(batch_size: int, *, process: int, processes: int, parts: int, name: str) -> list[slice]:
    """The rows of a step's batch that a process works on, in ``parts`` one after the other.

    Args:
        batch_size: images of all processes together.
        process, processes: which one, of how many.
        parts: gradients are accumulated over them.
        name: of the batch size, for the message.

    Raises:
        ConfigError: not all shares would be equal, so that their mean is not that of the batch.
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
    """Replace every gradient by its mean over the processes: one exchange for all.

    All processes get the same bits, so that their weights stay equal.
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
    """Whether any process says yes, question by question: what all must do together or not at all."""
    if accelerator.num_processes == 1:
        return list(answers)
    votes = torch.tensor(answers, dtype=torch.float32, device=accelerator.device)
    total: Tensor = accelerator.reduce(votes, "sum")
    return [count > 0 for count in total.tolist()]


@contextmanager
def main_first(accelerator: Accelerator) -> Iterator[None]:
    """The main process goes through the block before the others do, also where it fails in it.

    The others then find what it has found, files or an error; accelerate's own would leave them waiting.
    """
    if not accelerator.is_main_process:
        accelerator.wait_for_everyone()
    try:
        yield
    finally:
        if accelerator.is_main_process:
            accelerator.wait_for_everyone()


def by_main(accelerator: Accelerator, work: Callable[[], T]) -> T | None:
    """What the main process alone does, while the others wait and get None; if it fails, all do.

    Raises:
        CheckpointError: on the others, the main process failed. On that: whatever it was.
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
            f"process {accelerator.process_index} ends too, since the main one failed: see its message"
        )
    return result


def gathered(accelerator: Accelerator, mine: Tensor) -> list[Tensor]:
    """A small tensor of every process, in their order; not necessarily of one size."""
    from accelerate.utils import gather_object

    return list(gather_object([mine])) if accelerator.num_processes > 1 else [mine]
