"""CIFAR-10, from its binary version."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from cdrl_infer.errors import InputError
from cdrl_infer.model import ImageShape
from cdrl_train.data.image_set import ImageSet, class_attribute
from cdrl_train.data.published import Published, read_bytes

CIFAR10_CLASSES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)
RECORD = 1 + 3 * 32 * 32  # bytes: a label, then the pixels


class Cifar10(Published):
    """The binary batches if they are there, else the version that torchvision downloads."""

    def read_files(self, root: Path, split: str, in_memory: int) -> ImageSet:
        """Read ``root/cifar-10-batches-bin``, or let torchvision download and read its files."""
        folder = root / "cifar-10-batches-bin"
        batches = [f"data_batch_{k}" for k in range(1, 6)] if split == "train" else ["test_batch"]
        files = [folder / f"{batch}.bin" for batch in batches]
        if not folder.is_dir():
            command = f"curl -fL {self.home} | tar xz -C {root}"
            data = self.download(root, files[0], command, train=split == "train")
            pixels = torch.from_numpy(np.ascontiguousarray(data.data.transpose(0, 3, 1, 2)))
            return self.labelled(pixels, np.asarray(data.targets), root)
        rows = []
        for file in files:
            content = read_bytes(file)
            if not content or len(content) % RECORD:
                raise InputError(
                    f"{file}: expected records of {RECORD} bytes, found {len(content)} bytes; "
                    "unpack cifar-10-binary.tar.gz again"
                )
            rows.append(np.frombuffer(content, dtype=np.uint8).reshape(-1, RECORD))
        records = np.concatenate(rows)
        pixels = torch.from_numpy(records[:, 1:].reshape(-1, 3, 32, 32).copy())
        return self.labelled(pixels, records[:, 0], folder)


CIFAR10 = Cifar10(
    "CIFAR10",
    "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    ImageShape(3, 32, 32),
    class_attribute(CIFAR10_CLASSES),
)
