"""Images and their labels, in memory or mapped from a disk."""

from __future__ import annotations

import hashlib
import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, distributed
from tqdm import tqdm

from cdrl_infer.errors import InputError, did_you_mean, listing
from cdrl_infer.files import replaced_file
from cdrl_infer.model import Attribute, ImageShape

IN_MEMORY = 2**31  # bytes; larger sets are mapped from a disk by default


@dataclass(frozen=True)
class ImageSet:
    """Images and labels.

    Args:
        images: (N, C, H, W) uint8 on the CPU, in memory or mapped from a disk (see `collect`).
        labels: (N, A) int64 indices from 0, one column per attribute; None without attributes.
        attributes: the names and values of the columns.
        held_out: the names of classes whose images were left out, see `split_off`.
    """

    images: Tensor
    labels: Tensor | None = None
    attributes: tuple[Attribute, ...] = ()
    held_out: tuple[str, ...] = ()

    def scaled(self, index: Tensor | slice) -> Tensor:
        """(n, C, H, W) float32 in [-1, 1]: some of the images, on the CPU."""
        return self.images[index].float() / 127.5 - 1

    def __len__(self) -> int:
        return len(self.images)

    @property
    def num_classes(self) -> tuple[int, ...]:
        """How many values each attribute has."""
        return tuple(len(attribute.values) for attribute in self.attributes)

    def with_attributes(self, names: Sequence[str] | None) -> ImageSet:
        """The same images with only these attributes, in this order; None keeps all of them.

        Raises:
            InputError: the set has no such attribute.
        """
        if names is None:
            return self
        known = [attribute.name for attribute in self.attributes]
        for name in names:
            if name not in known:
                raise InputError(
                    f"the data have no attribute {name!r}, expected one of {listing(known) or 'none'}"
                    f"{did_you_mean(name, known)}"
                )
        if self.labels is None or not names:
            return ImageSet(self.images, held_out=self.held_out)
        columns = [known.index(name) for name in names]
        chosen = tuple(self.attributes[k] for k in columns)
        return ImageSet(self.images, self.labels[:, columns], chosen, self.held_out)

    def split_off(self, classes: Sequence[str | int]) -> tuple[ImageSet, ImageSet]:
        """The images of all other classes, and those of these classes.

        The first set no longer has the classes among its attribute's values. The classes are those of the
        first attribute that has them.

        Args:
            classes: names, or numbers from 0 of the first attribute's values; a name counts before a
                number, so 9 is the digit 9 wherever there is one.

        Raises:
            InputError: the set has no such class, or all images are of these classes.
        """
        names = [str(one) for one in classes]
        column, gone = self._found(names, classes)
        values = self.attributes[column].values
        rest = tuple(value for k, value in enumerate(values) if k not in gone)
        if not rest:
            raise InputError(
                f"data.hold_out names all classes of {self.attributes[column].name!r}; leave some to "
                "train on"
            )
        assert self.labels is not None  # it has attributes
        own = self.labels[:, column]
        out = torch.isin(own, torch.tensor(sorted(gone)))
        place = torch.tensor([rest.index(v) if v in rest else -1 for v in values])
        labels = self.labels.clone()
        labels[:, column] = place[own]
        kept = Attribute(self.attributes[column].name, rest)
        attributes = (*self.attributes[:column], kept, *self.attributes[column + 1 :])
        return (
            ImageSet(
                self.images[~out], labels[~out], attributes, tuple(values[k] for k in sorted(gone))
            ),
            ImageSet(self.images[out], self.labels[out], self.attributes),
        )

    def _found(self, names: Sequence[str], classes: Sequence[str | int]) -> tuple[int, set[int]]:
        """The attribute that has all these classes, and their numbers there."""
        for column, attribute in enumerate(self.attributes):
            if all(name in attribute.values for name in names):
                return column, {attribute.values.index(name) for name in names}
        known = self.attributes[0].values if self.attributes else ()
        for one in classes:
            if str(one) not in known and not (type(one) is int and 0 <= one < len(known)):
                raise InputError(
                    f"data.hold_out: the data have no class {one!r}, expected one of "
                    f"{listing(known, 20) or 'none: they have no labels'}{did_you_mean(str(one), known)}"
                )
        return 0, {known.index(str(c)) if str(c) in known else int(c) for c in classes}

    def fingerprint(self) -> str:
        """16 hexadecimal digits that depend on the pixels, the labels and their names."""
        sha = hashlib.sha256(repr((tuple(self.images.shape), self.attributes)).encode())
        for tensor in (self.images, self.labels):
            if tensor is not None:
                sha.update(tensor.cpu().contiguous().numpy().data)
        return sha.hexdigest()[:16]


