"""Runs that are killed, stopped or started twice: what they leave and how they continue."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
from fork_client import AT_STEP, EVERY, STEPS, TINY, Starter, assert_same, wait_for_lines
from runs import lines_of

from cdrl_infer.errors import InputError
from cdrl_train.engine import checkpoints
from cdrl_train.engine.interrupt import stop_request
from cdrl_train.engine.lock import locked

pytest_plugins = ["fork_fixtures"]
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked here")


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
    """And they are drawn when the run is resumed, though its last step is done."""
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
    assert line.endswith(f"--resume continues from step-{STEPS:08d}.pt")
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
    assert f"stopped by {name} at step {step}; --resume continues" in process.said()
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


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_signal_saves_and_exits_with_0(
    start: Starter, whole: Path, tmp_path: Path, name: str
) -> None:
    run = tmp_path / "run"
    arguments = [*start.options(run), *TINY, "--set", "checkpoint_every=1000"]
    action = f"os.kill(os.getpid(), signal.{name})"
    process = start.order(code=AT_STEP.format(step=24, action=action, arguments=arguments))
    assert process.wait() == 0, process.said()
    assert f"stopped by {name} at step 25; --resume continues" in process.said()
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


def test_a_hangup_that_is_ignored_stays_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as under nohup
    try:
        with stop_request() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop()
    finally:
        signal.signal(signal.SIGHUP, before)


WHILE_READING = """
import signal
from cdrl_train import cli, run
def reading(*_, **__):
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(100)
run.load_for = reading
cli.main({arguments!r})
"""


def test_a_run_that_does_not_train_yet_ends_at_once(start: Starter, tmp_path: Path) -> None:
    arguments = [*start.options(tmp_path / "run"), *TINY]
    process = start.order(code="import time" + WHILE_READING.format(arguments=arguments))
    assert process.wait() == -signal.SIGTERM
    assert not (tmp_path / "run").exists()


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
