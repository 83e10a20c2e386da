"""Samples that stay on disk as they are drawn, with a bar, and are checked when they are used again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from report import grown
from tqdm import tqdm

from cdrl_infer.errors import InputError


def kept(
    file: Path,
    count: int,
    draw: Callable[[int, int], NDArray[Any]],
    row: np.dtype[Any],
    chunk: int,
    title: str | None = None,
) -> NDArray[Any]:
    """The first ``count`` rows of what ``draw`` gives, read from ``file`` as far as it has them.

    Args:
        file: a ``.npy``; extended after each chunk, see `report.grown`.
        count: N.
        draw: (start, stop) -> the rows from start to stop, at least one.
        row: what one row is: of pixels, or of fields with pixels in the field "image".
        chunk: rows drawn at a time.
        title: of the bar on stderr; None for no bar.

    Raises:
        InputError: ``draw`` no longer gives what is on the disk.
    """
    if file.is_file():
        old = np.load(file, allow_pickle=False)[:2]
        if len(old) and not _alike(old, draw(0, len(old))):
            raise InputError(
                f"{file}: the cached samples are not those that this version draws; delete it"
            )

    def make(start: int, stop: int) -> NDArray[Any]:
        return draw(start, stop) if stop > start else np.empty(0, row)

    with tqdm(total=count, desc=title, unit="image", disable=title is None) as bar:
        rows = grown(file, count, make, chunk, lambda done: bar.update(done - bar.n))
        bar.update(count - bar.n)
    return rows


def _alike(old: NDArray[Any], new: NDArray[Any]) -> bool:
    """Is one of the images the same but for rounding, a grey level at most in few of the pixels?

    One will do: where steps are accepted or rejected, rounding may turn one of a chain's decisions.
    """
    if (old.dtype, old.shape) != (new.dtype, new.shape):
        return False
    a, b = ((rows["image"] if rows.dtype.names else rows).astype(float) for rows in (old, new))
    differences = np.abs(a - b).mean((-3, -2, -1))
    return bool(differences.min() <= 0.5)
