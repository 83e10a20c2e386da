"""Features of images, kept on disk under the digests of the images and of what computes the features."""

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
from cdrl_train.evaluation.together import ALONE, Arrays, Processes

PART = 500  # images whose features make one file


class Extracts(Protocol):
    """Images (N, C, H, W) uint8 -> an array (N, ...), such as an `Extractor`."""

    @property
    def name(self) -> str:
        """In the names of the cached files."""
        ...

    @property
    def digest(self) -> str:
        """Of everything but the images that the numbers depend on."""
        ...

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[Any]:
        """(N, ...)."""
        ...


def default_cache() -> Path:
    """``~/.cache/cdrl``, or ``cdrl`` in the folder that ``XDG_CACHE_HOME`` names."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cdrl"


def images_digest(images: NDArray[np.uint8]) -> str:
    """32 hexadecimal digits that tell these images (N, C, H, W) from others."""
    sha = hashlib.sha256(repr(images.shape).encode())
    sha.update(np.ascontiguousarray(images).data)
    return sha.hexdigest()[:32]


@dataclass(frozen=True)
class FeatureCache:
    """Features on disk, one file for each set of images.

    Args:
        folder: made if it does not exist.

    Raises:
        InputError: the folder cannot be made.
    """

    folder: Path

    def __post_init__(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(self._refusal(error)) from error

    def __call__(self, extractor: Extracts, images: NDArray[np.uint8]) -> NDArray[Any]:
        """(N, ...), read from the disk if they are there; a damaged file is made again.

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
        """(N, ...) of many images: a file for each `PART` images, shared out over processes.

        Args:
            extractor: computes them.
            images: (N, C, H, W).
            title: of the bar on stderr; None for no bar.
            processes: share the work.
        """

        def extract(start: int, stop: int) -> Arrays:
            return {"rows": self(extractor, images[start:stop])}

        return processes.each_batch(len(images), PART, extract, title)["rows"]

    def _refusal(self, error: OSError) -> str:
        return f"cannot write to the cache {self.folder} ({error.strerror}); choose another with --cache"


def _read(file: Path, count: int) -> NDArray[Any] | None:
    """The rows of a file whose checksum is right; None if there are none."""
    try:
        with file.open("rb") as stream:
            rows: NDArray[Any] = np.load(stream, allow_pickle=False)["rows"]
    except (OSError, ValueError, LookupError, EOFError, zipfile.BadZipFile, zlib.error):
        return None
    return rows if len(rows) == count else None
