"""Data sets: everything becomes uint8 images in memory, and batches of them."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from cdrl_infer.checkpoint import Attribute
from cdrl_infer.errors import InputError, listing
from cdrl_infer.images import MODES, SUFFIXES, image_files, open_image
from cdrl_train.coloured import HELD_OUT, render
from cdrl_train.config import DataConfig
from cdrl_train.image_set import ImageSet

FASHION_MNIST_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
COLOURED = "coloured:"


def load_images(source: str, split: str = "train") -> ImageSet:
    """Read a data set.

    Args:
        source: a ``.npz`` file with ``train_images`` (N, H, W[, C]) uint8, ``train_labels`` (N,) and
            the same for ``test``; ``torchvision:FashionMNIST[:ROOT]``, downloaded to ROOT (default
            ``data``) if need be; a folder of images of 8 bits per channel, one sub-folder per
            class or none at all; or ``coloured:`` and one of these with Fashion-MNIST in it, see
            `cdrl_train.coloured` (its held-out pairs occur in the test split alone).
        split: "train" or "test"; ignored for a folder.

    Raises:
        InputError: nothing there, or not what is expected.
    """
    path = Path(source)
    if source.startswith(COLOURED):
        clothes = load_images(source.removeprefix(COLOURED), split)
        return (
            render(clothes, seed=0, held_out=HELD_OUT) if split == "train" else render(clothes, 1)
        )
    if source.startswith("torchvision:"):
        data = _torchvision(source, split)
    elif path.is_dir():
        data = _folder(path)
    elif path.suffix == ".npz" and path.is_file():
        data = _npz(path, split)
    else:
        raise InputError(
            f"no data at {source!r}: expected a .npz file, a folder of images or "
            "torchvision:FashionMNIST[:ROOT] (which downloads it), or coloured: and one of these"
        )
    channels, height, width = data.images.shape[1:]
    if channels not in MODES or not height or not width:
        raise InputError(
            f"{source}: expected images of {' or '.join(map(str, MODES))} channels and at least one "
            f"pixel, got {channels} channels of {height} x {width}"
        )
    return data


def data_name(source: str) -> str:
    """The data set without where it lies on this machine."""
    if source.startswith(COLOURED):
        return COLOURED + data_name(source.removeprefix(COLOURED))
    if source.startswith("torchvision:"):
        return ":".join(source.split(":")[:2])
    return Path(source).resolve().name


def _npz(path: Path, split: str) -> ImageSet:
    wanted = (f"{split}_images", f"{split}_labels")
    try:
        with open(path, "rb") as file:
            archive = np.load(file, allow_pickle=False)
            names = [] if isinstance(archive, np.ndarray) else sorted(archive.files)
            images, labels = (archive[name] if name in names else None for name in wanted)
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{path} cannot be read as .npz: {error}") from error
    if images is None:
        found = listing(names) or "an array without a name: was it written by np.savez?"
        raise InputError(f"{path}: expected an array '{split}_images', found {found}")
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or not len(images):
        raise InputError(
            f"{path}: expected '{split}_images' (N, H, W[, C]) uint8, "
            f"got {images.shape} {images.dtype}"
        )
    pixels = torch.from_numpy(images if images.ndim == 4 else images[..., None])
    pixels = pixels.permute(0, 3, 1, 2).contiguous()
    if labels is None:
        return ImageSet(pixels)
    if labels.shape != (len(images),) or labels.dtype.kind not in "iu":
        raise InputError(
            f"{path}: expected '{split}_labels' ({len(images)},) integers, "
            f"got {labels.shape} {labels.dtype}"
        )
    if int(labels.min()) < 0:
        raise InputError(
            f"{path}: expected '{split}_labels' from 0 on, got {int(labels.min())}; leave labels "
            "out for images without a class"
        )
    targets = torch.from_numpy(labels.astype(np.int64))
    count = int(targets.max()) + 1
    fashion = "fashion" in path.stem.lower() and count == len(FASHION_MNIST_CLASSES)
    classes = FASHION_MNIST_CLASSES if fashion else tuple(str(k) for k in range(count))
    return ImageSet(pixels, *_classes(targets, classes))


def _torchvision(source: str, split: str) -> ImageSet:
    _, name, root = [*source.split(":", 2), "data"][:3]
    if name != "FashionMNIST":
        raise InputError(f"unknown torchvision data set {name!r}; known: FashionMNIST")
    try:
        from torchvision.datasets import FashionMNIST
    except ImportError as error:
        raise InputError(
            "torchvision is needed for this data set: pip install 'cdrl[train]'"
        ) from error
    try:
        data = FashionMNIST(root, train=split == "train", download=True)
    except (RuntimeError, OSError) as error:
        raise InputError(f"Fashion-MNIST could not be loaded into {root!r}: {error}") from error
    labels, attributes = _classes(data.targets.long(), FASHION_MNIST_CLASSES)
    return ImageSet(data.data[:, None], labels, attributes)


def _folder(root: Path) -> ImageSet:
    files = image_files(root)
    if not files:
        raise InputError(f"no images in {root}; looked for {', '.join(SUFFIXES)}")
    parents = [p.relative_to(root).parts[:-1] for p in files]
    labelled = all(parents)
    classes = tuple(sorted({parent[0] for parent in parents})) if labelled else ()
    images: list[np.ndarray] = []
    for file in files:
        pixels = np.asarray(open_image(file))
        pixels = pixels[..., None] if pixels.ndim == 2 else pixels
        if images and pixels.shape != images[0].shape:
            raise InputError(
                f"all images must have one size: {files[0]} is {images[0].shape} (H, W, C), "
                f"{file} is {pixels.shape}"
            )
        images.append(pixels)
    stacked = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
    index = {name: k for k, name in enumerate(classes)}
    if not labelled:
        return ImageSet(stacked)
    return ImageSet(stacked, *_classes(torch.tensor([index[p[0]] for p in parents]), classes))


def _classes(targets: Tensor, names: tuple[str, ...]) -> tuple[Tensor, tuple[Attribute, ...]]:
    """(N,) indices and their names as the labels and attributes of an `ImageSet`."""
    return targets[:, None], (Attribute("class", names),)


class Batch(NamedTuple):
    """Network input."""

    x: Tensor  # (B, C, H, W) float32 in [-1, 1]
    labels: Tensor | None  # (B, A) int64, 0 = hidden


class BatchStream:
    """Endless shuffled batches; where it stands is three numbers and a generator.

    Each epoch's order depends on (seed, epoch) alone, so a stream is resumed from ``state()``.
    """

    def __init__(
        self, data: ImageSet, config: DataConfig, seed: int, device: torch.device | str
    ) -> None:
        self.data = data
        self.config = config
        self.seed = seed
        self.device = torch.device(device)
        self.images = data.images.to(device)
        self.labels = None if data.labels is None else data.labels.to(device)
        self.epoch = 0
        self.position = 0
        self._order = self._shuffle()

    def _shuffle(self) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        return torch.randperm(len(self.data), generator=generator)

    def state(self) -> dict[str, int]:
        """Where the stream stands."""
        return {"epoch": self.epoch, "position": self.position}

    def load_state(self, state: dict[str, int]) -> None:
        """Go to where another stream of the same seed and data stood."""
        self.epoch, self.position = state["epoch"], state["position"]
        self._order = self._shuffle()

    def next(self, batch_size: int, generator: torch.Generator) -> Batch:
        """The next ``batch_size`` images; dequantisation, flips and hidden labels from ``generator``."""
        parts, missing = [], batch_size
        while missing:
            if self.position >= len(self.data):
                self.epoch, self.position = self.epoch + 1, 0
                self._order = self._shuffle()
            part = self._order[self.position : self.position + missing]
            self.position += len(part)
            missing -= len(part)
            parts.append(part)
        index = torch.cat(parts).to(self.device)

        def uniform(*shape: int) -> Tensor:
            return torch.rand(shape, generator=generator, device=self.device)

        x = self.images[index].float()
        x = (x + uniform(*x.shape)) / 128 - 1 if self.config.dequantise else x / 127.5 - 1
        if self.config.flip:
            x = torch.where(uniform(batch_size, 1, 1, 1) < 0.5, x, x.flip(-1))
        if self.labels is None:
            return Batch(x, None)
        labels = self.labels[index] + 1
        return Batch(x, labels * (uniform(*labels.shape) >= self.config.label_dropout))
