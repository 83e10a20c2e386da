"""A folder of images, with one sub-folder per class or none."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from cdrl_infer.errors import InputError, listing
from cdrl_infer.images import SUFFIXES, Folder, find_images, open_image, read_header
from cdrl_infer.images.folders import summary
from cdrl_train.data.fit import Fit
from cdrl_train.data.image_set import ImageSet, announce, class_attribute, collect

SPLITS = {
    "train": ("train", "training"),
    "test": ("test", "testing", "val", "valid", "validation"),
}


def read_folder(
    root: Path,
    split: str,
    in_memory: int,
    channels: int | None = None,
    grey: bool = False,
    fit: Fit | None = None,
) -> ImageSet:
    """The images below a folder; a line on stderr says how many there are of each class.

    If there are images in sub-folders, these are the classes, and images beside them are ignored; but if
    most images lie beside the sub-folders, there are no classes. Sub-folders that are named "train" and
    "test" (or as in `SPLITS`), without others, hold the splits.

    Args:
        root: the folder.
        split: "train" or "test"; a folder without splits has the same images for both.
        in_memory: see `collect`.
        channels: 1 or 3; None: 1 if all images are grey, else 3.
        grey: make grey images of coloured ones.
        fit: how pictures get one size; None: they have to have one.

    Raises:
        InputError: no images, or images that are damaged, transparent or of several sizes, or coloured
            ones for 1 channel.
    """
    found = find_images(root)
    names, files = _choose(found, split)
    if not files:
        raise InputError(f"{found.told()}; looked for {', '.join(SUFFIXES)}")
    if channels is None:
        channels = 1 if grey or all(map(_is_grey, files)) else 3
    first = _pixels(files[0], channels, grey, fit)

    def parts() -> Iterator[NDArray[np.uint8]]:
        for file in files:
            pixels = _pixels(file, channels, grey, fit)
            if pixels.shape != first.shape:
                raise InputError(
                    f"all images must have one size: {files[0]} is {first.shape} (C, H, W), "
                    f"{file} is {pixels.shape}; --image-size scales them when training"
                )
            yield pixels[None]

    shape = (len(files), channels, *first.shape[1:])
    kind = f"upright-{fit.how}" if fit else "upright"
    images = collect(shape, parts(), sources=files, split=kind, in_memory=in_memory)
    classes = sorted({name for name in names.values() if name is not None})
    chosen = [names[file] for file in files]
    announce(summary(root, len(files), {n: chosen.count(n) for n in classes}, found.ignored))
    if not classes:
        return ImageSet(images)
    index: dict[str | None, int] = {name: k for k, name in enumerate(classes)}
    labels = torch.tensor([[index[name]] for name in chosen])
    return ImageSet(images, labels, class_attribute(classes))


def _choose(found: Folder, split: str) -> tuple[dict[Path, str | None], list[Path]]:
    """The class of each image, of all splits; and the images of this split."""
    names = dict(zip(found.files, found.class_names(), strict=True))
    inside = {name for name in names.values() if name is not None}
    folders = {name.lower(): name for name in inside}
    if None not in names.values() and folders.keys() <= {n for s in SPLITS.values() for n in s}:
        part = next((folders[name] for name in SPLITS[split] if name in folders), None)
        if part is None and folders:
            raise InputError(
                f"{found.root}: expected a folder {listing(SPLITS[split])} for the {split} split, "
                f"found only {listing(sorted(inside))}"
            )
        files = [file for file, name in names.items() if name == part]
        names = dict(zip(found.files, found.class_names(1), strict=True))
    else:
        files = found.files
    loose = [file for file in files if names[file] is None]
    if 0 < len(loose) < len(files) - len(loose):
        found.ignored["beside the folders of the classes"] += len(loose)
        files = [file for file in files if names[file] is not None]
    elif loose:
        names = dict.fromkeys(names)
    return names, files


def _is_grey(file: Path) -> bool:
    header = read_header(file)
    return header.mode in ("1", "L", "LA") or open_image(file).mode == "L"


def _pixels(file: Path, channels: int, grey: bool, fit: Fit | None) -> NDArray[np.uint8]:
    """(C, H, W)."""
    picture = open_image(file, channels, grey)
    pixels = np.asarray(fit.picture(picture) if fit else picture)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
