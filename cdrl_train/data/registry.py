"""Data sets by name, and what a data set must offer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING

from cdrl_infer.errors import listing
from cdrl_infer.registry import Registry

if TYPE_CHECKING:
    from cdrl_train.data.image_set import ImageSet


class Source(ABC):
    """A data set that a user names as ``NAME`` or ``NAME:REST``.

    ::

        class Glyphs(Source):
            def read(self, rest, split, in_memory):
                return ImageSet(draw_glyphs(split))

        SOURCES.register("glyphs", Glyphs())
    """

    @abstractmethod
    def read(self, rest: str, split: str, in_memory: int) -> ImageSet:
        """Read the images and labels.

        Args:
            rest: the text after ``NAME:``, for instance a folder; "" if the user gave none.
            split: "train" or "test".
            in_memory: the most bytes of pixels to hold in memory; see `image_set.collect`.

        Raises:
            InputError: the files are missing or damaged.
        """

    def empty(self, rest: str) -> ImageSet | None:
        """A set without images that has this set's shape and attributes; see `image_set.no_images`.

        A dry run uses it so that it does not need the files. None means that the files must be read.
        """
        return None

    def display_name(self, rest: str) -> str:
        """``rest`` as a model card shows it: without the folders of this machine."""
        return Path(rest).name


SOURCES: Registry[Source] = Registry(
    "data set",
    {
        "torchvision:FashionMNIST": "cdrl_train.data.idx:FASHION_MNIST",
        "torchvision:MNIST": "cdrl_train.data.idx:MNIST",
        "torchvision:CIFAR10": "cdrl_train.data.cifar10:CIFAR10",
        "torchvision:CelebA": "cdrl_train.data.celeba:CELEBA",
        "imagenet32": "cdrl_train.data.imagenet32:IMAGENET32",
        "checkerboard": "cdrl_train.data.checkerboard:CHECKERBOARD",
        "plane": "cdrl_train.data.plane:PLANE",
        "coloured": "cdrl_train.data.coloured:COLOURED",
    },
)


def source_help() -> str:
    """What a data source may be, in one phrase for help texts and errors."""
    names = listing(SOURCES, limit=50)
    return f"a .npz file, a folder of images, or NAME[:REST] with one of the names {names}"
