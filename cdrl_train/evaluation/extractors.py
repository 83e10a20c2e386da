"""Networks that compute features of images."""

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
    """Images (N, C, H, W) uint8 -> rows (N, D + L) float32 with D features, then L logits.

    To add an extractor, write a subclass and register it: ``EXTRACTORS.register("mine", Mine)``.

    Attributes:
        name: the name in options.
        title: the name in reports.
        convention: a description of the weights, the features and the resizing.
        feature_dim: D.
        logits: L; 0 for a network without classes.

    Args:
        network: the network; `rows` calls it.
        digest: a digest of the weights and the convention, for the names of cached files.
        device: the device of the network.
        batch_size: number of images at once.
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
        """Load the extractor with weights from a file, or with the default weights for None."""

    @abstractmethod
    def rows(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 -> (B, D + L)."""

    @torch.no_grad()
    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """The rows (N, D + L) of images (N, C, H, W); grey images are repeated to RGB."""
        return np.concatenate(
            [
                self.rows(batch.to(self.device).expand(-1, 3, -1, -1)).cpu().numpy()
                for batch in torch.split(torch.from_numpy(images), self.batch_size)
            ]
        )


def load_extractor(name: str, weights: Path | None, device: torch.device) -> Extractor:
    """Load an extractor.

    Args:
        name: a name in `EXTRACTORS`.
        weights: a file of weights; None for the default weights, installed or downloaded.
        device: the device of the network.

    Raises:
        ConfigError: the extractor does not exist.
        InputError: the weights do not fit, or a package is not installed.
        NetworkError: the download failed.
    """
    kind = EXTRACTORS.find(name, "--extractor")
    if weights is not None and not weights.is_file():
        raise InputError(f"--extractor-weights {weights}: expected a file, found none")
    return kind.load(weights, device)


def digest_of(convention: str, state: Mapping[str, Tensor]) -> str:
    """12 hexadecimal digits that identify the weights and the convention."""
    sha = hashlib.sha256(convention.encode())
    for name, tensor in sorted(state.items()):
        sha.update(name.encode() + tensor.numpy().tobytes())
    return sha.hexdigest()[:12]
