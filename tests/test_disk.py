"""Runs on a full or faulty disk, and kills while a checkpoint is written."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
from fork_client import AT_STEP, TINY, Starter, assert_same

from cdrl_infer.files import remove_unfinished
from cdrl_train.engine import checkpoints

pytest_plugins = ["fork_fixtures"]
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked here")


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
    assert "File too large" in line and "--resume continues from step-00000024.pt" in line
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
    assert line.endswith("--resume continues from step-00000004.pt")
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
