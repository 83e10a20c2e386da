"""Folders and ``.npz`` files as people have them."""

from __future__ import annotations

import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_own_images import GREY, PIXELS, RGB, stored

from cdrl_infer.errors import InputError
from cdrl_infer.images import find_images, image_files
from cdrl_train.data.sources import load_images

# -- folders -------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return classes(tmp_path / "mine")


def classes(root: Path) -> Path:
    for name in ("coat", "shoe"):
        for k in range(3):
            stored(GREY, root / name, f"{k}.png")
    return root


def linked(root: Path) -> None:
    shutil.move(root / "shoe", root.parent / "elsewhere")
    (root / "shoe").symlink_to(root.parent / "elsewhere")
    (root / "coat" / "loop").symlink_to(root)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda root: None, ""),
        (linked, "; ignored: 1 link to a folder that is read already"),
        (lambda root: stored(GREY, root / ".ipynb_checkpoints"), "; ignored: 1 hidden or of"),
        (lambda root: stored(GREY, root / "coat" / ".Trash-1000" / "files"), "; ignored: 1 hidden"),
        (lambda root: stored(GREY, root / "@eaDir" / "0.png"), "; ignored: 1 hidden or of"),
        (
            lambda root: (root / "coat" / "._0.png").write_bytes(b"\0\5\x16\7"),
            "; ignored: 1 hidden",
        ),
        (lambda root: (root / "coat" / "x.png").symlink_to("gone"), "; ignored: 1 broken link"),
        (lambda root: os.mkfifo(root / "coat" / "x.png"), "; ignored: 1 not a regular file"),
        (lambda root: (root / "hat").mkdir(), r"; ignored: 1 folder without images \(hat\)"),
        (lambda root: (root / "notes.txt").write_text(""), "; ignored: 1 .txt"),
        (lambda root: stored(GREY, root), "; ignored: 1 beside the folders of the classes"),
        (lambda root: [p.rename(p.with_suffix(".JFIF")) for p in image_files(root / "shoe")], ""),
    ],
)
def test_folders_as_people_have_them(
    folder: Path, change: Callable[[Path], Any], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    change(folder)
    data = load_images(str(folder))
    assert data.attributes[0].values == ("coat", "shoe") and data.labels is not None
    assert data.labels.flatten().tolist() == [0, 0, 0, 1, 1, 1]
    line = capsys.readouterr().err
    assert line.startswith(f"{folder}: 6 images; coat 3, shoe 3{told}".replace("\\", ""))
    assert line.count("\n") == 1
    beside = "beside" in told
    assert len(find_images(folder).files) == 6 + beside  # scoring takes these, too


def test_folders_for_the_splits(tmp_path: Path) -> None:
    classes(tmp_path / "Train")
    stored(RGB, tmp_path / "val" / "shoe")
    test = load_images(str(tmp_path), "test")
    assert len(load_images(str(tmp_path))) == 6 and len(test) == 1
    assert test.attributes[0].values == ("coat", "shoe") and int(test.labels) == 1  # type: ignore[arg-type]
    shutil.rmtree(tmp_path / "val")
    with pytest.raises(InputError, match=r"a folder test, .* for the test split, found only Train"):
        load_images(str(tmp_path), "test")


def test_most_pictures_beside_the_folders_means_no_classes(tmp_path: Path) -> None:
    for k in range(3):
        stored(GREY, tmp_path, f"{k}.png")
    stored(GREY, tmp_path / "old")
    data = load_images(str(tmp_path))
    assert len(data) == 4 and data.labels is None


# -- labels and archives -------------------------------------------------------------------------


def npz(path: Path, **arrays: np.ndarray) -> str:
    np.savez(path / "a.npz", **{"train_images": np.stack([PIXELS[0]] * 4), **arrays})
    return str(path / "a.npz")


@pytest.mark.parametrize(
    ("labels", "values", "indices"),
    [
        (np.array([0, 1, 2, 255]), "0 1 2 255", [0, 1, 2, 3]),
        (np.array([7, 10**9, 7, 3]), "3 7 1000000000", [1, 2, 1, 0]),
        (np.array([[0], [1], [1], [0]], np.uint8), "0 1", [0, 1, 1, 0]),
        (np.array([0, 1, 254, 255], np.uint8), "0 1 254 255", [0, 1, 2, 3]),
    ],
)
def test_classes_are_the_distinct_labels(
    tmp_path: Path, labels: np.ndarray, values: str, indices: list[int]
) -> None:
    test = {"test_images": PIXELS[:1], "test_labels": labels[:1]}
    source = npz(tmp_path, train_labels=labels, **test)
    data = load_images(source)
    assert data.attributes[0].values == tuple(values.split()) and data.labels is not None
    assert data.labels.flatten().tolist() == indices
    assert load_images(source, "test").attributes == data.attributes


@pytest.mark.parametrize(
    ("labels", "fault"),
    [
        (np.array([0, 1, 2, 255], np.uint8), r"got 255 \(-1 as unsigned\?\)"),
        (np.array([0, 1, 2, 2**64 - 1], np.uint64), "got 18446744073709551615"),
        (np.array([0, 1, 2, 2**63], np.uint64), "got 9223372036854775808"),
        (np.array([0, 1, 2, -1]), "got -1"),
        (np.eye(4), r"\(N,\) integers, got \(4, 4\) float64"),
    ],
)
def test_labels_that_are_no_classes_are_refused(
    tmp_path: Path, labels: np.ndarray, fault: str
) -> None:
    with pytest.raises(InputError, match=fault):
        load_images(npz(tmp_path, train_labels=labels))


def test_images_with_channels_first(tmp_path: Path) -> None:
    data = load_images(npz(tmp_path, train_images=PIXELS[:, None]))
    assert np.array_equal(data.images[:, 0], PIXELS)


def entry(content: bytes, claim: tuple[int, ...] | None = None) -> bytes:
    """A ``.npy`` file; its header claims this shape."""
    if claim is None:
        return content
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {claim}}}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + content


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (entry(b"no array"), "cannot be read as .npz"),
        (entry(b"0123", (2**46, 1, 1)), "not a whole array"),
        (entry(bytes(784 * 400_000), (400_000, 28, 28)), "to unpack to at most 500 times the size"),
        ("encrypted", "cannot be read as .npz: .*encrypted"),
        ("method", "cannot be read as .npz: .*compression method"),
    ],
)
def test_archives_are_checked_before_they_are_unpacked(
    tmp_path: Path, content: bytes | str, fault: str
) -> None:
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("train_images.npy", content)
    if isinstance(content, str):
        whole = bytearray(path.read_bytes())
        central = whole.index(b"PK\1\2")
        for at in (6, central + 8) if content == "encrypted" else (8, central + 10):
            whole[at] = 1 if content == "encrypted" else 99
        path.write_bytes(whole)
    with pytest.raises(InputError, match=fault) as caught:
        load_images(str(path))
    assert "\n" not in str(caught.value)
