"""Files and folders that appear whole or not at all, also if the process is killed."""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

if sys.platform != "win32":
    import fcntl

COMPLETE = re.compile(r"\.[0-9a-f]{8}\.complete")  # as `added_files` names them
REMOVED = ".removed"  # in such a folder, after the name of a file to delete


@contextmanager
def replaced_file(target: Path, *, follow: bool = False) -> Iterator[Path]:
    """A temporary file beside ``target``; it replaces ``target`` if the block succeeds.

    If the block fails, it is deleted.

    Args:
        target: the file to replace.
        follow: if ``target`` is a link, replace the file that it leads to instead of the link.

    Raises:
        OSError: the folder of ``target`` is not writable; raised before the block runs.
    """
    real = Path(os.path.realpath(target)) if follow else target
    with _temporary(real.with_name(target.name), folder=False) as temporary:
        yield temporary
        _sync(temporary)
        os.replace(temporary, real)
        _sync(real.parent)


@contextmanager
def added_files(folder: Path, removed: Iterable[str] = ()) -> Iterator[Path]:
    """A temporary folder; its files move into ``folder`` if the block succeeds, else they are deleted.

    All files move, or none. If the process is killed while they move, `finish_moving` moves the rest.
    ``folder`` itself stays in its place, since it may be a mount, somebody's current folder or in a
    parent that is not writable. It is made if it does not exist.

    Args:
        folder: where to. Files of the same name are replaced, all others stay.
        removed: names of files in ``folder`` that are deleted when the others move.

    Raises:
        OSError: ``folder`` (or its parent) is not writable; raised before the block runs.
    """
    folder = folder.resolve()
    exists = folder.is_dir()
    with _temporary(folder / "new" if exists else folder, folder=True) as temporary:
        yield temporary
        for name in removed:
            (temporary / name).parent.mkdir(exist_ok=True)
            (temporary / f"{name}{REMOVED}").touch()
        for path in [*temporary.rglob("*"), temporary]:
            _sync(path)
        if exists:
            with _locked(folder):
                _move_complete(folder)
                os.rename(temporary, folder / f".{secrets.token_hex(4)}.complete")
                _sync(folder)
                _move_complete(folder)
        else:
            os.rename(temporary, folder)
            _sync(folder.parent)


def finish_moving(folder: Path) -> None:
    """Finish what a killed `added_files` left in ``folder``, and delete its temporary files.

    Raises:
        OSError: files are left that cannot be moved.
    """
    if any(COMPLETE.fullmatch(name) for name in os.listdir(folder)):
        with _locked(folder):  # waits for a process that is moving files now
            _move_complete(folder)
    remove_unfinished(folder)


def remove_unfinished(folder: Path, name: str | None = None) -> None:
    """Delete the temporary files of killed processes in a folder: all, or those for one name."""
    target = ".+" if name is None else re.escape(name)
    pattern = re.compile(rf"\.{target}\.[0-9a-f]{{8}}\.tmp(\..*)?", re.DOTALL)
    with suppress(OSError):
        for path in [folder / name for name in os.listdir(folder) if pattern.fullmatch(name)]:
            with suppress(OSError), _locked(path, wait=False):
                _delete(path)


@contextmanager
def _temporary(target: Path, *, folder: bool) -> Iterator[Path]:
    """A new file or folder beside ``target``, deleted at the end. Leftovers are deleted first."""
    remove_unfinished(target.parent, target.name)
    with ExitStack() as stack:
        for _ in range(9):  # again if another process took it for a leftover before it was locked
            path = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp{target.suffix}")
            if folder:
                path.mkdir()
            else:
                path.touch(exist_ok=False)
            with suppress(FileNotFoundError):
                stack.enter_context(_locked(path))
            if path.exists():
                break
        try:
            yield path
        finally:
            _delete(path)


def _move_complete(folder: Path) -> None:
    """Move the files of complete folders in ``folder`` to their places."""
    for complete in [folder / name for name in os.listdir(folder) if COMPLETE.fullmatch(name)]:
        if complete.is_symlink():
            continue
        for path in sorted(complete.rglob("*")):
            if path.is_dir() and not path.is_symlink():
                continue
            target = folder / path.relative_to(complete)
            if not target.parent.resolve().is_relative_to(folder.resolve()):
                raise OSError(errno.ELOOP, "a link leads out of the folder", str(target.parent))
            if target.suffix == REMOVED:
                target.with_suffix("").unlink(missing_ok=True)
                path.unlink()
                with suppress(OSError):
                    target.parent.rmdir()  # if it is empty now
            else:
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(path, target)
                _sync(target.parent)
        shutil.rmtree(complete, ignore_errors=True)
        _sync(folder)


@contextmanager
def _locked(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold the system's lock of a file or folder; it ends with the process.

    Windows has no such locks; leftovers of killed processes stay there.

    Raises:
        OSError: ``wait`` is false, and the lock is held elsewhere or cannot be had.
    """
    if sys.platform == "win32":
        if not wait:
            raise OSError(errno.ENOTSUP, "no locks on this system")
        yield
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError:  # held elsewhere; or a file system without locks
            if not wait:
                raise
        yield
    finally:
        os.close(descriptor)


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Flush a file to the disk, or a folder on systems that can open folders."""
    if path.is_dir() and not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
