"""Runs that are stopped, killed, started twice, or out of disk: what they leave and how they go on."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cdrl_infer.errors import InputError
from cdrl_infer.files import remove_unfinished
from cdrl_train.engine import checkpoints
from cdrl_train.engine.interrupt import stop_request
from cdrl_train.engine.lock import locked

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked here")

HERE = Path(__file__).parent
NETWORK = '{"class": "PatchUNet", "widths": [4], "num_blocks": 1, "embedding_dim": 8}'
EVERY = 2
STEPS = 40
TINY = [
    *("--set", f'ebm={{"class": "InnerProductEnergy", "backbone": {NETWORK}}}'),
    *("--set", f'initializer={{"class": "ResidualInitializer", "backbone": {NETWORK}}}'),
    *("--set", "schedule.num_levels=2", "--set", "sampler.langevin_steps=1"),
    *("--set", f"warm_start.steps={STEPS // 2}", "--set", f"cooperative.steps={STEPS // 2}"),
    *("--set", "warm_start.batch_size=4", "--set", "cooperative.batch_size=4"),
    *("--set", "cooperative.langevin_steps=1", "--set", "precision=float32"),
    *("--set", "log_every=1", "--set", f"checkpoint_every={EVERY}", "--set", "sample_every=1000"),
]


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
        """Have it over, whatever it does: of a test that failed."""
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
        self.last: Process | None = None  # the server has one at a time
        self.data = folder / "data.npz"
        images = np.random.default_rng(0).integers(0, 256, (16, 8, 8), dtype=np.uint8)
        np.savez(self.data, train_images=images, train_labels=np.arange(16) % 3)

    def train(self, out: Path, *arguments: str) -> Process:
        """Begin a run, or go on with the one that is there."""
        begun = ["--resume"] if (out / "config.json").is_file() else TINY
        return self.order(arguments=[*self.options(out), *begun, *arguments])

    def options(self, out: Path) -> list[str]:
        """Of every start."""
        here = ["--device", "cpu", "--track", "none"]
        return ["--data", str(self.data), "--out", str(out), *here]

    def order(self, **order: Any) -> Process:
        if self.last is not None:
            self.last.end()
        self.last = Process(self.server, self.folder / "output.txt", order)
        return self.last


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Starter]:
    environment = {**os.environ, "PYTHONPATH": f"{HERE.parent}{os.pathsep}{HERE}"}
    server = subprocess.Popen(
        [sys.executable, "-m", "fork_server"],
        env={**environment, "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with server:
        yield Starter(server, tmp_path_factory.mktemp("runs"))
        assert server.stdin is not None
        server.stdin.close()


@pytest.fixture(scope="module")
def whole(start: Starter) -> Path:
    """A run that nothing disturbed."""
    process = start.train(start.folder / "whole")
    assert process.wait() == 0, process.said()
    return start.folder / "whole"


def lines_of(run: Path) -> list[dict[str, Any]]:
    """The log's whole lines without what the clock says."""
    path = run / "metrics.jsonl"
    rows = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    timing = {"hours", "seconds_per_step", "images_per_second"}
    found = [json.loads(row) for row in rows if row.endswith("\n")]
    return [{k: v for k, v in line.items() if k not in timing} for line in found]


def assert_same(run: Path, whole: Path) -> None:
    """The same log and, to the bit, the same model."""
    assert lines_of(run) == lines_of(whole)
    for role in ("ebm", "initializer"):
        weights = f"model/{role}/model.safetensors"
        assert (run / weights).read_bytes() == (whole / weights).read_bytes()


def wait_for_lines(run: Path, count: int) -> None:
    """Until the log has so many, or the run its model."""
    deadline = time.monotonic() + 300
    while len(lines_of(run)) < count and not (run / "model").exists():
        assert time.monotonic() < deadline, "the run does not get on"
        time.sleep(0.001)


