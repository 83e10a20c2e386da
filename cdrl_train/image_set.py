"""Images and their labels in memory."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from torch import Tensor

from cdrl_infer.checkpoint import Attribute


@dataclass(frozen=True)
class ImageSet:
    """Images and labels in memory.

    Args:
        images: (N, C, H, W) uint8.
        labels: (N, A) int64 indices from 0, one column per attribute; None without attributes.
        attributes: what the columns mean.
    """

    images: Tensor
    labels: Tensor | None = None
    attributes: tuple[Attribute, ...] = ()

    def __len__(self) -> int:
        return len(self.images)

    @property
    def num_classes(self) -> tuple[int, ...]:
        """How many values each attribute has."""
        return tuple(len(attribute.values) for attribute in self.attributes)

    def fingerprint(self) -> str:
        """16 hexadecimal digits that tell this set from another: of pixels, labels and names."""
        sha = hashlib.sha256(repr((tuple(self.images.shape), self.attributes)).encode())
        for tensor in (self.images, self.labels):
            if tensor is not None:
                sha.update(tensor.cpu().contiguous().numpy().data)
        return sha.hexdigest()[:16]
