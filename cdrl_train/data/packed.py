"""Pictures in a ``.npz`` file as the bytes of JPEGs, a tenth of the size of their pixels."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cdrl_infer.errors import InputError
from cdrl_infer.images import MODES

HEADER = "jpeg_header"  # the bytes that all pictures begin with
PARTS = ("scans", "offsets")  # of each split
END = b"\xff\xd9"  # JPEG's end-of-image marker
PART = 1024  # images that are decoded at a time


def packed_names(split: str) -> list[str]:
    """The arrays that hold a split's pictures."""
    return [HEADER, *(f"{split}_{part}" for part in PARTS)]


class PackedJPEG:
    """The pictures of one split. Picture i is ``header + scans[offsets[i]:offsets[i + 1]] + END``.

    Args:
        path: the file, for messages.
        split: "train" or "test".
        arrays: ``jpeg_header`` and ``SPLIT_scans`` uint8, ``SPLIT_offsets`` (N + 1,) integers that rise
            from 0 to the number of bytes.

    Raises:
        InputError: an array is missing or has another form, or the first picture cannot be decoded.
    """

    def __init__(self, path: Path, split: str, arrays: dict[str, NDArray[Any]]) -> None:
        self.path = path
        for name in packed_names(split):
            if name not in arrays:
                raise InputError(
                    f"{path}: expected an array '{name}' beside '{HEADER}', found none"
                )
        header, self.scans, offsets = (arrays[name] for name in packed_names(split))
        for name, array in ((HEADER, header), (f"{split}_scans", self.scans)):
            if array.dtype != np.uint8 or array.ndim != 1:
                raise InputError(
                    f"{path}: expected '{name}' (bytes,) uint8, got {array.shape} {array.dtype}"
                )
        self.header = header.tobytes()
        whole = offsets.ndim == 1 and offsets.dtype.kind in "iu" and len(offsets) > 1
        self.offsets: list[int] = offsets.tolist() if whole else []
        steps = np.diff(np.asarray(self.offsets, dtype=np.int64))
        if not whole or self.offsets[0] or self.offsets[-1] != len(self.scans) or steps.min() < 0:
            raise InputError(
                f"{path}: expected '{split}_offsets' (N + 1,) integers that rise from 0 to "
                f"{len(self.scans):,}, the bytes of '{split}_scans', got {offsets.shape} {offsets.dtype}"
            )
        height, width, channels = self.picture(0).shape
        self.shape = (len(self), channels, height, width)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def picture(self, index: int) -> NDArray[np.uint8]:
        """(H, W, C) uint8 of one picture, decoded by Pillow's libjpeg.

        Raises:
            InputError: it cannot be decoded, or is neither grey nor RGB.
        """
        scan = self.scans[self.offsets[index] : self.offsets[index + 1]].tobytes()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                with Image.open(io.BytesIO(self.header + scan + END), formats=("JPEG",)) as image:
                    pixels: NDArray[np.uint8] = np.asarray(image)
        except Exception as error:  # a damaged picture can raise any error
            raise InputError(f"{self.path}: picture {index} cannot be decoded: {error}") from error
        pixels = pixels[..., None] if pixels.ndim == 2 else pixels
        if pixels.shape[2] not in MODES:
            raise InputError(
                f"{self.path}: expected grey or RGB pictures, got {pixels.shape[2]} channels"
            )
        return pixels

    def parts(self) -> Iterator[NDArray[np.uint8]]:
        """All pictures in order, (n, C, H, W) at a time.

        Raises:
            InputError: see `picture`.
        """
        for first in range(0, len(self), PART):
            indices = range(first, min(first + PART, len(self)))
            yield np.stack([self.picture(k) for k in indices]).transpose(0, 3, 1, 2)