def test_ten_kills_at_random_moments_lose_nothing_but_the_steps_since_the_last_checkpoint(
    start: Starter, whole: Path, tmp_path: Path
) -> None:
    moments, kills, run = random.Random(7), 0, tmp_path / "run"
    steps_at_a_kill = []
    while kills < 10:
        process = start.train(run)
        target = len(lines_of(run)) + moments.randrange(8)
        wait_for_lines(run, target)
        time.sleep(moments.uniform(0.0, 0.05))
        process.send(signal.SIGKILL)
        code = process.wait()
        if code == 0:  # it was through before the kill
            shutil.rmtree(run)
            continue
        assert code == -signal.SIGKILL, process.said()
        kills += 1
        logged = max((line["step"] for line in lines_of(run)), default=0)
        found = checkpoints.load_newest(run / "checkpoints", tell=pytest.fail)
        assert found is not None or logged == 0
        assert logged - (found.state["step"] if found else 0) <= EVERY
        steps_at_a_kill.append(logged)
    assert len(set(steps_at_a_kill)) > 3, "the kills did not hit different moments"
    last = start.train(run)
    assert last.wait() == 0, last.said()
    assert_same(run, whole)
    assert [path.name for path in run.rglob(".*")] == []


CRASH = """
calls = 0
def counted(call):
    def crash_or_call(*arguments, **options):
        global calls
        calls += 1
        if calls == {moment}:
            os.kill(os.getpid(), 9)
        return call(*arguments, **options)
    return crash_or_call
for name in ("replace", "fsync", "unlink"):
    setattr(os, name, counted(getattr(os, name)))
Path.unlink = counted(Path.unlink)
checkpoints.save(Path({folder!r}), 3, {{"step": 3, "x": torch.arange(1000)}}, keep=2)
"""


def test_a_kill_at_any_call_of_a_save_leaves_whole_checkpoints(
    start: Starter, tmp_path: Path
) -> None:
    """Every moment at which the disk changes, one after the other."""
    seen = set()
    for moment in range(1, 100):
        folder = tmp_path / str(moment)
        for step in (1, 2):
            checkpoints.save(folder, step, {"step": step}, keep=2)
        process = start.order(code=CRASH.format(moment=moment, folder=str(folder)))
        code = process.wait()
        names = [path.name for path in checkpoints.all_of(folder)]
        manifest = json.loads((folder / checkpoints.MANIFEST).read_text())
        assert set(names) <= set(manifest)  # none that cannot be checked
        for path in checkpoints.all_of(folder):
            checkpoints.load(path)
        seen.add(names[-1])
        remove_unfinished(folder)
        assert {path.name for path in folder.iterdir()} == {*names, checkpoints.MANIFEST}
        if code == 0:
            break
        assert code == -signal.SIGKILL, process.said()
    assert code == 0 and moment > 6
    assert seen == {"step-00000002.pt", "step-00000003.pt"}


IN_A_PICTURE = """
import os
from cdrl_train import cli, preview
def killed(picture, path, text):
    path.write_bytes(b"half")
    os.kill(os.getpid(), 9)
preview.save_png = killed
cli.main({arguments!r})
"""


IN_THE_LAST_PICTURE = """
import errno
from cdrl_train import cli, preview
def full(*_):
    raise OSError(errno.ENOSPC, "No space left on device")
preview.save_png = full
cli.main({arguments!r})
"""


def test_a_kill_while_samples_are_written_leaves_nothing_behind(
    start: Starter, whole: Path, tmp_path: Path
) -> None:
    """And they are drawn when the run goes on, though its last step is done."""
    run = tmp_path / "run"
    process = start.order(code=IN_A_PICTURE.format(arguments=[*start.options(run), *TINY]))
    assert process.wait() == -signal.SIGKILL, process.said()
    (half,) = (run / "samples").iterdir()
    assert half.name.startswith(".step-")
    options = [*start.options(run), "--resume"]
    full = start.order(code=IN_THE_LAST_PICTURE.format(arguments=options))
    assert full.wait() == 5
    *_, line = full.said().splitlines()
    assert line.startswith(f"cdrl-train: error: cannot write to {run}: No space left on device; ")
    assert line.endswith(f"--resume goes on from step-{STEPS:08d}.pt")
    again = start.train(run)
    assert again.wait() == 0, again.said()
    assert f"resumed at step {STEPS} of {STEPS}" in again.said()
    assert [path.name for path in (run / "samples").iterdir()] == [f"step-{STEPS:08d}.png"]
    assert (run / "model" / "samples.png").is_file()
    assert_same(run, whole)


