"""A cache of samples on disk, which checks the samples before it reuses them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from cdrl_infer.errors import InputError
from cdrl_infer.files import replaced_file


def kept(
    file: Path,
    count: int,
    draw: Callable[[int, int], NDArray[Any]],
    row: np.dtype[Any],
    chunk: int,
    title: str | None = None,
) -> NDArray[Any]:
    """The first ``count`` rows of ``draw``. Rows that are in ``file`` are read, the others are drawn.

    Args:
        file: a ``.npy`` file, written after each chunk, so an interrupted run continues there.
        count: N.
        draw: (start, stop) -> the rows start … stop - 1, at least one.
        row: the type of one row: pixels, or fields with pixels in the field "image".
        chunk: number of rows to draw at once.
        title: the title of the bar on stderr; None for no bar.

    Raises:
        InputError: ``draw`` gives other rows than the file.
    """
    rows = np.empty(0, row)
    if file.is_file():
        rows = np.load(file, allow_pickle=False)
        if len(rows) and not _alike(rows[:2], draw(0, len(rows[:2]))):
            raise InputError(
                f"{file}: this version draws other samples than the cached ones; delete the file"
            )
    with tqdm(total=count, desc=title, unit="image", disable=title is None) as bar:
        while len(rows) < count:
            bar.update(len(rows) - bar.n)
            rows = np.concatenate([rows, draw(len(rows), min(len(rows) + chunk, count))])
            with replaced_file(file) as temporary, temporary.open("wb") as stream:
                np.save(stream, rows, allow_pickle=False)
        bar.update(count - bar.n)
    return rows[:count]


def _alike(old: NDArray[Any], new: NDArray[Any]) -> bool:
    """Whether at least one image is the same up to rounding, which is one grey level in a few pixels.

    One image is enough, because rounding may change a decision of a chain that can reject steps.
    """
    if (old.dtype, old.shape) != (new.dtype, new.shape):
        return False
    a, b = ((rows["image"] if rows.dtype.names else rows).astype(float) for rows in (old, new))
    differences = np.abs(a - b).mean((-3, -2, -1))
    return bool(differences.min() <= 0.5)
