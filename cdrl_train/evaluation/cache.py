"""A cache on disk for features. Its keys are digests of the images and of the feature extractor."""

from __future__ import annotations

import hashlib
import os
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from cdrl_infer.errors import InputError
from cdrl_infer.files import replaced_file
from cdrl_infer.processes import ALONE, Arrays, Processes

PART = 500  # number of images per file


class Extracts(Protocol):
    """Images (N, C, H, W) uint8 -> an array (N, ...), such as an `Extractor`."""

    @property
    def name(self) -> str:
        """The extractor's name in cached files."""
        ...

    @property
    def digest(self) -> str:
        """A digest of everything that the features depend on, except the images."""
        ...

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[Any]:
        """(N, C, H, W) -> (N, ...)."""
        ...


def default_cache() -> Path:
    """``~/.cache/cdrl``, or ``cdrl`` in the folder that ``XDG_CACHE_HOME`` names."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cdrl"


def images_digest(images: NDArray[np.uint8]) -> str:
    """32 hexadecimal digits that identify the images (N, C, H, W)."""
    sha = hashlib.sha256(repr(images.shape).encode())
    sha.update(np.ascontiguousarray(images).data)
    return sha.hexdigest()[:32]


@dataclass(frozen=True)
class FeatureCache:
    """Features on disk, one file for each set of images.

    Args:
        folder: the folder of the files; it is created if it does not exist.

    Raises:
        InputError: the folder cannot be created.
    """

    folder: Path

    def __post_init__(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(self._refusal(error)) from error

    def __call__(self, extractor: Extracts, images: NDArray[np.uint8]) -> NDArray[Any]:
        """Read the features (N, ...) from the cache, or compute them if the file is missing or damaged.

        Raises:
            InputError: the file cannot be written.
        """
        name = f"features-{extractor.name}-{extractor.digest}-{images_digest(images)}.npz"
        file = self.folder / name
        known = _read(file, len(images))
        if known is not None:
            return known
        rows = extractor(images)
        try:
            with replaced_file(file) as new, new.open("wb") as stream:
                np.savez(stream, rows=rows)
        except OSError as error:
            raise InputError(self._refusal(error)) from error
        return rows

    def rows(
        self,
        extractor: Extracts,
        images: NDArray[np.uint8],
        title: str | None = None,
        processes: Processes = ALONE,
    ) -> NDArray[Any]:
        """Read or compute the features (N, ...) of many images, with one file per `PART` images.

        Args:
            extractor: computes the features.
            images: (N, C, H, W).
            title: the title of the bar on stderr; None for no bar.
            processes: the processes that share the work.
        """

        def extract(start: int, stop: int) -> Arrays:
            return {"rows": self(extractor, images[start:stop])}

        return processes.each_batch(len(images), PART, extract, title)["rows"]

    def _refusal(self, error: OSError) -> str:
        return f"cannot write to the cache {self.folder} ({error.strerror}); choose another --cache"


def _read(file: Path, count: int) -> NDArray[Any] | None:
    """The rows of a file; None if the file is missing or damaged."""
    try:
        with file.open("rb") as stream:
            rows: NDArray[Any] = np.load(stream, allow_pickle=False)["rows"]
    except (OSError, ValueError, LookupError, EOFError, zipfile.BadZipFile, zlib.error):
        return None
    return rows if len(rows) == count else None