DURING_A_PICTURE = """
import signal
from cdrl_infer import sampler
from cdrl_train import cli
def descend(self, *arguments, _descend=sampler.CooperativeSampler._descend):
    print("level", arguments[3])
    os.kill(os.getpid(), signal.{name})
    return _descend(self, *arguments)
sampler.CooperativeSampler._descend = descend
cli.main({arguments!r})
"""


@pytest.mark.parametrize(("step", "name", "code"), [(24, "SIGTERM", 0), (STEPS, "SIGINT", 130)])
def test_a_picture_is_abandoned_when_asked_to_stop_and_the_state_saved(
    start: Starter, whole: Path, tmp_path: Path, step: int, name: str, code: int
) -> None:
    run = tmp_path / "run"
    often = ["--set", "checkpoint_every=1000", "--set", f"sample_every={step}"]
    arguments = [*start.options(run), *TINY, *often]
    process = start.order(code=DURING_A_PICTURE.format(name=name, arguments=arguments))
    assert process.wait() == code, process.said()
    assert process.said().count("level") == 1  # of two
    assert f"stopped by {name} at step {step}; --resume goes on" in process.said()
    newest = checkpoints.newest(run / "checkpoints")
    assert newest is not None and checkpoints.load(newest)["step"] == step
    assert not (run / "model").exists() and not list(run.glob("samples/*"))
    again = start.train(run)
    assert again.wait() == 0, again.said()
    # What is missing at the end is drawn, the one on the way is not.
    last = f"step-{STEPS:08d}.png"
    assert [path.name for path in (run / "samples").iterdir()] == [last]
    assert (run / "samples" / last).read_bytes() == (whole / "samples" / last).read_bytes()
    assert_same(run, whole)


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


def test_sigterm_saves_and_exits_with_0(start: Starter, whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    arguments = [*start.options(run), *TINY, "--set", "checkpoint_every=1000"]
    action = "os.kill(os.getpid(), signal.SIGTERM)"
    process = start.order(code=AT_STEP.format(step=24, action=action, arguments=arguments))
    assert process.wait() == 0, process.said()
    assert "stopped by SIGTERM at step 25; --resume goes on" in process.said()
    newest = checkpoints.newest(run / "checkpoints")
    assert newest is not None and checkpoints.load(newest)["step"] == 25 == len(lines_of(run))
    assert not (run / "model").exists()
    again = start.train(run)
    assert again.wait() == 0, again.said()
    assert f"resumed at step 25 of {STEPS}" in again.said()
    assert_same(run, whole)


def test_ctrl_c_saves_and_exits_with_130(start: Starter, tmp_path: Path) -> None:
    run = tmp_path / "run"
    arguments = [*start.options(run), *TINY, "--set", "checkpoint_every=1000"]
    action = "os.kill(os.getpid(), signal.SIGINT)"
    process = start.order(code=AT_STEP.format(step=2, action=action, arguments=arguments))
    assert process.wait() == 130, process.said()
    assert "stopped by SIGINT at step 3" in process.said()
    newest = checkpoints.newest(run / "checkpoints")
    assert newest is not None and checkpoints.load(newest)["step"] == 3


def test_a_later_signal_does_what_it_always_did(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: heard.append(number))
    now = 100.0
    monkeypatch.setattr("cdrl_train.engine.interrupt.time.monotonic", lambda: now)
    try:
        with stop_request() as stop:
            assert not stop()
            for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):  # a launcher's, too
                os.kill(os.getpid(), number)
                now += 0.4
            assert stop() and stop.signal == signal.SIGTERM and not heard
            now += 0.4
            os.kill(os.getpid(), signal.SIGINT)
            assert heard == [signal.SIGINT]
        with stop_request():
            os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        assert len(heard) == 2
    finally:
        signal.signal(signal.SIGINT, before)


