"""Pictures that a ``.npz`` file holds as JPEGs."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cdrl_infer.errors import InputError
from cdrl_train.data import load_images
from cdrl_train.data.packed import END

START_OF_SCAN = b"\xff\xda"
CLASSES = 10


def jpeg(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=90)
    return file.getvalue()


def packed(count: int, shape: tuple[int, ...] = (8, 8, 3), seed: int = 0) -> dict[str, Any]:
    """The arrays of a set, and the pixels that Pillow makes of each whole JPEG."""
    rng = np.random.default_rng(seed)
    files = [jpeg(rng.integers(0, 256, shape, dtype=np.uint8)) for _ in range(count)]
    cut = files[0].index(START_OF_SCAN)
    assert {file[:cut] for file in files} == {files[0][:cut]} and files[0].endswith(END)
    scans = [file[cut : -len(END)] for file in files]
    return {
        "header": np.frombuffer(files[0][:cut], np.uint8),
        "scans": np.frombuffer(b"".join(scans), np.uint8),
        "offsets": np.cumsum([0, *map(len, scans)], dtype=np.uint32),
        "labels": (np.arange(count) % CLASSES).astype(np.uint8),
        "pixels": np.stack([np.asarray(Image.open(io.BytesIO(file))) for file in files]),
    }


def write(path: Path, train: dict[str, Any], test: dict[str, Any], **changes: Any) -> str:
    arrays = {"jpeg_header": train["header"]}
    for split, given in (("train", train), ("test", test)):
        arrays |= {f"{split}_{name}": given[name] for name in ("scans", "offsets", "labels")}
    arrays |= changes
    np.savez_compressed(path, **{name: a for name, a in arrays.items() if a is not None})
    return str(path)


def test_pictures_are_what_pillow_makes_of_each_file(tmp_path: Path) -> None:
    train, test = packed(1030), packed(11, seed=1)
    source = write(tmp_path / "cifar10_jpeg_packed.npz", train, test)
    for split, given in (("train", train), ("test", test)):
        data = load_images(source, split)
        assert (data.images.numpy() == given["pixels"].transpose(0, 3, 1, 2)).all()
        assert data.labels is not None and data.labels[:, 0].tolist() == given["labels"].tolist()
        assert data.attributes[0].values[3] == "cat"
    mapped = load_images(source, "test", in_memory=100).images  # from a copy on the disk
    assert (mapped.numpy() == test["pixels"].transpose(0, 3, 1, 2)).all()


def test_grey_pictures_without_labels(tmp_path: Path) -> None:
    grey = packed(3, (8, 16))
    source = write(tmp_path / "a.npz", grey, grey, train_labels=None, test_labels=None)
    data = load_images(source)
    assert data.labels is None and (data.images[:, 0].numpy() == grey["pixels"]).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_offsets": None}, "expected an array 'train_offsets' beside 'jpeg_header'"),
        ({"train_offsets": np.array([0, 9, 5])}, "integers that rise from 0 to"),
        ({"train_offsets": np.array([0])}, "integers that rise from 0 to"),
        ({"train_offsets": np.array([0.0, 9.0])}, "integers that rise from 0 to"),
        ({"train_scans": np.zeros((2, 2), np.uint8)}, r"'train_scans' \(bytes,\) uint8"),
        ({"jpeg_header": np.zeros(9, np.uint8)}, "picture 0 cannot be decoded"),
        ({"train_labels": np.arange(4)}, r"'train_labels' \(3,\) integers, got 4"),
    ],
)
def test_what_is_damaged_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    good = packed(3)
    with pytest.raises(InputError, match=message) as error:
        load_images(write(tmp_path / "a.npz", good, good, **changes))
    assert "\n" not in str(error.value)


def test_a_damaged_picture_is_named(tmp_path: Path) -> None:
    good = packed(3)
    cut = np.concatenate([good["offsets"][:2], good["offsets"][1:]])  # picture 1 has no bytes
    with pytest.raises(InputError, match="picture 1 cannot be decoded"):
        load_images(write(tmp_path / "a.npz", good, good, train_offsets=cut, train_labels=None))
