"""Training states on disk: whole or not there, checked when read, and the newest few."""

from __future__ import annotations

import builtins
import errno
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from cdrl_infer.errors import CheckpointError
from cdrl_infer.files import remove_unfinished
from cdrl_train.engine import checkpoints

STATE = {"step": 3, "x": torch.arange(5_000, dtype=torch.float32)}


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


class SmallDisk:
    """``open``, for files that take some bytes and no more."""

    def __init__(self, room: int) -> None:
        self.room = room

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        file = builtins.open(*arguments, **options)  # noqa: SIM115  # the caller closes it
        write = file.write

        def limited(data: bytes) -> int:
            self.room -= len(data)
            if self.room < 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            return write(data)

        return _Wrapped(file, limited)


class _Wrapped:
    def __init__(self, file: Any, write: Any) -> None:
        self.file = file
        self.write = write

    def __enter__(self) -> _Wrapped:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


def test_a_state_comes_back_and_the_manifest_tells_its_checksum(tmp_path: Path) -> None:
    path = checkpoints.save(tmp_path, 3, STATE, keep=2)
    assert path == checkpoints.path_of(tmp_path, 3) == checkpoints.newest(tmp_path)
    loaded = checkpoints.load(path)
    assert loaded["step"] == 3 and torch.equal(loaded["x"], STATE["x"])
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    content = path.read_bytes()
    expected = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    assert manifest == {path.name: expected}


