"""Timers around the parts of a training step."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

import cdrl_train.engine.trainer as trainer_module
import cdrl_train.objectives.cooperative as cooperative_module
import cdrl_train.objectives.drl as drl_module
from cdrl_infer.proposals import InitializerProposal
from cdrl_train.engine.trainer import Trainer
from cdrl_train.objectives.drl import RecoveryLikelihood

DATA = "data and noise"
NORMS = "power iteration, norms, frozen copy"
PROPOSAL = "initializer: proposal"
LANGEVIN = "Langevin"
LOSSES = "EBM: losses"
BACKWARD = "gradients of the losses"
UPDATE = "clipping, optimizer"
AVERAGES = "averages"
PARTS = (DATA, NORMS, PROPOSAL, LANGEVIN, LOSSES, BACKWARD, UPDATE, AVERAGES)
REST = "results, guard, the rest"
Clock = Callable[[], float]


class Stopwatch:
    """Counts seconds by part. The time of an inner part counts for the outer part."""

    def __init__(self, device: torch.device, clock: Clock) -> None:
        self.device = device
        self.clock = clock
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self._running = False

    def now(self) -> float:
        """The time after the GPU has finished its work."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return self.clock()

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        """Time the block as one part."""
        if self._running:
            yield
            return
        self._running, started = True, self.now()
        try:
            yield
        finally:
            self.seconds[part] += self.now() - started
            self._running = False

    def around(self, part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """The function with a timer around it."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self(part):
                return call(*args, **kwargs)

        return timed


def parts_of_trainer(trainer: Trainer, watch: Stopwatch) -> ExitStack:
    """Time the parts of a trainer's steps, until the stack is closed."""
    stack = ExitStack()

    def place(owner: Any, name: str, part: str) -> None:
        original = getattr(owner, name)
        stack.enter_context(mock.patch.object(owner, name, watch.around(part, original)))

    normalised = trainer_module.normalised

    @contextmanager
    def normalised_timed(network: nn.Module) -> Iterator[None]:
        with ExitStack() as inner:
            with watch(NORMS):
                inner.enter_context(normalised(network))
            yield

    place(trainer.stream, "load", DATA)
    for module in (cooperative_module, drl_module):
        place(module, "noised_pair", DATA)
    place(trainer_module, "power_iteration", NORMS)
    place(trainer.state, "refresh_frozen", NORMS)
    stack.enter_context(mock.patch.object(trainer_module, "normalised", normalised_timed))
    place(InitializerProposal, "mean", PROPOSAL)
    place(RecoveryLikelihood, "refine", LANGEVIN)
    place(RecoveryLikelihood, "contrast", LOSSES)
    place(Tensor, "backward", BACKWARD)
    place(trainer_module, "_clipped", UPDATE)
    place(torch.optim.Adam, "step", UPDATE)
    for average in trainer.state.averages.values():
        place(average, "update_parameters", AVERAGES)
    return stack


def breakdown(
    work: Any, steps: int, device: torch.device, clock: Clock = time.perf_counter
) -> dict[str, float]:
    """Seconds of a step by part and of the rest; their sum is the step.

    Args:
        work: a `Trainer` or a `Transcription`.
        steps: number of steps to take.
        device: device of the networks.
        clock: gives the time in seconds.
    """
    watch = Stopwatch(device, clock)
    with ExitStack() as stack:
        if isinstance(work, Trainer):
            stack.enter_context(parts_of_trainer(work, watch))
        else:
            stack.enter_context(mock.patch.object(work, "watch", watch))
        started = watch.now()
        for _ in range(steps):
            work.train_step()
        whole = watch.now() - started
    seconds = {**watch.seconds, REST: whole - sum(watch.seconds.values())}
    return {part: spent / steps for part, spent in seconds.items()}
