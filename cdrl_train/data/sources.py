"""Data sets: everything becomes uint8 images, and batches of them."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cdrl_infer.errors import InputError, listing
from cdrl_infer.images import MODES, SUFFIXES, image_files, open_image
from cdrl_infer.model import Attribute, ImageShape
from cdrl_train.config import DataConfig
from cdrl_train.data.coloured import ATTRIBUTES, HELD_OUT, render
from cdrl_train.data.image_set import IN_MEMORY, ImageSet, held
from cdrl_train.data.published import CIFAR10_CLASSES, FASHION_MNIST_CLASSES, IMAGENET32, published

COLOURED = "coloured:"
CLASSES = {"fashion": FASHION_MNIST_CLASSES, "cifar10": CIFAR10_CLASSES}  # by a file's name
PART = 1024  # images at a time, where they are copied


def load_images(
    source: str,
    split: str = "train",
    *,
    attributes: Sequence[str] | None = None,
    in_memory: int = IN_MEMORY,
) -> ImageSet:
    """Read a data set.

    Args:
        source: one of

            - ``FILE.npz`` with ``train_images`` (N, H, W[, C]) uint8, ``train_labels`` (N,) and the same
              for ``test``;
            - a folder of images of 8 bits per channel, one sub-folder per class or none at all;
            - ``torchvision:FashionMNIST``, ``MNIST``, ``CIFAR10`` or ``CelebA``, and ``:ROOT`` for
              another place than ``data``; downloaded if need be and torchvision is there;
            - ``imagenet32:FOLDER``, the ``.npz`` batches of the downsampled ImageNet;
            - ``checkerboard``, points of the plane as images of two pixels, see `cdrl_train.toy`;
            - ``coloured:`` and one of these with Fashion-MNIST in it, see `cdrl_train.data.coloured` (its
              held-out pairs occur in the test split alone).
        split: "train" or "test"; ignored for a folder.
        attributes: of the set's, those to label the images with; None: all, (): none of them.
        in_memory: the most bytes of pixels to hold in memory; more are mapped from a disk.

    Raises:
        InputError: nothing there, or not what is expected.
    """
    path = Path(source)
    if source.startswith(COLOURED):
        clothes = load_images(source.removeprefix(COLOURED), split, in_memory=in_memory)
        return (
            render(clothes, seed=0, held_out=HELD_OUT) if split == "train" else render(clothes, 1)
        ).with_attributes(attributes)
    named = published(source)
    if named is not None:
        known, root = named
        data = known.read(root, split, in_memory)
    elif path.is_dir():
        data = _folder(path, in_memory)
    elif path.suffix == ".npz" and path.is_file():
        data = _npz(path, split, in_memory)
    else:
        raise InputError(
            f"no data at {source!r}: expected a .npz file, a folder of images, imagenet32:FOLDER, "
            "torchvision:FashionMNIST[:ROOT] (MNIST, CIFAR10, CelebA; which downloads it), or "
            "coloured: and one of these"
        )
    channels, height, width = data.images.shape[1:]
    if channels not in MODES or not height or not width:
        raise InputError(
            f"{source}: expected images of {' or '.join(map(str, MODES))} channels and at least one "
            f"pixel, got {channels} channels of {height} x {width}"
        )
    return data.with_attributes(attributes)


def data_name(source: str) -> str:
    """The data set without where it lies on this machine."""
    if source.startswith(COLOURED):
        return COLOURED + data_name(source.removeprefix(COLOURED))
    if source.startswith("torchvision:"):
        return ":".join(source.split(":")[:2])
    if source.startswith(IMAGENET32):
        return IMAGENET32 + Path(source.removeprefix(IMAGENET32)).name
    return Path(source).resolve().name


def expected(source: str, config: DataConfig) -> tuple[ImageShape, tuple[int, ...]]:
    """The shape of one image and how many values each attribute has.

    Of a published set they are known without its files; others are read.

    Raises:
        InputError: see `load_images`.
    """
    known = None if source.startswith(COLOURED) else published(source)
    if known is not None:
        image, num_classes = known[0].image, known[0].num_classes
        # The attributes of a published set all have equally many values.
        chosen = len(num_classes) if config.attributes is None else len(config.attributes)
        return image, num_classes[:chosen]
    if source.startswith(COLOURED) and published(source.removeprefix(COLOURED)) is not None:
        plain, _ = expected(source.removeprefix(COLOURED), config)
        blank = torch.zeros(0, 3, plain.height, plain.width, dtype=torch.uint8)
        data = ImageSet(blank, torch.zeros(0, len(ATTRIBUTES)).long(), ATTRIBUTES)
        data = data.with_attributes(config.attributes)
    else:
        in_memory = config.in_memory_mib * 2**20
        data = load_images(source, attributes=config.attributes, in_memory=in_memory)
    return ImageShape(*data.images.shape[1:]), data.num_classes


def _npz(path: Path, split: str, in_memory: int) -> ImageSet:
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
    images = (images if images.ndim == 4 else images[..., None]).transpose(0, 3, 1, 2)
    slices = (images[k : k + PART] for k in range(0, len(images), PART))
    pixels = held(images.shape, slices, sources=[path], split=split, in_memory=in_memory)
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
    stem = path.stem.lower().replace("-", "").replace("_", "")
    named = [names for word, names in CLASSES.items() if word in stem and len(names) == count]
    classes = named[0] if named else tuple(str(k) for k in range(count))
    return ImageSet(pixels, *_classes(targets, classes))


def _folder(root: Path, in_memory: int) -> ImageSet:
    files = image_files(root)
    if not files:
        raise InputError(f"no images in {root}; looked for {', '.join(SUFFIXES)}")
    parents = [p.relative_to(root).parts[:-1] for p in files]
    labelled = all(parents)
    classes = tuple(sorted({parent[0] for parent in parents})) if labelled else ()
    first = _pixels(files[0])

    def parts() -> Iterator[NDArray[np.uint8]]:
        for file in files:
            pixels = _pixels(file)
            if pixels.shape != first.shape:
                raise InputError(
                    f"all images must have one size: {files[0]} is {first.shape} (C, H, W), "
                    f"{file} is {pixels.shape}"
                )
            yield pixels[None]

    channels, height, width = first.shape
    shape = (len(files), channels, height, width)
    images = held(shape, parts(), sources=files, split="all", in_memory=in_memory)
    index = {name: k for k, name in enumerate(classes)}
    if not labelled:
        return ImageSet(images)
    return ImageSet(images, *_classes(torch.tensor([index[p[0]] for p in parents]), classes))


def _pixels(file: Path) -> NDArray[np.uint8]:
    """(C, H, W)."""
    pixels = np.asarray(open_image(file))
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def _classes(targets: Tensor, names: tuple[str, ...]) -> tuple[Tensor, tuple[Attribute, ...]]:
    """(N,) indices and their names as the labels and attributes of an `ImageSet`."""
    return targets[:, None], (Attribute("class", names),)