def announce(text: str) -> None:
    """Print a line about a set on stderr; of several processes the main one prints."""
    if not (distributed.is_available() and distributed.is_initialized() and distributed.get_rank()):
        tqdm.write(text, file=sys.stderr)


def class_attribute(names: Iterable[object]) -> tuple[Attribute]:
    """The attributes of a set whose images have one class each."""
    return (Attribute("class", tuple(map(str, names))),)


def no_images(shape: ImageShape, attributes: tuple[Attribute, ...] = ()) -> ImageSet:
    """A set without images, for what depends only on their shape and attributes."""
    images = torch.zeros(0, *shape.shape, dtype=torch.uint8)
    labels = torch.zeros(0, len(attributes)).long() if attributes else None
    return ImageSet(images, labels, attributes)


def collect(
    shape: tuple[int, int, int, int],
    parts: Iterable[NDArray[np.uint8]],
    *,
    sources: Sequence[Path],
    split: str,
    in_memory: int,
) -> Tensor:
    """Join images to one tensor: in memory or, if they are large, mapped from a copy on the disk.

    The copy is written once, beside the first source. Its name depends on the names, sizes and times of
    the sources, so changed sources get a new copy.

    Args:
        shape: (N, C, H, W) of all images.
        parts: (n, C, H, W) each, read one after the other.
        sources: the files that the parts come from.
        split: "train" or "test".
        in_memory: the most bytes to hold in memory.

    Returns:
        (N, C, H, W) uint8.

    Raises:
        InputError: the copy cannot be written.
    """
    size = math.prod(shape)
    if size <= in_memory:
        images, at = np.empty(shape, dtype=np.uint8), 0
        for part in parts:
            images[at : at + len(part)] = part
            at += len(part)
        return torch.from_numpy(images)
    facts = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in sources]
    key = hashlib.sha256(repr((shape, split, facts)).encode()).hexdigest()[:16]
    copy = sources[0].parent / f"cdrl-{split}-{key}.npy"
    if not copy.is_file():
        try:
            _write(copy, shape, parts)
        except OSError as error:
            raise InputError(
                f"the images take {size / 2**20:,.0f} MiB, more than data.in_memory_mib, so they are "
                f"mapped from a copy, which cannot be written to {copy.parent} ({error.strerror}); "
                "make room there, or raise data.in_memory_mib"
            ) from error
    # Copy on write: torch wants writable memory, and the file must not change.
    return torch.from_numpy(np.load(copy, mmap_mode="c", allow_pickle=False))


def _write(file: Path, shape: tuple[int, ...], parts: Iterable[NDArray[np.uint8]]) -> None:
    """Write a ``.npy`` file part by part; a full disk is then an error (in a memory map, a crash)."""
    header: dict[str, Any] = {"shape": shape, "fortran_order": False, "descr": "|u1"}
    with replaced_file(file) as beside, open(beside, "wb") as stream:
        np.lib.format.write_array_header_1_0(stream, header)
        for part in parts:
            stream.write(np.ascontiguousarray(part).data)


def same_labels(ours: Sequence[Attribute], data: ImageSet) -> bool:
    """Whether the data have labels, and the classes are the model's, by name or by number."""
    theirs = data.attributes
    same = len(ours) == len(theirs) and all(map(_same_classes, ours, theirs))
    return data.labels is not None and same


def _same_classes(a: Attribute, b: Attribute) -> bool:
    numbers = tuple(map(str, range(len(b.values))))
    numbered = numbers in (tuple(a.values), tuple(b.values))
    return tuple(a.values) == tuple(b.values) or (numbered and len(a.values) == len(b.values))
