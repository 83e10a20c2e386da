"""Functions that the benchmarks share, for tables, errors, files and pictures."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cdrl_infer.errors import InputError
from cdrl_infer.files import replaced_file
from cdrl_infer.images import make_grid, to_pil, viewing_scale


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table with padded columns, readable as plain text; the first column is left-aligned."""
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


def mean_error(values: NDArray[Any]) -> tuple[float, float]:
    """Mean and standard error of the mean (NaN for a single value) of independent values (N,)."""
    mean, deviation = spread(values.tolist())
    return mean, deviation / math.sqrt(len(values))


def plus_minus(values: Sequence[float], digits: int = 1) -> str:
    """``"12.3 ± 0.4"``: mean and standard deviation."""
    return _plus_minus(*spread(values), digits)


def with_error(values: NDArray[Any], digits: int = 1) -> str:
    """``"12.3 ± 0.4"``: mean and standard error."""
    return _plus_minus(*mean_error(values), digits)


def per_cent(share: float, n: int) -> str:
    """``"80.0 ± 2.0"``: a share of n in per cent, and its binomial standard error."""
    return _plus_minus(100 * share, 100 * math.sqrt(share * (1 - share) / n), 1)


def _plus_minus(value: float, error: float, digits: int) -> str:
    return f"{value:.{digits}f}" + ("" if math.isnan(error) else f" ± {error:.{digits}f}")


def check_target(option: str, file: Path | None) -> None:
    """Raise `InputError` unless the file can be written; for a check before the work."""
    if file is not None and (file.is_dir() or not file.absolute().parent.is_dir()):
        raise InputError(f"{option} {file}: expected a path of a file in a folder that exists")


def write_json(file: Path, content: dict[str, Any]) -> None:
    """Write indented JSON in UTF-8; the file appears complete or not at all."""
    with replaced_file(file) as temporary:
        text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
        temporary.write_text(text + "\n", encoding="utf-8")


def save_picture(target: Path, rows: Sequence[Sequence[NDArray[np.uint8]]]) -> None:
    """Write a PNG with rows of images (C, H, W)."""
    pictures = to_pil(torch.from_numpy(np.stack([i for row in rows for i in row])) / 127.5 - 1)
    grid = make_grid(pictures, len(rows[0]), upscale=viewing_scale(pictures[0]))
    with replaced_file(target) as temporary:
        grid.save(temporary, format="PNG")
