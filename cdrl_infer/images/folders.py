"""The pictures in a folder. Training, evaluating and scoring use this one reader."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cdrl_infer.errors import InputError, listing, printable
from cdrl_infer.images.files import SUFFIXES

SYSTEM = {  # folders that systems and tools add; so are all whose names begin with a dot
    *("__macosx", "@eadir", "@recycle", "#recycle", "#snapshot", "$recycle.bin"),
    *("lost+found", "system volume information", "__pycache__"),
}


@dataclass
class Folder:
    """The pictures in a folder and its sub-folders.

    Args:
        root: the folder.
        files: the pictures, sorted.
        ignored: how many other things there are of each kind.
    """

    root: Path
    files: list[Path] = field(default_factory=list)
    ignored: Counter[str] = field(default_factory=Counter)

    def class_names(self, depth: int = 0) -> list[str | None]:
        """For each picture the folder in the root that it lies in; None for those in the root itself.

        Args:
            depth: leave this many folders out, for instance 1 below ``train/`` and ``test/``.
        """
        parents = [file.relative_to(self.root).parts[depth:-1] for file in self.files]
        return [parent[0] if parent else None for parent in parents]

    def told(self) -> str:
        """One line: ``FOLDER: N images; coat 3, shoe 3; ignored: 2 hidden``."""
        classes = Counter(name for name in self.class_names() if name is not None)
        return summary(self.root, len(self.files), dict(sorted(classes.items())), self.ignored)


def summary(
    source: Path, total: int, classes: Mapping[str, int], ignored: Mapping[str, int]
) -> str:
    """One line: how many images there are, in all and of each class, and what was ignored."""
    parts = [f"{source}: {total:,} images" if total else f"{source}: no images"]
    if classes:
        parts.append(listing(f"{name} {count:,}" for name, count in classes.items()))
    if ignored:
        parts.append(f"ignored: {listing(f'{n:,} {kind}' for kind, n in sorted(ignored.items()))}")
    return printable("; ".join(parts))


def find_images(root: Path) -> Folder:
    """Find the pictures below a folder, by their suffix; links are followed.

    Hidden files, folders of systems and tools, and all that is not a regular file are ignored.

    Raises:
        InputError: the folder, or one in it, cannot be read.
    """
    found = Folder(root)
    _walk(root, found, set())
    found.files.sort()
    return found


def image_files(root: Path) -> list[Path]:
    """The files of `find_images`."""
    return find_images(root).files


def _walk(folder: Path, found: Folder, seen: set[str]) -> None:
    """Add what lies in a folder; ``seen`` are the real paths of those that were walked."""
    seen.add(os.path.realpath(folder))
    before = len(found.files)
    try:
        with os.scandir(folder) as listed:
            entries = sorted(listed, key=lambda entry: (entry.is_symlink(), entry.name))
    except OSError as error:
        raise InputError(f"{folder}: the folder cannot be read ({error.strerror})") from None
    for entry in entries:
        path = folder / entry.name
        if entry.name.startswith(".") or entry.name.casefold() in SYSTEM:
            found.ignored["hidden or of the system"] += 1
        elif path.is_dir():
            if os.path.realpath(path) in seen:
                found.ignored["link to a folder that is read already"] += 1
            else:
                _walk(path, found, seen)
        elif path.suffix.lower() not in SUFFIXES:
            found.ignored[path.suffix or "file without a suffix"] += 1
        elif path.is_file():
            found.files.append(path)
        else:
            broken = entry.is_symlink() and not path.exists()
            found.ignored["broken link" if broken else "not a regular file"] += 1
    if len(found.files) == before and folder != found.root:
        found.ignored[f"folder without images ({folder.relative_to(found.root)})"] += 1
