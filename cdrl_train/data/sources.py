"""From the text of a data source, as a user gives it, to images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cdrl_infer.errors import InputError, did_you_mean, shown
from cdrl_infer.images import MODES, to_channels
from cdrl_infer.model import CDRLModel, ImageShape
from cdrl_train.config import DataConfig
from cdrl_train.data.fit import Fit
from cdrl_train.data.folder import read_folder
from cdrl_train.data.image_set import IN_MEMORY, ImageSet
from cdrl_train.data.npz import read_npz
from cdrl_train.data.registry import SOURCES, source_help


def load_images(
    source: str,
    split: str = "train",
    *,
    attributes: Sequence[str] | None = None,
    in_memory: int = IN_MEMORY,
    channels: int | None = None,
    grey: bool = False,
    fit: Fit | None = None,
) -> ImageSet:
    """Read a data set.

    Args:
        source: the name of a data set in `SOURCES`, or a path:

            - ``FILE.npz`` with ``train_images`` and ``train_labels``, and the same for ``test``; or with
              JPEGs instead of pixels; see `cdrl_train.data.npz.read_npz`;
            - a folder of images, in one sub-folder per class or without sub-folders; see
              `cdrl_train.data.folder.read_folder`;
            - ``torchvision:FashionMNIST``, ``MNIST``, ``CIFAR10`` or ``CelebA``. The files lie in
              ``data``, or in ROOT with ``torchvision:NAME:ROOT``; torchvision downloads missing ones;
            - ``imagenet32:FOLDER``, the ``.npz`` batches of the downsampled ImageNet;
            - ``checkerboard``, points of the plane as images of two pixels;
            - ``plane:NAME``, draws of a density there: clusters, circles, pinwheel or bimodal;
            - ``coloured:SOURCE``, Fashion-MNIST from SOURCE in colour. Its held-out pairs occur only in
              the test split.
        split: "train" or "test"; a folder without such sub-folders has the same images for both.
        attributes: the names of the attributes to keep as labels; None keeps all, () keeps none.
        in_memory: the most bytes of pixels to hold in memory; larger sets are mapped from a disk.
        channels: 1 or 3, for instance those of a model; grey images fit both. None: those of the data.
        grey: make grey images of coloured ones.
        fit: how images get one size; None: they keep their own.

    Returns:
        (N, C, H, W) uint8 images with (N, A) labels.

    Raises:
        InputError: there are no such data, or they are damaged, or lack an attribute.
    """
    data = _read(source, split, in_memory, channels, grey, fit)
    try:
        data = replace(data, images=to_channels(data.images, channels, grey))
    except InputError as error:
        raise InputError(f"{source}: {error}") from None
    channels, height, width = data.images.shape[1:]
    if channels not in MODES or not height or not width:
        raise InputError(
            f"{source}: expected images of {' or '.join(map(str, MODES))} channels and at least one "
            f"pixel, got {channels} channels of {height} x {width}"
        )
    if fit is not None:
        data = replace(data, images=fit.images(data.images))
    return data.with_attributes(attributes)


def fit_of(model: CDRLModel) -> Fit | None:
    """How the images of a model got their size in training; None if they were not scaled."""
    data: Any = model.training.get("config")
    data = data.get("data") if isinstance(data, dict) else None
    if not isinstance(data, dict) or not data.get("image_size"):
        return None
    return Fit(model.image.shape[1:], "pad" if data.get("resize") == "pad" else "crop")


def load_for(source: str, config: DataConfig) -> ImageSet:
    """The images of a run, without the classes that it holds out; see `load_images`."""
    data = load_images(
        source,
        in_memory=config.in_memory_mib * 2**20,
        grey=config.grey,
        fit=None if config.image_size is None else Fit(config.image_size, config.resize),
    )
    return _chosen(data, config)


def _chosen(data: ImageSet, config: DataConfig) -> ImageSet:
    """The images and the labels of a run, of all that its data have."""
    if config.hold_out:
        data, _ = data.split_off(config.classes_out)
    return data.with_attributes(config.attributes)


def without_held_out(data: ImageSet, model: CDRLModel) -> tuple[ImageSet, ImageSet | None]:
    """The images of classes that a model may have seen, and those of the classes held out in training.

    The model's training record names the classes. The second set is None if there were none, or if the
    data do not have them.
    """
    classes = held_out(model)
    for attribute in data.attributes:
        if classes and set(classes) <= set(attribute.values):
            return data.split_off(classes)
    return data, None


def held_out(model: CDRLModel) -> tuple[str, ...]:
    """The names of the classes that were left out when a model was trained."""
    names = model.training.get("held_out_classes")
    return tuple(map(str, names)) if isinstance(names, list | tuple) else ()


def _read(
    source: str, split: str, in_memory: int, channels: int | None, grey: bool, fit: Fit | None
) -> ImageSet:
    name, rest = split_source(source)
    if name:
        return SOURCES[name].read(rest, split, in_memory)
    path = Path(source)
    if source and path.is_dir():
        return read_folder(
            path, split, in_memory, channels if channels in MODES else None, grey, fit
        )
    if path.suffix == ".npz" and path.is_file():
        return read_npz(path, split, in_memory)
    hint = did_you_mean(source, SOURCES)
    raise InputError(f"no data at {source!r}: expected {source_help()}{hint}")


def split_source(source: str) -> tuple[str, str]:
    """The name in `SOURCES` and the text after its colon; the name of a path is ""."""
    names = [name for name in SOURCES if f"{source}:".startswith(f"{name}:")]
    name = max(names, key=len, default="")
    return name, source[len(name) + 1 :] if name else source


def data_name(source: str) -> str:
    """The data set as a model card shows it: without the folders of this machine."""
    name, rest = split_source(source)
    place = SOURCES[name].display_name(rest) if name else Path(source).resolve().name
    return shown(":".join(filter(None, [name, place])))


def empty(source: str) -> ImageSet | None:
    """A set without images that has the shape and attributes of a source; None if only its files tell."""
    name, rest = split_source(source)
    return SOURCES[name].empty(rest) if name else None


def stand_in(source: str, config: DataConfig) -> ImageSet:
    """A set of the shape and attributes of a run's data; it has the images only if they must be read.

    Raises:
        InputError: as for `load_images`.
    """
    data = empty(source)
    if data is None:
        return load_for(source, config)
    images = to_channels(data.images, None, config.grey)
    if config.image_size is not None:
        images = Fit(config.image_size).images(images)
    return _chosen(replace(data, images=images), config)


def expected(source: str, config: DataConfig) -> tuple[ImageShape, tuple[int, ...]]:
    """The shape of one image and how many values each attribute has; see `stand_in`."""
    data = stand_in(source, config)
    return ImageShape(*data.images.shape[1:]), data.num_classes
