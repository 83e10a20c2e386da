"""A classifier of the user's, to ask whether samples show what was asked for."""

from __future__ import annotations

import hashlib
import logging
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cdrl_infer.errors import InputError

RECIPE = (
    "torch.export.save(torch.export.export(network, (images,), "
    'dynamic_shapes=({0: torch.export.Dim("batch")},)), FILE)'
)


@dataclass(frozen=True)
class Classifier:
    """Images -> the value of each attribute.

    Args:
        network: (B, C, H, W) float32 in [0, 1] -> (B, L) logits, those of several attributes side by
            side.
        num_classes: of each attribute; L is their sum.
        digest: of the file.
    """

    network: Callable[[Tensor], Tensor]
    num_classes: tuple[int, ...]
    digest: str

    @torch.no_grad()
    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.int64]:
        """(N, A) indices."""
        logits = self.network(torch.from_numpy(images).float() / 255)
        found = [part.argmax(1) for part in torch.split(logits, list(self.num_classes), dim=1)]
        indices: NDArray[np.int64] = torch.stack(found, dim=1).numpy()
        return indices


def load_classifier(
    file: Path, shape: tuple[int, int, int], num_classes: Sequence[int]
) -> Classifier:
    """Read a network that `torch.export.save` wrote. **Its code is run**: only from whom you trust.

    Args:
        file: ``.pt2``.
        shape: (C, H, W) of the images.
        num_classes: of each attribute of the model.

    Raises:
        InputError: another file, or a network of other images, classes or of one batch size alone.
    """
    if not file.is_file():
        raise InputError(f"--classifier {file}: expected a file, found none")
    made_by = f"expected a .pt2 file of {RECIPE}"
    if not zipfile.is_zipfile(file):
        raise InputError(f"--classifier {file}: {made_by}, found another file")
    log = logging.getLogger("torch.export")
    level = log.level
    log.setLevel(logging.CRITICAL)  # it tells of pages of what one line says below
    try:
        network = torch.export.load(file).module()
    except Exception as error:
        raise InputError(f"--classifier {file}: {made_by} ({_reason(error)})") from error
    finally:
        log.setLevel(level)
    classifier = Classifier(
        network, tuple(num_classes), hashlib.sha256(file.read_bytes()).hexdigest()[:12]
    )
    total = sum(num_classes)
    for size in (3, 1):
        try:
            with torch.no_grad():
                logits = network(torch.zeros(size, *shape))
        except Exception as error:
            raise InputError(
                f"--classifier {file}: expected a network of {size} images {shape} in float32, in "
                f"batches of any size ({_reason(error)}); {made_by}"
            ) from error
        if not isinstance(logits, Tensor) or tuple(logits.shape) != (size, total):
            found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise InputError(
                f"--classifier {file}: expected logits ({size}, {total}) for {size} images, one for "
                f"each class of the model, got {found}"
            )
    return classifier


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:120] if lines else type(error).__name__