def test_a_state_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The order of what happens to each file, and to the folder that holds the names."""
    done: list[tuple[str, int]] = []
    sync, replace = os.fsync, os.replace

    def synced(descriptor: int) -> None:
        done.append(("sync", os.fstat(descriptor).st_ino))
        sync(descriptor)

    def replaced(source: Path, target: Path) -> None:
        done.append(("name", os.stat(source).st_ino))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    path = checkpoints.save(tmp_path, 3, STATE, keep=2)
    state, manifest, folder = (
        file.stat().st_ino for file in (path, tmp_path / checkpoints.MANIFEST, tmp_path)
    )
    assert done == [
        *(("sync", manifest), ("name", manifest), ("sync", folder)),
        *(("sync", state), ("name", state), ("sync", folder)),
    ]


def test_only_the_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 10, 11):
        checkpoints.save(tmp_path, step, {"step": step}, keep=2)
    kept = ["step-00000010.pt", "step-00000011.pt"]
    assert names_in(tmp_path) == ["manifest.json", *kept]
    checkpoints.save(tmp_path, 12, {"step": 12}, keep=2)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert set(manifest) >= {"step-00000011.pt", "step-00000012.pt"}
    assert "step-00000001.pt" not in manifest


@pytest.mark.parametrize("room", [0, 100, 5_000, 20_000])
def test_a_full_disk_leaves_the_older_checkpoint_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    checkpoints.save(tmp_path, 1, {"step": 1}, keep=1)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "open", SmallDisk(room), raising=False)
        with pytest.raises(CheckpointError) as caught:
            checkpoints.save(tmp_path, 2, STATE, keep=1)
    assert "cannot save step 2 to" in str(caught.value) and "\n" not in str(caught.value)
    assert "No space left on device" in str(caught.value)
    assert "--resume continues from step-00000001.pt" in str(caught.value)
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == errno.ENOSPC
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_disk_too_full_for_the_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints.save(tmp_path, 1, {"step": 1}, keep=1)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        with pytest.raises(CheckpointError, match="No space left"):
            checkpoints.save(tmp_path, 2, STATE, keep=1)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_the_first_save_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "open", SmallDisk(10), raising=False)
    with pytest.raises(CheckpointError, match="--resume continues from the start"):
        checkpoints.save(tmp_path / "checkpoints", 0, STATE, keep=1)


def test_a_truncated_checkpoint_is_named(tmp_path: Path) -> None:
    path = checkpoints.save(tmp_path, 3, STATE, keep=2)
    content = path.read_bytes()
    for change in (content[:500], b"", content + b"more"):
        path.write_bytes(change)
        with pytest.raises(CheckpointError, match=r"step-00000003\.pt is damaged: .* checksum"):
            checkpoints.load(path)
    (tmp_path / "manifest.json").unlink()
    path.write_bytes(content[:500])
    with pytest.raises(CheckpointError, match=r"step-00000003\.pt cannot be read \("):
        checkpoints.load(path)


def test_one_flipped_bit_is_noticed_where_torch_does_not(tmp_path: Path) -> None:
    path = checkpoints.save(tmp_path, 3, STATE, keep=2)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="does not match the checksum"):
        checkpoints.load(path)
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match=r"archive/.* does not match its checksum"):
        checkpoints.load(path)


def test_a_damaged_newest_checkpoint_is_told_and_the_one_before_used(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        checkpoints.save(tmp_path, step, {"step": step}, keep=3)
    for step in (2, 3):
        path = checkpoints.path_of(tmp_path, step)
        path.write_bytes(path.read_bytes()[:-1])
    told: list[str] = []
    found = checkpoints.load_newest(tmp_path, told.append)
    assert found is not None and found.state == {"step": 1}
    assert found.path == checkpoints.path_of(tmp_path, 1)
    text = "\n".join(told)
    for step in (2, 3):
        assert f"step-{step:08d}.pt is damaged" in text
        assert f"set aside as step-{step:08d}.pt.aside; step-00000001.pt is used" in text
    # A damaged one is not among those to keep, so that a good one is never deleted for it.
    checkpoints.save(tmp_path, 2, {"step": 2}, keep=1)
    assert checkpoints.load_newest(tmp_path, pytest.fail) == (
        checkpoints.path_of(tmp_path, 2),
        {"step": 2},
    )


def test_when_all_are_damaged_it_is_an_error_every_time(tmp_path: Path) -> None:
    for step in (1, 2):
        checkpoints.save(tmp_path, step, {"step": step}, keep=3).write_bytes(b"PK")
    for _ in range(2):
        told: list[str] = []
        with pytest.raises(CheckpointError, match=r"no undamaged checkpoint \(2 damaged\)"):
            checkpoints.load_newest(tmp_path, told.append)
        assert len(told) == 2


def test_what_the_system_does_not_give_is_an_error_and_not_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (1, 2, 3):
        checkpoints.save(tmp_path, step, {"step": step}, keep=3)
    checkpoints.path_of(tmp_path, 3).write_bytes(b"PK")  # this one is damaged
    before = names_in(tmp_path)

    def forbidden(path: Path, *arguments: Any) -> Any:
        if path.name == "step-00000002.pt":
            raise PermissionError(errno.EACCES, "Permission denied")
        return builtins.open(path, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "open", forbidden, raising=False)
        with pytest.raises(
            CheckpointError, match=r"2\.pt cannot be read \(Permission denied\); mend"
        ):
            checkpoints.load_newest(tmp_path, lambda text: None)
    assert names_in(tmp_path) == before
    found = checkpoints.load_newest(tmp_path, lambda text: None)
    assert found is not None and found.state == {"step": 2}


@pytest.mark.parametrize(
    ("error", "listed"),
    [
        (MemoryError(), True),
        (MemoryError(), False),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), True),
    ],
)
def test_too_little_memory_is_an_error_and_not_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, listed: bool
) -> None:
    def load(*_: Any, **__: Any) -> None:
        raise error

    for step in (1, 2):
        checkpoints.save(tmp_path, step, {"step": step}, keep=2)
    if not listed:
        (tmp_path / "manifest.json").unlink()
    before = names_in(tmp_path)
    monkeypatch.setattr(torch, "load", load)
    with pytest.raises(CheckpointError, match=r"2\.pt cannot be read \(.*[Mm]emory"):
        checkpoints.load_newest(tmp_path, lambda text: None)
    assert names_in(tmp_path) == before


def test_an_empty_folder_has_no_newest(tmp_path: Path) -> None:
    assert checkpoints.load_newest(tmp_path, pytest.fail) is None
    assert checkpoints.load_newest(tmp_path / "nothing", pytest.fail) is None
    os.mkfifo(tmp_path / "step-00000001.pt")  # reading it would wait for ever
    assert checkpoints.load_newest(tmp_path, pytest.fail) is None


@pytest.mark.parametrize("manifest", [None, "{", "[]", "{}"])
def test_without_a_manifest_states_are_read_and_that_they_are_unchecked_is_told(
    tmp_path: Path, manifest: str | None
) -> None:
    checkpoints.save(tmp_path, 1, {"step": 1}, keep=1)
    (tmp_path / "manifest.json").unlink()
    if manifest is not None:
        (tmp_path / "manifest.json").write_text(manifest)
    told: list[str] = []
    found = checkpoints.load_newest(tmp_path, told.append)
    assert found is not None and found.state == {"step": 1}
    assert len(told) == 1 and "without a checksum" in told[0]
    checkpoints.save(tmp_path, 2, {"step": 2}, keep=1)
    assert checkpoints.load_newest(tmp_path, pytest.fail) is not None


def test_nothing_in_a_state_is_executed(tmp_path: Path) -> None:
    class Foreign:
        pass

    path = tmp_path / "step-00000001.pt"
    torch.save({"step": 1, "x": [1, 2]}, path)
    assert checkpoints.load(path) == {"step": 1, "x": [1, 2]}
    torch.save({"x": 1}, path)
    with pytest.raises(CheckpointError, match="is not a training state"):
        checkpoints.load(path)
    path.write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(CheckpointError, match="cannot be read"):
        checkpoints.load(path)


def test_what_a_killed_run_left_is_swept(tmp_path: Path) -> None:
    path = checkpoints.save(tmp_path, 1, {"step": 1}, keep=1)
    for name in (".step-00000002.pt.0a1b2c3d.tmp.pt", ".manifest.json.0a1b2c3d.tmp.json"):
        (tmp_path / name).write_bytes(b"half")
    (tmp_path / ".model.0a1b2c3d.tmp" / "ebm").mkdir(parents=True)
    for name in (".notes.tmp", "notes.0a1b2c3d.tmp"):
        (tmp_path / name).write_bytes(b"mine")
    remove_unfinished(tmp_path)
    assert names_in(tmp_path) == [".notes.tmp", "manifest.json", "notes.0a1b2c3d.tmp", path.name]
    remove_unfinished(tmp_path / "nothing")
