"""Training states on disk: written beside, synced, renamed; the newest few are kept.

``manifest.json`` beside them holds the size and SHA-256 of each file. It is written before a file gets
its final name. So whenever a run is killed, every state in the folder is whole and can be checked.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch

from cdrl_infer.errors import CDRLError, CheckpointError, shown
from cdrl_infer.files import replaced_file
from cdrl_infer.untrusted import load_pickle, read_json

PATTERN = "step-*.pt"
MANIFEST = "manifest.json"
ASIDE = ".aside"  # added to the name of a damaged file
BLOCK = 2**20  # bytes


def save(folder: Path, step: int, state: dict[str, Any], keep: int) -> Path:
    """Write ``folder/step-XXXXXXXX.pt`` atomically and delete all but the newest ``keep``.

    Raises:
        CheckpointError: the disk is full or refuses the file. What was there before is unharmed.
    """
    target = path_of(folder, step)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with replaced_file(target) as beside:
            with open(beside, "wb") as file:
                writer = _Writer(file)
                writer.save(state)
            _list(folder, target.name, writer)
        for old in all_of(folder)[:-keep]:
            old.unlink()
    except OSError as error:
        raise _cannot(f"save step {step} to {folder}", folder, error) from error
    return target


@contextmanager
def writing_to(run: Path) -> Iterator[None]:
    """Inside the block, an error of the system means that the run's folder cannot be written to.

    Raises:
        CheckpointError: in place of the system's error; it says where the run can continue.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None or isinstance(error, ConnectionError):  # our own, or a tracker's
            raise
        raise _cannot(f"write to {run}", run / "checkpoints", error) from error


def _cannot(what: str, folder: Path, error: OSError) -> CheckpointError:
    """The error for a disk that refuses a file; ``what`` is what the run tried to do."""
    kept = newest(folder)
    return CheckpointError(
        f"cannot {what}: {error.strerror or error}; make room or lower keep_checkpoints, then "
        f"--resume continues from {kept.name if kept else 'the start'}"
    )


def path_of(folder: Path, step: int) -> Path:
    """Where the state of that step is kept."""
    return folder / f"step-{step:08d}.pt"


def all_of(folder: Path) -> list[Path]:
    """The checkpoints in the folder, the newest last."""
    return sorted(path for path in folder.glob(PATTERN) if path.is_file())


def newest(folder: Path) -> Path | None:
    """The newest checkpoint in the folder, if any."""
    files = all_of(folder)
    return files[-1] if files else None


class Damaged(CheckpointError):
    """A checkpoint with damaged or foreign content. Reading it again will not help."""


class Loaded(NamedTuple):
    """A training state and where it was found."""

    path: Path
    state: dict[str, Any]


def load_newest(folder: Path, tell: Callable[[str], object]) -> Loaded | None:
    """Read the newest checkpoint that is whole; None if there is none at all.

    Args:
        folder: folder of the checkpoints; nobody else may write to it, see `cdrl_train.engine.lock`.
        tell: called with a message for each damaged file, which is then set aside.

    Raises:
        CheckpointError: all checkpoints are damaged; or the system cannot read one, and then none is
            set aside.
    """
    files = all_of(folder)
    damaged: list[Path] = []
    if files and not _listed(folder):
        tell(f"{folder} has no readable {MANIFEST}, so its checkpoints are read without a checksum")
    for path in reversed(files):
        try:
            state = load(path)
        except Damaged as error:
            tell(str(error))
            damaged.append(path)
            continue
        for bad in damaged:
            set_aside(bad)
            tell(f"{bad.name} is set aside as {bad.name}{ASIDE}; {path.name} is used")
        return Loaded(path, state)
    if files:
        raise CheckpointError(
            f"{folder} holds no undamaged checkpoint ({len(files)} damaged); put a copy there or start "
            "again with another --out"
        )
    return None


def set_aside(path: Path) -> None:
    """Rename a checkpoint so that it is no longer read or counted."""
    os.replace(path, path.with_name(path.name + ASIDE))


def load(path: Path) -> dict[str, Any]:
    """Read a training state; nothing in the file is executed.

    A file that the manifest does not list (a copy made by hand) is read unchecked.

    Raises:
        Damaged: the file is damaged or holds something else.
        CheckpointError: the system cannot read it, or has too little memory.
    """
    entry = _listed(path.parent).get(path.name)
    try:
        found = _entry_of(path)
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be read ({error.strerror or error}); mend that, or move the file away to "
            "continue from the one before"
        ) from error
    if entry not in (None, found):
        raise Damaged(f"{path} is damaged: its content does not match the checksum in {MANIFEST}")
    try:
        state = load_pickle(path)
    except Exception as error:  # a foreign pickle can raise anything
        reason = shown(error, 120) or type(error).__name__
        # With the right checksum the file is not at fault. A lack of memory has many names in torch.
        whole = entry is not None or isinstance(error, MemoryError)
        kind = CheckpointError if whole else Damaged
        raise kind(f"{path} cannot be read ({reason})") from error
    if not isinstance(state, dict) or "step" not in state:
        raise Damaged(f"{path} is not a training state of this package")
    return state


class _Writer:
    """A file that counts and hashes what is written to it."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.sha = hashlib.sha256()
        self.size = 0
        self.failure: OSError | None = None

    def save(self, state: dict[str, Any]) -> None:
        """``torch.save``, but a failed write raises the system's own error and not torch's."""
        try:
            torch.save(state, self)  # type: ignore[arg-type]  # it calls write and flush
        except RuntimeError:
            if self.failure is None:
                raise
            raise self.failure from None

    def write(self, data: bytes) -> int:
        try:
            self.file.write(data)
        except OSError as error:
            self.failure = error
            raise
        self.sha.update(data)
        self.size += len(data)
        return len(data)

    def flush(self) -> None:
        self.file.flush()

    def entry(self) -> dict[str, Any]:
        return {"bytes": self.size, "sha256": self.sha.hexdigest()}


def _entry_of(path: Path) -> dict[str, Any]:
    """The manifest entry for the file as it is now."""
    sha, size = hashlib.sha256(), 0
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            sha.update(block)
            size += len(block)
    return {"bytes": size, "sha256": sha.hexdigest()}


def _listed(folder: Path) -> dict[str, Any]:
    """The manifest by file name; empty if it cannot be read.

    A manifest is replaced whole, so an unreadable one was damaged later. That must not lose states.
    """
    try:
        return read_json(folder, MANIFEST)
    except CDRLError:
        return {}


def _list(folder: Path, name: str, writer: _Writer) -> None:
    """Add a file to the manifest, and drop entries whose files are gone."""
    entries = {k: v for k, v in _listed(folder).items() if (folder / k).is_file()}
    entries[name] = writer.entry()
    with replaced_file(folder / MANIFEST) as new:
        new.write_text(json.dumps(entries, indent=2) + "\n", encoding="utf-8")
