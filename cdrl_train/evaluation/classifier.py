"""A classifier that checks whether samples show the requested labels."""

from __future__ import annotations

import hashlib
import logging
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cdrl_infer.errors import InputError

BATCH = 500  # number of images at once
RECIPE = (
    "torch.export.save(torch.export.export(network, (images,), "
    'dynamic_shapes=({0: torch.export.Dim("batch")},)), FILE)'
)


@dataclass(frozen=True)
class Classifier:
    """Predicts the value of each attribute of images.

    Args:
        network: (B, C, H, W) float32 in [0, 1] -> (B, L) logits, attribute after attribute.
        num_classes: the number of values of each attribute; L is their sum.
        digest: identifies the classifier.
    """

    network: Callable[[Tensor], Tensor]
    num_classes: tuple[int, ...]
    digest: str

    @torch.no_grad()
    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.int64]:
        """(N, C, H, W) -> the predicted values (N, A), as indices."""
        batches = torch.split(torch.from_numpy(images), BATCH)
        logits = torch.cat([self.network(batch.float() / 255) for batch in batches])
        found = [part.argmax(1) for part in torch.split(logits, list(self.num_classes), dim=1)]
        indices: NDArray[np.int64] = torch.stack(found, dim=1).numpy()
        return indices

    def share_recognised(self, images: NDArray[np.uint8], asked: NDArray[np.int64]) -> float:
        """The share of images (N, C, H, W) with all of the requested labels (N, A), in [0, 1]."""
        return float((self(images) == asked).all(1).mean())


def load_classifier(
    file: Path, shape: tuple[int, int, int], num_classes: Sequence[int]
) -> Classifier:
    """Read a network that `torch.export.save` wrote. **It runs the file's code**: trust the file first.

    Args:
        file: the ``.pt2`` file.
        shape: (C, H, W) of the images.
        num_classes: the number of values of each attribute of the model.

    Raises:
        InputError: the file is of another kind, or the network does not accept such images in batches of
            any size, or it has other classes.
    """
    if not file.is_file():
        raise InputError(f"--classifier {file}: expected a file, found none")
    made_by = f"expected a .pt2 file written by {RECIPE}"
    if not zipfile.is_zipfile(file):
        raise InputError(f"--classifier {file}: {made_by}, found another file")
    try:
        with _quiet():
            network = torch.export.load(file).module()
    except Exception as error:
        raise InputError(f"--classifier {file}: {made_by} ({_reason(error)})") from error
    for size in (3, 1):
        try:
            with torch.no_grad():
                logits = network(torch.zeros(size, *shape))
        except Exception as error:
            raise InputError(
                f"--classifier {file}: expected a network of {size} images {shape} in float32, in "
                f"batches of any size ({_reason(error)}); {made_by}"
            ) from error
        wanted = (size, sum(num_classes))
        if not isinstance(logits, Tensor) or tuple(logits.shape) != wanted:
            found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise InputError(
                f"--classifier {file}: expected logits {wanted} for {size} images, one for each class "
                f"of the model, got {found}"
            )
    digest = hashlib.sha256(file.read_bytes()).hexdigest()[:12]
    return Classifier(network, tuple(num_classes), digest)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence `torch.export`, which logs many lines about an error."""
    log = logging.getLogger("torch.export")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(level)


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:120] if lines else type(error).__name__
