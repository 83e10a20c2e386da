"""Which samples and which real images are compared."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cdrl_infer.drawing import CDRLPipelineOutput
from cdrl_infer.errors import InputError
from cdrl_infer.pipeline import CDRLPipeline
from cdrl_infer.scoring.reference import STATISTICS, random_order
from cdrl_train.data.image_set import ImageSet

KINDS = (".json", ".safetensors")  # of the files that make up a model
SEED_STRIDE = 1_000_000  # sample k of repeat r is drawn from seed r · SEED_STRIDE + k
Bytes = NDArray[np.uint8]  # (N, C, H, W)
Steps = int | Sequence[int]


def balanced_labels(num_classes: Sequence[int], count: int) -> Tensor:
    """(N, A) indices, the labels in turn.

    The first attribute's values take turns; each further attribute moves on with every round of the
    one before it, so that all combinations occur.

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
    """Images n·r … n·(r+1) - 1 for repeat r; from the start again once all images are used.

    Raises:
        InputError: there are fewer than n images.
    """
    if n > total:
        raise InputError(f"n must be at most {total}, the number of images, got {n}")
    start = n * (repeat % (total // n))
    return slice(start, start + n)


def pixels(output: CDRLPipelineOutput) -> Bytes:
    """(N, C, H, W) uint8 of an output of type "pt"."""
    values: Bytes = (torch.as_tensor(output.images) * 255).round().to(torch.uint8).numpy()
    return values


def model_digest(folder: Path) -> str:
    """12 hexadecimal digits of the configuration and the weights, without card and statistics."""
    sha = hashlib.sha256()
    for file in sorted(p for p in folder.rglob("*") if p.suffix in KINDS and p.is_file()):
        if file.name == STATISTICS:
            continue
        sha.update(file.relative_to(folder).as_posix().encode())
        sha.update(file.read_bytes())
    return sha.hexdigest()[:12]


@dataclass(frozen=True)
class Samples:
    """Samples of a model: the labels in turn, a seed for each image.

    Args:
        pipe: of the model.
        seed: of the first sample of the first repeat.
        langevin_steps: K of all transitions or of each; None for the model's.
        guidance_scale: of conditional samples.
        batch_size: images at a time.
    """

    pipe: CDRLPipeline
    seed: int = 0
    langevin_steps: Steps | None = None
    guidance_scale: float = 1.0
    batch_size: int = 64

    def labels(self, count: int) -> NDArray[np.int64] | None:
        """(N, A) indices of the first samples of a repeat; None for a model without labels."""
        sizes = [len(attribute.values) for attribute in self.pipe.model.labels]
        return balanced_labels(sizes, count).numpy() if sizes else None

    def seeds(self, repeat: int, count: int) -> range:
        """The seeds of the first samples of a repeat."""
        first = self.seed + repeat * SEED_STRIDE
        return range(first, first + count)

    def draw(self, repeat: int, start: int, stop: int) -> Bytes:
        """(N, C, H, W): samples start … stop - 1 of a repeat."""
        labels = self.labels(stop)
        output = self.pipe(
            num_images=stop - start,
            class_labels=None if labels is None else labels[start:].tolist(),
            guidance_scale=self.guidance_scale,
            seeds=self.seeds(repeat, stop)[start:],
            langevin_steps=self.langevin_steps,
            batch_size=self.batch_size,
            output_type="pt",
            progress=False,
        )
        return pixels(output)


@dataclass(frozen=True)
class RealImages:
    """Real images in a random order, n of them for each repeat.

    Args:
        data: all images.
        split: what to call them: "train" or "test".
        seed: of the order.
        count: n.
    """

    data: ImageSet
    split: str
    seed: int
    count: int

    @cached_property
    def order(self) -> Tensor:
        """(N,) indices of all images."""
        return random_order(len(self.data), self.seed)

    def index(self, repeat: int) -> Tensor:
        """(n,) which images a repeat has."""
        return self.order[window(self.count, repeat, len(self.data))]

    def images(self, repeat: int) -> Bytes:
        """(n, C, H, W) of a repeat."""
        chosen: Bytes = self.data.images[self.index(repeat)].numpy()
        return chosen
