"""Runs in processes of their own, for tests that stop or kill them: see `fork_server`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

from runs import lines_of, options, write_data

EVERY = 2
STEPS = 40
TINY = options(
    *(f"warm_start.steps={STEPS // 2}", f"cooperative.steps={STEPS // 2}"),
    *("cooperative.langevin_steps=1", "precision=float32"),
    *("log_every=1", f"checkpoint_every={EVERY}", "sample_every=1000"),
)
# A run that does something before a step.
AT_STEP = """
import signal, time
from cdrl_train import cli
from cdrl_train.engine.trainer import Trainer
def train_step(self, _train_step=Trainer.train_step):
    if self.step == {step}:
        {action}
    return _train_step(self)
Trainer.train_step = train_step
cli.main({arguments!r})
"""


class Process:
    """A fork that runs something, and what it said."""

    def __init__(self, server: subprocess.Popen[str], output: Path, order: dict[str, Any]) -> None:
        self.server = server
        self.output = output
        self.code: int | None = None  # once it was waited for
        self._exchange(json.dumps({"output": str(output), **order}))
        self.pid = int(self._answer())

    def _exchange(self, line: str) -> None:
        assert self.server.stdin is not None
        self.server.stdin.write(line + "\n")
        self.server.stdin.flush()

    def _answer(self) -> str:
        assert self.server.stdout is not None
        return self.server.stdout.readline()

    def send(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self) -> int:
        """The exit code; minus the signal that killed it."""
        if self.code is None:
            self._exchange("wait")
            self.code = int(self._answer())
        return self.code

    def end(self) -> None:
        """Kill it if it still runs, after a test that failed."""
        if self.code is None:
            self.send(signal.SIGKILL)
            self.wait()

    def said(self) -> str:
        return self.output.read_text(encoding="utf-8")


class Starter:
    """Starts `cdrl-train` on a data set."""

    def __init__(self, server: subprocess.Popen[str], folder: Path) -> None:
        self.server = server
        self.folder = folder
        self.last: Process | None = None  # the server runs one at a time
        self.data = write_data(folder)

    def train(self, out: Path, *arguments: str) -> Process:
        """Start a run, or resume the one that is there."""
        how = ["--resume"] if (out / "config.json").is_file() else TINY
        return self.order(arguments=[*self.options(out), *how, *arguments])

    def options(self, out: Path) -> list[str]:
        """Options of every run."""
        here = ["--device", "cpu", "--track", "none"]
        return ["--data", self.data, "--out", str(out), *here]

    def order(self, **order: Any) -> Process:
        if self.last is not None:
            self.last.end()
        self.last = Process(self.server, self.folder / "output.txt", order)
        return self.last


def assert_same(run: Path, whole: Path) -> None:
    """The same log and, to the bit, the same model."""
    assert lines_of(run) == lines_of(whole)
    for role in ("ebm", "initializer"):
        weights = f"model/{role}/model.safetensors"
        assert (run / weights).read_bytes() == (whole / weights).read_bytes()


def wait_for_lines(run: Path, count: int) -> None:
    """Wait until the log has so many, or the run its model."""
    deadline = time.monotonic() + 300
    while len(lines_of(run)) < count and not (run / "model").exists():
        assert time.monotonic() < deadline, "the run does not get on"
        time.sleep(0.001)
