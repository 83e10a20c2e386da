"""Features of real images, kept on the disk under the digest of the images and of the extractor."""

from __future__ import annotations

import hashlib
import os
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cdrl_infer.errors import InputError
from cdrl_infer.files import replaced_file
from cdrl_train.evaluation.extractors import Extractor


def default_cache() -> Path:
    """``~/.cache/cdrl``, or where ``XDG_CACHE_HOME`` says."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cdrl"


def images_digest(images: NDArray[np.uint8]) -> str:
    """32 hexadecimal digits that tell these images (N, C, H, W) from others."""
    sha = hashlib.sha256(repr(images.shape).encode())
    sha.update(np.ascontiguousarray(images).data)
    return sha.hexdigest()[:32]


@dataclass(frozen=True)
class FeatureCache:
    """Rows of an extractor, one file for each set of images.

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

    def __call__(self, extractor: Extractor, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(N, D + L), read where they are known; a file that is damaged is made again.

        Raises:
            InputError: they cannot be written.
        """
        name = f"features-{extractor.name}-{extractor.digest}-{images_digest(images)}.npz"
        file = self.folder / name
        known = _read(file, (len(images), extractor.feature_dim + extractor.logits))
        if known is not None:
            return known
        rows = extractor(images)
        try:
            with replaced_file(file) as new, new.open("wb") as stream:
                np.savez(stream, rows=rows)
        except OSError as error:
            raise InputError(self._refusal(error)) from error
        return rows

    def _refusal(self, error: OSError) -> str:
        return f"cannot write to the cache {self.folder} ({error.strerror}); choose another with --cache"


def _read(file: Path, shape: tuple[int, int]) -> NDArray[np.float32] | None:
    """The rows of a file whose checksum is right; None where there are none."""
    try:
        with file.open("rb") as stream:
            rows: NDArray[np.float32] = np.load(stream, allow_pickle=False)["rows"]
    except (OSError, ValueError, LookupError, EOFError, zipfile.BadZipFile, zlib.error):
        return None
    return rows if rows.shape == shape and rows.dtype == np.float32 else None