def test_two_runs_do_not_write_into_one_folder_and_a_killed_one_blocks_nobody(
    start: Starter, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    arguments = [*start.options(run), *TINY]
    waiting = AT_STEP.format(step=1, action="time.sleep(1000)", arguments=arguments)
    first = start.order(code=waiting)
    wait_for_lines(run, 1)
    with (
        pytest.raises(InputError, match=rf"in use by process {first.pid} on .* stop it first"),
        locked(run, tell=pytest.fail),
    ):
        pass
    first.send(signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL
    with locked(run, tell=pytest.fail):
        refused = start.train(run)
        assert refused.wait() == 2
        assert f"in use by process {os.getpid()} on " in refused.said()
        assert refused.said().count("\n") == 1


def test_a_file_system_without_locks_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("cdrl_train.engine.lock._lock", unsupported)
    told: list[str] = []
    with locked(tmp_path, told.append):
        pass
    assert len(told) == 1 and "cannot be locked (Function not implemented)" in told[0]


FULL_DISK = """
import resource, signal
from cdrl_train import cli
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
def limited(*arguments, _save=checkpoints.save, **options):
    # From step {step} on the system refuses to write past {room} bytes of any file.
    if arguments[1] >= {step}:
        resource.setrlimit(resource.RLIMIT_FSIZE, ({room}, {room}))
    return _save(*arguments, **options)
checkpoints.save = limited
cli.main({arguments!r})
"""


def test_a_full_disk_is_one_line_and_the_run_goes_on_later(
    start: Starter, whole: Path, tmp_path: Path
) -> None:
    """The system itself refuses the bytes of a file, by a limit on sizes instead of a small disk."""
    run = tmp_path / "run"
    arguments = [*start.options(run), *TINY]
    process = start.order(code=FULL_DISK.format(room=50_000, step=26, arguments=arguments))
    assert process.wait() == 5, process.said()
    *_, line = process.said().splitlines()
    assert line.startswith("cdrl-train: error: cannot save step 26 to ")
    assert "File too large" in line and "--resume goes on from step-00000024.pt" in line
    files = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert files == ["manifest.json", "step-00000022.pt", "step-00000024.pt"]
    again = start.train(run)
    assert again.wait() == 0, again.said()
    assert "resumed at step 24" in again.said()
    assert_same(run, whole)


FULL_LOG = """
import resource, signal
from cdrl_train import cli
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from cdrl_train.engine.trainer import Trainer
def train_step(self, _train_step=Trainer.train_step):
    if self.step == 5:
        room = os.path.getsize({log!r}) + 20
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
    return _train_step(self)
Trainer.train_step = train_step
cli.main({arguments!r})
"""


def test_a_disk_too_full_for_the_log_is_one_line_too(
    start: Starter, whole: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    arguments = [*start.options(run), *TINY]
    log = str(run / "metrics.jsonl")
    process = start.order(code=FULL_LOG.format(log=log, arguments=arguments))
    assert process.wait() == 5, process.said()
    *_, line = process.said().splitlines()
    assert line.startswith(f"cdrl-train: error: cannot write to {run}: File too large; make room")
    assert line.endswith("--resume goes on from step-00000004.pt")
    again = start.train(run)
    assert again.wait() == 0, again.said()
    assert_same(run, whole)


def test_a_corrupted_newest_checkpoint_is_told_and_the_one_before_used(
    start: Starter, whole: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    arguments = [*start.options(run), *TINY]
    action = "os.kill(os.getpid(), signal.SIGKILL)"
    process = start.order(code=AT_STEP.format(step=31, action=action, arguments=arguments))
    assert process.wait() == -signal.SIGKILL, process.said()
    *_, before, newest = checkpoints.all_of(run / "checkpoints")
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    again = start.train(run)
    assert again.wait() == 0, again.said()
    assert (
        f"{newest.name} is set aside as {newest.name}.aside; {before.name} is used" in again.said()
    )
    assert (newest.stem, before.stem) == ("step-00000030", "step-00000028")
    assert "resumed at step 28 " in again.said()
    assert_same(run, whole)
