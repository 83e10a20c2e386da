"""CelebA: faces with 40 attributes, from pictures and two lists."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from cdrl_infer.errors import InputError
from cdrl_infer.images import open_image
from cdrl_infer.model import Attribute, ImageShape
from cdrl_train.data.image_set import ImageSet, collect
from cdrl_train.data.published import Published, read_rows

CROP, SIZE = 140, 64  # of 178 x 218 aligned pictures, the usual cut (Song & Ermon 2019)
LISTS = ("list_attr_celeba.txt", "list_eval_partition.txt")
ATTRIBUTES = """
    5_o_Clock_Shadow Arched_Eyebrows Attractive Bags_Under_Eyes Bald Bangs Big_Lips Big_Nose Black_Hair
    Blond_Hair Blurry Brown_Hair Bushy_Eyebrows Chubby Double_Chin Eyeglasses Goatee Gray_Hair
    Heavy_Makeup High_Cheekbones Male Mouth_Slightly_Open Mustache Narrow_Eyes No_Beard Oval_Face
    Pale_Skin Pointy_Nose Receding_Hairline Rosy_Cheeks Sideburns Smiling Straight_Hair Wavy_Hair
    Wearing_Earrings Wearing_Hat Wearing_Lipstick Wearing_Necklace Wearing_Necktie Young
"""


class CelebA(Published):
    """The middle 140 x 140 pixels of each aligned picture, scaled to 64 x 64."""

    def read_files(self, root: Path, split: str, in_memory: int) -> ImageSet:
        """Read ``root/celeba``."""
        folder = root / "celeba"
        pictures = folder / "img_align_celeba"
        lists = [folder / name for name in LISTS]
        missing = [path for path in lists if not path.is_file()]
        missing = missing if pictures.is_dir() else [pictures, *missing]
        if missing:
            command = f"unzip img_align_celeba.zip -d {folder}"
            self.download(root, missing[0], command, split="all")
        names, attributes, labels = _read_lists(folder, "0" if split == "train" else "2")

        def parts() -> Iterator[NDArray[np.uint8]]:
            for name in names:
                yield _face(pictures / name)[None]

        sources = [*lists, pictures]
        shape = (len(names), 3, SIZE, SIZE)
        images = collect(shape, parts(), sources=sources, split=split, in_memory=in_memory)
        return ImageSet(images, labels, _attributes(attributes))


def _read_lists(folder: Path, wanted: str) -> tuple[list[str], list[str], torch.Tensor]:
    """The names of the N pictures in a part, the names of the A attributes, and the labels (N, A)."""
    marks, partition = (folder / name for name in LISTS)
    names = [row[0] for row in read_rows(partition) if row[1:] == [wanted]]
    rows = read_rows(marks)
    attributes = rows[1] if len(rows) > 1 else []
    values = {name: row for name, *row in rows[2:] if set(row) <= {"1", "-1"}}
    incomplete = [name for name in names if not 0 < len(attributes) == len(values.get(name, ()))]
    if not names or incomplete:
        fault = f"{incomplete[0]} has others" if names else "there are no pictures"
        raise InputError(
            f"{marks}: expected {len(attributes)} attributes of each picture in {partition.name}, but "
            f"{fault}; download both again"
        )
    labels = torch.tensor([[mark == "1" for mark in values[name]] for name in names]).long()
    return names, attributes, labels


def _attributes(names: Iterable[str]) -> tuple[Attribute, ...]:
    """With the values "not Male" and "Male", a concept reads as ``Smiling & ~Male``."""
    return tuple(Attribute(name, (f"not {name}", name)) for name in names)


def _face(file: Path) -> NDArray[np.uint8]:
    """(3, SIZE, SIZE)."""
    picture = open_image(file, 3)
    left, top = (picture.width - CROP) // 2, (picture.height - CROP) // 2
    face = picture.crop((left, top, left + CROP, top + CROP))
    small = face.resize((SIZE, SIZE), Image.Resampling.BILINEAR)
    return np.asarray(small).transpose(2, 0, 1)


CELEBA = CelebA(
    "CelebA",
    "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html",
    ImageShape(3, SIZE, SIZE),
    _attributes(ATTRIBUTES.split()),
)
