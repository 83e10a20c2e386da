"""Networks that compute features of images, by name."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cdrl_infer.errors import InputError
from cdrl_train.evaluation.registry import EXTRACTORS


@dataclass(frozen=True)
class Extractor(ABC):
    """Images (N, C, H, W) uint8 -> a row for each (N, D + L) float32: D features, then L logits.

    To add one, write a subclass and register it: ``EXTRACTORS.register("mine", Mine)``.

    Attributes:
        name: what users ask for.
        title: what reports call it.
        convention: weights, features and resizing, in words.
        feature_dim: D.
        logits: L; 0 for a network without classes.

    Args:
        network: called by `rows`.
        digest: of the weights and the convention; it names the cached features.
        device: where the network runs.
        batch_size: images at a time.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    convention: ClassVar[str]
    feature_dim: ClassVar[int]
    logits: ClassVar[int] = 0

    network: Callable[..., Any]
    digest: str
    device: torch.device
    batch_size: int = 50

    @classmethod
    @abstractmethod
    def load(cls, weights: Path | None, device: torch.device) -> Extractor:
        """Read the weights from a file, or from where they come by default (None)."""

    @abstractmethod
    def rows(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 -> (B, D + L)."""

    @torch.no_grad()
    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """A row for each image; grey images are repeated to RGB."""
        return np.concatenate(
            [
                self.rows(batch.to(self.device).expand(-1, 3, -1, -1)).cpu().numpy()
                for batch in torch.split(torch.from_numpy(images), self.batch_size)
            ]
        )


def load_extractor(name: str, weights: Path | None, device: torch.device) -> Extractor:
    """The extractor of that name with its weights.

    Args:
        name: in `EXTRACTORS`.
        weights: a file of weights; None for the default ones, installed or downloaded.
        device: where to run it.

    Raises:
        ConfigError: there is no such extractor.
        InputError: the weights do not fit, or a package is not installed.
        NetworkError: the weights could not be downloaded.
    """
    kind = EXTRACTORS.find(name, "--extractor")
    if weights is not None and not weights.is_file():
        raise InputError(f"--extractor-weights {weights}: expected a file, found none")
    return kind.load(weights, device)


def digest_of(convention: str, state: Mapping[str, Tensor]) -> str:
    """12 hexadecimal digits that tell these weights and this convention from others."""
    sha = hashlib.sha256(convention.encode())
    for name, tensor in sorted(state.items()):
        sha.update(name.encode() + tensor.numpy().tobytes())
    return sha.hexdigest()[:12]
