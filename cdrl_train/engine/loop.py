"""The loop around the training steps: saving, logging, and what happens when a run diverges."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cdrl_infer.errors import NumericalError
from cdrl_infer.files import remove_unfinished
from cdrl_train.engine import checkpoints, saving
from cdrl_train.engine.distributed import anywhere
from cdrl_train.engine.guard import Diverged
from cdrl_train.engine.trainer import Trainer


def _never() -> bool:
    return False


@dataclass(frozen=True)
class Callbacks:
    """What a run calls; on the main process alone, while the others wait. (All processes ask `stop`.)

    Args:
        on_log: gets each line of the log.
        on_measure: called every ``contradiction_every`` steps; what it returns goes into the log.
        on_sample: called every ``sample_every`` steps and at the end.
        on_step: called after every step.
        on_end: called when the loop ends, however it ends.
        stop: asked between two steps; when any process answers yes, the run saves its state and ends.
    """

    on_log: Callable[[dict[str, Any]], object] | None = None
    on_measure: Callable[[Trainer], dict[str, float]] | None = None
    on_sample: Callable[[Trainer], object] | None = None
    on_step: Callable[[Trainer], object] | None = None
    on_end: Callable[[Trainer], object] | None = None
    stop: Callable[[], bool] = _never


class Loop:
    """Trains to the end, or to a step, and saves on the way and at the end.

    Args:
        trainer: the run.
        callbacks: what to call.
    """

    def __init__(self, trainer: Trainer, callbacks: Callbacks = Callbacks()) -> None:
        self.trainer = trainer
        self.config = trainer.config
        self.calls = callbacks
        self._saved_at = 0.0
        self._back_at: int | None = None  # where the guard went back to last

    def run(self, until: int | None = None) -> None:
        """Train.

        Args:
            until: step to end at; by default the last.

        Raises:
            NumericalError: training diverged, also at lower learning rates. The last good state is on
                the disk, and the message says where.
            CheckpointError: the disk is full or refuses a file. The state saved before is unharmed.
        """
        total = self.config.total_steps
        trainer, end = self.trainer, total if until is None else min(until, total)
        if trainer.is_main:
            trainer.folder.mkdir(parents=True, exist_ok=True)
            for name in ("", "checkpoints", "samples"):
                remove_unfinished(trainer.folder / name)
        try:
            with checkpoints.writing_to(trainer.folder):
                self._run(end)
        finally:
            if trainer.is_main and self.calls.on_end is not None:
                self.calls.on_end(trainer)

    def _run(self, end: int) -> None:
        trainer, config = self.trainer, self.config
        if trainer.saved_step is None:  # a state to go back to; and a full disk is known at once
            self._save()
        self._saved_at = time.monotonic()
        while trainer.step < end:
            if self._stopping():
                return
            label = trainer.state.label
            if not self._step():
                continue
            last = trainer.step == end
            if trainer.is_main and self.calls.on_step is not None:
                self.calls.on_step(trainer)
            phase_ends = not last and trainer.state.label != label
            if trainer.step % config.log_every == 0 or last or phase_ends or self._measuring:
                self._log(label)
            if trainer.step % config.checkpoint_every == 0 or last:
                self._save()
            sampling = last or (trainer.step % config.sample_every == 0 and not self.calls.stop())
            if trainer.is_main and self.calls.on_sample is not None and sampling:
                self.calls.on_sample(trainer)

    @property
    def _measuring(self) -> bool:
        every = self.config.contradiction_every
        return every > 0 and self.trainer.step % every == 0

    def _stopping(self) -> bool:
        """Save if it is time; returns whether to stop."""
        due = time.monotonic() - self._saved_at > 60 * self.config.checkpoint_minutes
        stopping, due = anywhere(self.trainer.accelerator, self.calls.stop(), due)
        if (stopping or due) and self.trainer.saved_step != self.trainer.step:
            self._save()
        return stopping

    def _save(self) -> None:
        saving.save(self.trainer)
        self._saved_at = time.monotonic()

    def _step(self) -> bool:
        """One step; returns False if it diverged and the run went back."""
        trainer = self.trainer
        started = time.perf_counter()
        try:
            losses = trainer.train_step()
        except Diverged as error:
            self._go_back(error)
            return False
        spent = time.perf_counter() - started
        trainer.state.seconds += spent
        trainer.metrics.add("seconds_per_step", spent)
        for name, value in losses.items():
            trainer.metrics.add(name, value)
        return True

    def _go_back(self, error: Diverged) -> None:
        """Continue from the last checkpoint at half the learning rates, or give up."""
        trainer, guard = self.trainer, self.trainer.guard
        halvings = guard.halvings + 1
        folder = trainer.folder / "checkpoints"
        states = checkpoints.all_of(folder) if trainer.is_main else []
        if len(states) > 1 and error.step == self._back_at:
            # The first step's results do not depend on the rates: this state itself is bad.
            checkpoints.set_aside(states[-1])
            trainer.tell(f"{states[-1].name} diverges at its first step, so it is set aside")
        found = saving.newest(trainer)
        if found is None or halvings > guard.retries:
            self._append({**error.record(), "event": "stopped", "halvings": halvings - 1})
            raise NumericalError(
                f"{error}, after going back {halvings - 1} times at half the learning rates; "
                f"{error.advice}; last good state: {found.path if found else 'none'}"
            ) from error
        trainer.load_state_dict(found.state)
        guard.halvings, self._back_at = halvings, trainer.step
        self._append({**error.record(), "back_to": trainer.step, "lr_scale": guard.lr_scale})
        trainer.tell(
            f"{error}; back to step {trainer.step}, learning rates now {guard.lr_scale:g} of the run's "
            f"(try {halvings} of {guard.retries})"
        )

    def _log(self, label: str) -> None:
        trainer = self.trainer
        means = trainer.metrics.take()
        if not trainer.is_main:
            return
        phase = self.config.phases[self.config.labels.index(label)]
        speed = phase.batch_size / means["seconds_per_step"]
        line: dict[str, Any] = {
            "step": trainer.step,
            "phase": label,
            "images": trainer.state.images_seen,
            "hours": round(trainer.state.seconds / 3600, 4),
            "images_per_second": float(f"{speed:.4g}"),
            **{name: float(f"{value:.6g}") for name, value in sorted(means.items())},
        }
        if self._measuring and self.calls.on_measure is not None:
            line.update(self.calls.on_measure(trainer))
        self._append(line)
        if self.calls.on_log is not None:
            self.calls.on_log(line)

    def _append(self, line: dict[str, Any]) -> None:
        if self.trainer.is_main:
            self.trainer.log.append(line)
