"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

UNFINISHED = re.compile(r"\..+\.[0-9a-f]{8}\.tmp(\..*)?")  # as `_sibling` names them


@contextmanager
def replaced_file(target: Path) -> Iterator[Path]:
    """A temporary file beside ``target``; it replaces ``target`` if the block succeeds.

    If the block fails, it is deleted.

    Raises:
        OSError: the folder of ``target`` is not writable; raised before the block runs.
    """
    temporary = _sibling(target)
    temporary.touch(exist_ok=False)
    try:
        yield temporary
        _sync(temporary)
        os.replace(temporary, target)
        _sync(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replaced_folder(target: Path) -> Iterator[Path]:
    """The same for a folder; the old ``target`` is deleted after the new one is in its place.

    Raises:
        OSError: the parent of ``target`` is not writable; raised before the block runs.
    """
    temporary = _sibling(target)
    temporary.mkdir()
    try:
        yield temporary
        for path in [*temporary.rglob("*"), temporary]:
            _sync(path)
        if target.exists():
            old = _sibling(target)
            os.rename(target, old)
            try:
                os.rename(temporary, target)
            except OSError:
                os.rename(old, target)
                raise
            shutil.rmtree(old)
        else:
            os.rename(temporary, target)
        _sync(target.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def added_files(folder: Path) -> Iterator[Path]:
    """A temporary folder; its files move into ``folder`` if the block succeeds, else they are deleted.

    ``folder`` is made if it does not exist. Files of the same name are replaced, others stay.

    Raises:
        OSError: ``folder`` (or its parent) is not writable; raised before the block runs.
    """
    if not folder.is_dir():
        with replaced_folder(folder) as temporary:
            yield temporary
        return
    temporary = _sibling(folder / "new")
    temporary.mkdir()
    try:
        yield temporary
        for path in temporary.iterdir():
            _sync(path)
            os.replace(path, folder / path.name)
        _sync(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_unfinished(folder: Path) -> None:
    """Delete the temporary files of killed processes; no process may be writing here."""
    for path in folder.glob(".*.tmp*"):
        if UNFINISHED.fullmatch(path.name):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def _sibling(target: Path) -> Path:
    return target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp{target.suffix}")


def _sync(path: Path) -> None:
    """Flush a file to the disk, or a folder on systems that can open folders."""
    if path.is_dir() and not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
