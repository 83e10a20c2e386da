"""What public data sets have in common: their files are read here and downloaded by torchvision.

No reader unpickles a file: MNIST and Fashion-MNIST are IDX, CIFAR-10 is the binary version (torchvision
checks and reads the pickled one), ImageNet-32 is ``.npz``, CelebA is pictures and text.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cdrl_infer.errors import InputError, shown
from cdrl_infer.model import Attribute, ImageShape
from cdrl_infer.optional import needed
from cdrl_train.data.image_set import ImageSet, no_images
from cdrl_train.data.registry import Source

MAX_BYTES = 2**28  # of a file, unpacked; the largest has 47 MB


@dataclass(frozen=True)
class Published(Source):
    """A public data set whose shape and attributes are known without its files.

    Args:
        name: the class in `torchvision.datasets` that downloads it, if there is one.
        home: the address that it comes from.
        image: the shape of one image.
        attributes: the attributes of its labels.
        root: the folder of its files, unless the user names another.
    """

    name: str
    home: str
    image: ImageShape
    attributes: tuple[Attribute, ...]
    root: str = "data"

    @abstractmethod
    def read_files(self, root: Path, split: str, in_memory: int) -> ImageSet:
        """Read the files below ``root``; arguments and errors as for `read`."""

    def read(self, rest: str, split: str, in_memory: int) -> ImageSet:
        """Read the files in the folder that ``rest`` names, or in the usual one."""
        return self.read_files(Path(rest or self.root), split, in_memory)

    def empty(self, rest: str) -> ImageSet:
        """No images, of the known shape and attributes."""
        return no_images(self.image, self.attributes)

    def display_name(self, rest: str) -> str:
        """Nothing: the name says which set it is, wherever the files lie."""
        return ""

    def missing(self, file: Path, command: str) -> InputError:
        """The error for a file that the user can get with a command."""
        return InputError(f"no {file}: it comes from {self.home}; get it by: {command}")

    def download(self, root: Path, file: Path, command: str, **options: Any) -> Any:
        """torchvision's data set, which downloads its files into ``root``.

        Args:
            root: the folder to download into.
            file: a missing file, for the error.
            command: how the user can get the file without torchvision, for the error.
            **options: arguments of torchvision's class.

        Raises:
            InputError: torchvision cannot be imported, or the download failed.
        """
        try:
            with needed("torchvision", f"downloading {self.name} needs", "train"):
                from torchvision import datasets
        except InputError as error:
            raise self.missing(file, f"{command}  ({error})") from error
        try:
            return getattr(datasets, self.name)(str(root), download=True, **options)
        except (RuntimeError, OSError) as error:
            raise InputError(
                f"torchvision could not download {self.name} into {str(root)!r} ({shown(error)}); "
                f"get {file} from {self.home} by: {command}"
            ) from error

    def labelled(self, images: torch.Tensor, labels: NDArray[Any], file: Path) -> ImageSet:
        """Images with labels (N,) from ``file``, checked to be classes of this set."""
        count = len(self.attributes[0].values)
        if len(labels) and not (int(labels.min()) >= 0 and int(labels.max()) < count):
            raise InputError(
                f"{file}: expected labels of {count} classes, found "
                f"{int(labels.min())} … {int(labels.max())}; download it again"
            )
        targets = torch.from_numpy(np.asarray(labels).astype(np.int64))
        return ImageSet(images, targets[:, None], self.attributes)


def read_bytes(file: Path) -> bytes:
    """The content of a file of a public data set.

    Raises:
        InputError: it is no regular file of at most `MAX_BYTES`, or cannot be read.
    """
    try:
        if not file.is_file() or file.stat().st_size > MAX_BYTES:
            raise OSError(f"expected a regular file of at most {MAX_BYTES:,} bytes")
        return file.read_bytes()
    except OSError as error:
        raise InputError(f"{file} cannot be read ({error}); download it again") from None


def read_rows(file: Path) -> list[list[str]]:
    """The words of each line in a text file that are not empty.

    Raises:
        InputError: see `read_bytes`; or it is no text in UTF-8.
    """
    try:
        lines = read_bytes(file).decode("utf-8").splitlines()
    except UnicodeDecodeError:
        raise InputError(f"{file}: expected text in UTF-8; download it again") from None
    return [words for words in map(str.split, lines) if words]
