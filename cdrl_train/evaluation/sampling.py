"""Which samples and which real images a figure is of."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cdrl_infer.drawing import CDRLPipelineOutput
from cdrl_infer.errors import InputError
from cdrl_infer.scoring.reference import STATISTICS

SEED_STRIDE = 1_000_000  # image k of repeat r is drawn from seed r · SEED_STRIDE + k


def balanced_labels(num_classes: Sequence[int], count: int) -> Tensor:
    """(N, A) indices, the labels in turn.

    The first n are balanced in the first attribute; the others go on with each round of it, so that
    all combinations occur.

    Args:
        num_classes: of each attribute.
        count: N.
    """
    columns, left = [], torch.arange(count)
    for size in num_classes:
        columns.append(left % size)
        left = left // size
    return torch.stack(columns, dim=1)


def window(n: int, repeat: int, total: int) -> slice:
    """Images n·r … n·(r+1) - 1 for repeat r; from the start again where the set is used up.

    Raises:
        InputError: a set of fewer than n images.
    """
    if n > total:
        raise InputError(f"n must be at most {total}, the number of images, got {n}")
    start = n * (repeat % (total // n))
    return slice(start, start + n)


def pixels(output: CDRLPipelineOutput) -> NDArray[np.uint8]:
    """(N, C, H, W) uint8 of an output of type "pt"."""
    values: NDArray[np.uint8] = (
        (torch.as_tensor(output.images) * 255).round().to(torch.uint8).numpy()
    )
    return values


def model_digest(folder: Path) -> str:
    """Of the configuration and the weights; the card and the statistics do not count."""
    sha = hashlib.sha256()
    for file in sorted(p for p in folder.rglob("*") if p.suffix in (".json", ".safetensors")):
        if file.name == STATISTICS:
            continue
        sha.update(file.relative_to(folder).as_posix().encode())
        sha.update(file.read_bytes())
    return sha.hexdigest()[:12]
