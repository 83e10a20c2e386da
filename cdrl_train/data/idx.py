"""MNIST and Fashion-MNIST, from IDX files (http://yann.lecun.com/exdb/mnist)."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from cdrl_infer.errors import InputError
from cdrl_infer.model import ImageShape
from cdrl_train.data.image_set import ImageSet, class_attribute
from cdrl_train.data.published import MAX_BYTES, Published

FASHION_MNIST_CLASSES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)


class Idx(Published):
    """A set of images and labels in IDX files, plain or as ``.gz``."""

    def read_files(self, root: Path, split: str, in_memory: int) -> ImageSet:
        """Read two files in ``root/NAME/raw``."""
        folder = root / self.name / "raw"
        part = "train" if split == "train" else "t10k"
        files = [folder / f"{part}-{kind}-ubyte" for kind in ("images-idx3", "labels-idx1")]
        missing = [file for file in files if not (file.is_file() or _packed(file).is_file())]
        if missing:
            packed = _packed(missing[0])
            curl = f"curl -fL --create-dirs -o {packed} {self.home}/{packed.name}"
            self.download(root, missing[0], curl)
        images, labels = _read(files[0], 3), _read(files[1], 1)
        if len(images) != len(labels):
            raise InputError(
                f"{files[0]} has {len(images)} images, {files[1]} {len(labels)} labels; delete both to "
                "have them downloaded again"
            )
        return self.labelled(torch.from_numpy(images[:, None]), labels, files[1])


def _packed(file: Path) -> Path:
    return file.with_name(file.name + ".gz")


def _read(file: Path, dimensions: int) -> NDArray[np.uint8]:
    """The array of unsigned bytes in an IDX file, or in its ``.gz``."""
    try:
        packed = not file.is_file()
        with gzip.open(_packed(file)) if packed else open(file, "rb") as stream:
            content = stream.read(MAX_BYTES)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(
            f"{file} cannot be read ({error}); delete it to have it downloaded again"
        ) from None
    start = 4 + 4 * dimensions
    header = content[:start].ljust(start, b"\0")
    shape = tuple(np.frombuffer(header, dtype=">u4", offset=4).tolist())
    if header[:4] != bytes([0, 0, 8, dimensions]) or len(content) != start + math.prod(shape):
        raise InputError(
            f"{file}: expected a complete IDX file of bytes in {dimensions} dimensions; delete it to "
            "have it downloaded again"
        )
    return np.frombuffer(content, dtype=np.uint8, offset=start).reshape(shape).copy()


FASHION_MNIST = Idx(
    "FashionMNIST",
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
    ImageShape(1, 28, 28),
    class_attribute(FASHION_MNIST_CLASSES),
)
MNIST = Idx(
    "MNIST",
    "https://ossci-datasets.s3.amazonaws.com/mnist",
    ImageShape(1, 28, 28),
    class_attribute(range(10)),
)
