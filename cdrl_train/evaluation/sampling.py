"""The samples and the real images of an evaluation."""

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
from cdrl_infer.scoring.reference import random_order
from cdrl_infer.storage.folder import OF_WEIGHTS
from cdrl_train.data.image_set import ImageSet

KINDS = (".json", ".safetensors")  # the suffixes of a model's files
SEED_STRIDE = 1_000_000  # sample k of repeat r is drawn from seed r · SEED_STRIDE + k
Bytes = NDArray[np.uint8]  # (N, C, H, W)
Steps = int | Sequence[int]


def balanced_labels(num_classes: Sequence[int], count: int) -> Tensor:
    """(N, A) indices that count through all combinations of labels; the first attribute changes fastest.

    Args:
        num_classes: the number of values of each attribute.
        count: N.
    """
    columns, left = [], torch.arange(count)
    for size in num_classes:
        columns.append(left % size)
        left = left // size
    return torch.stack(columns, dim=1)


def window(n: int, repeat: int, total: int) -> slice:
    """Images n·r … n·(r+1) - 1 for repeat r. After the last image, it starts again at the first.

    Raises:
        InputError: there are fewer than n images.
    """
    if n > total:
        raise InputError(f"n must be at most {total}, the number of images, got {n}")
    start = n * (repeat % (total // n))
    return slice(start, start + n)


def pixels(output: CDRLPipelineOutput) -> Bytes:
    """Convert an output of type "pt" to (N, C, H, W) uint8."""
    values: Bytes = (torch.as_tensor(output.images) * 255).round().to(torch.uint8).numpy()
    return values


def model_digest(folder: Path) -> str:
    """12 hexadecimal digits of the sha256 of a model's configuration and weights."""
    sha = hashlib.sha256()
    for file in sorted(p for p in folder.rglob("*") if p.suffix in KINDS and p.is_file()):
        if file.name in OF_WEIGHTS:
            continue
        sha.update(file.relative_to(folder).as_posix().encode())
        sha.update(file.read_bytes())
    return sha.hexdigest()[:12]


@dataclass(frozen=True)
class Samples:
    """Samples of a model, with balanced labels and one seed per image.

    Args:
        pipe: the model.
        seed: the seed of the first sample of the first repeat.
        langevin_steps: K, one number for all transitions or one for each; None for the model's default.
        guidance_scale: the guidance scale of conditional samples.
        batch_size: number of images at once.
    """

    pipe: CDRLPipeline
    seed: int = 0
    langevin_steps: Steps | None = None
    guidance_scale: float = 1.0
    batch_size: int = 64

    def labels(self, count: int) -> NDArray[np.int64] | None:
        """(N, A) indices for the first N samples of a repeat; None for a model without labels."""
        sizes = [len(attribute.values) for attribute in self.pipe.model.labels]
        return balanced_labels(sizes, count).numpy() if sizes else None

    def seeds(self, repeat: int, count: int) -> range:
        """The seeds of the first ``count`` samples of a repeat."""
        first = self.seed + repeat * SEED_STRIDE
        return range(first, first + count)

    def draw(self, repeat: int, start: int, stop: int) -> Bytes:
        """Draw the samples start … stop - 1 of a repeat, (N, C, H, W)."""
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
    """Real images in a random order. Each repeat uses n of them.

    Args:
        data: all images.
        split: the name of the split, "train" or "test".
        seed: the seed of the order.
        count: n.
    """

    data: ImageSet
    split: str
    seed: int
    count: int

    @cached_property
    def order(self) -> Tensor:
        """(N,) indices of all images in random order."""
        return random_order(len(self.data), self.seed)

    def index(self, repeat: int) -> Tensor:
        """(n,) indices of the images of a repeat."""
        return self.order[window(self.count, repeat, len(self.data))]

    def images(self, repeat: int) -> Bytes:
        """(n, C, H, W), the images of a repeat."""
        chosen: Bytes = self.data.images[self.index(repeat)].numpy()
        return chosen
