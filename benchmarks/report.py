"""What the benchmarks share: arrays that grow on disk, and tables."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cdrl_infer.errors import InputError
from cdrl_infer.files import replaced_file


def grown(
    file: Path,
    count: int,
    make: Callable[[int, int], NDArray[Any]],
    chunk: int,
    on_rows: Callable[[int], object] | None = None,
) -> NDArray[Any]:
    """The first ``count`` rows of an array kept in ``file``, which is extended where it is shorter.

    Args:
        file: a ``.npy``; rewritten after each chunk, so that an interrupted run goes on from there.
        count: N.
        make: (start, stop) -> the rows from start to stop; none for (0, 0).
        chunk: rows made at a time.
        on_rows: told how many rows there are now.
    """
    rows = np.load(file, allow_pickle=False) if file.is_file() else make(0, 0)
    while len(rows) < count:
        rows = np.concatenate([rows, make(len(rows), min(len(rows) + chunk, count))])
        save_array(file, rows)
        if on_rows is not None:
            on_rows(len(rows))
    return rows[:count]


def save_array(file: Path, rows: NDArray[Any]) -> None:
    """As ``.npy``; the file appears whole or not at all."""
    with replaced_file(file) as temporary, temporary.open("wb") as stream:
        np.save(stream, rows, allow_pickle=False)


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table, columns padded so that it reads as plain text too; first column left."""
    lines = [list(header), *([str(cell) for cell in row] for row in rows)]
    for line in lines:
        if len(line) != len(header):
            raise InputError(f"expected rows of {len(header)} cells, got {len(line)}: {line}")
    widths = [max(3, *(len(line[k]) for line in lines)) for k in range(len(header))]

    def render(line: Sequence[str]) -> str:
        cells = [line[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)]
        return f"| {' | '.join(cells)} |"

    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join([render(lines[0]), render(rule), *map(render, lines[1:])])


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation (NaN for a single value)."""
    deviation = statistics.stdev(values) if len(values) > 1 else math.nan
    return statistics.fmean(values), deviation


def plus_minus(values: Sequence[float], digits: int = 1) -> str:
    """``"12.3 ± 0.4"``: mean and standard deviation."""
    mean, deviation = spread(values)
    return f"{mean:.{digits}f}" + ("" if math.isnan(deviation) else f" ± {deviation:.{digits}f}")


def mean_error(values: NDArray[Any]) -> tuple[float, float]:
    """Mean and standard error of the mean (NaN for a single value) of independent values (N,)."""
    mean, deviation = spread(values.tolist())
    return mean, deviation / math.sqrt(len(values))


def with_error(values: NDArray[Any], digits: int = 1) -> str:
    """``"12.3 ± 0.4"``: mean and standard error."""
    mean, error = mean_error(values)
    return f"{mean:.{digits}f}" + ("" if math.isnan(error) else f" ± {error:.{digits}f}")


def check_target(option: str, file: Path | None) -> None:
    """`InputError` unless the file could be written; before any work is done."""
    if file is not None and (file.is_dir() or not file.absolute().parent.is_dir()):
        raise InputError(f"{option} {file}: expected a path of a file in a folder that exists")


def write_json(file: Path, content: dict[str, Any]) -> None:
    """UTF-8, indented; the file appears whole or not at all."""
    with replaced_file(file) as temporary:
        text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
        temporary.write_text(text + "\n", encoding="utf-8")
