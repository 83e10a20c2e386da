"""Networks that make features of images, by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from cdrl_infer.errors import InputError, did_you_mean, listing
from cdrl_train.evaluation.efficientnet import load_efficientnet
from cdrl_train.evaluation.inception import load_inception


class Extractor(Protocol):
    """Images (N, C, H, W) uint8 -> a row of numbers for each: features, then logits if there are any."""

    @property
    def name(self) -> str:
        """As users ask for it."""
        ...

    @property
    def title(self) -> str:
        """As figures name it."""
        ...

    @property
    def digest(self) -> str:
        """Of the weights and of all else that the numbers depend on but the images."""
        ...

    @property
    def convention(self) -> str:
        """Weights, features and resizing, in words."""
        ...

    @property
    def feature_dim(self) -> int:
        """D."""
        ...

    @property
    def logits(self) -> int:
        """L; 0 for a network without classes."""
        ...

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(N, D + L)."""
        ...


LOADERS: dict[str, Callable[[Path | None, torch.device], Extractor]] = {
    "inception-v3-compat": load_inception,
    "efficientnet-lite0": load_efficientnet,
}


def has_logits(name: str) -> bool:
    """Whether the extractor of that name has classes, so that an inception score can be taken.

    Raises:
        InputError: no such extractor.
    """
    if name not in LOADERS:
        raise InputError(
            f"--extractor must be one of {listing(LOADERS)}, got {name!r}"
            f"{did_you_mean(name, LOADERS)}"
        )
    return name == "inception-v3-compat"


def load_extractor(name: str, weights: Path | None, device: torch.device) -> Extractor:
    """The extractor of that name with its weights.

    Args:
        name: in `LOADERS`.
        weights: a file of them; None: those that come with it, or are downloaded.
        device: where to run it.

    Raises:
        InputError: no such extractor or weights, or a package that is not installed.
        NetworkError: weights that could not be downloaded.
    """
    has_logits(name)
    if weights is not None and not weights.is_file():
        raise InputError(f"--extractor-weights {weights}: expected a file, found none")
    return LOADERS[name](weights, device)
