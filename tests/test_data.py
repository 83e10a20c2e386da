"""Data sets from files and by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cdrl_infer.errors import InputError
from cdrl_infer.model import Attribute, ImageShape
from cdrl_train.config import DataConfig
from cdrl_train.data import SOURCES, Source
from cdrl_train.data.idx import FASHION_MNIST_CLASSES
from cdrl_train.data.image_set import ImageSet
from cdrl_train.data.sources import data_name, expected, load_images

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 4, 5), dtype=np.uint8)
LABELS = np.arange(12, dtype=np.uint8) % 10


def write_npz(path: Path, **arrays: np.ndarray) -> str:
    np.savez(path, **arrays)
    return str(path)


def test_npz_keeps_pixels_labels_and_names(tmp_path: Path) -> None:
    source = write_npz(
        tmp_path / "fashion_mnist.npz",
        train_images=PIXELS,
        train_labels=LABELS,
        test_images=PIXELS[:3],
        test_labels=LABELS[:3],
    )
    data = load_images(source)
    assert data.images.shape == (12, 1, 4, 5)
    assert torch.equal(data.images[:, 0], torch.from_numpy(PIXELS))
    assert data.labels is not None and data.labels.tolist() == LABELS[:, None].tolist()
    assert data.attributes == (Attribute("class", FASHION_MNIST_CLASSES),)
    assert len(load_images(source, "test")) == 3


def test_npz_of_colour_images_without_labels(tmp_path: Path) -> None:
    colour = np.stack([PIXELS] * 3, axis=-1)
    data = load_images(write_npz(tmp_path / "c.npz", train_images=colour))
    assert data.images.shape == (12, 3, 4, 5)
    assert torch.equal(data.images[:, 2], torch.from_numpy(PIXELS))
    assert data.labels is None and data.attributes == ()


def test_folder_of_classes(tmp_path: Path) -> None:
    for k, name in enumerate(["bag", "coat", "coat"]):
        (tmp_path / name).mkdir(exist_ok=True)
        Image.fromarray(PIXELS[k]).save(tmp_path / name / f"{k}.png")
    data = load_images(str(tmp_path))
    assert data.attributes == (Attribute("class", ("bag", "coat")),) and data.num_classes == (2,)
    assert data.labels is not None and data.labels.tolist() == [[0], [1], [1]]
    assert torch.equal(data.images[:, 0], torch.from_numpy(PIXELS[:3]))


def test_flat_folder_is_unlabelled(tmp_path: Path) -> None:
    Image.fromarray(np.stack([*PIXELS[:3]], -1)).save(tmp_path / "a.png")
    data = load_images(str(tmp_path))
    assert data.images.shape == (1, 3, 4, 5) and data.labels is None


def test_bad_sources_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04 not a zip")
    (tmp_path / "sizes").mkdir()
    Image.fromarray(PIXELS[0]).save(tmp_path / "sizes" / "a.png")
    Image.fromarray(PIXELS[0].T.copy()).save(tmp_path / "sizes" / "b.png")
    (tmp_path / "junk").mkdir()
    (tmp_path / "junk" / "a.png").write_bytes(b"no picture")
    (tmp_path / "nothing.npz").write_bytes(b"")
    with (tmp_path / "single.npz").open("wb") as file:
        np.save(file, PIXELS)
    rgba = np.stack([PIXELS] * 4, axis=-1)
    cases = {
        str(tmp_path / "nowhere.npz"): "no data at",
        str(tmp_path / "empty"): "empty: no images; looked for",
        str(tmp_path / "broken.npz"): "cannot be read",
        str(tmp_path / "sizes"): "one size",
        str(tmp_path / "junk"): "cannot be read as an image",
        "torchvision:CIFAR3": "no data at .*of the names .*did you mean 'torchvision:CIFAR10'",
        "": "no data at ''",
        write_npz(tmp_path / "float.npz", train_images=PIXELS / 255): "uint8",
        write_npz(tmp_path / "names.npz", images=PIXELS): "train_images",
        write_npz(tmp_path / "short.npz", train_images=PIXELS, train_labels=LABELS[:3]): "labels",
        write_npz(tmp_path / "objects.npz", train_images=np.array([None])): "cannot be read",
        str(tmp_path / "nothing.npz"): "cannot be read as .npz",
        str(tmp_path / "single.npz"): "an array without a name; write it with np.savez",
        write_npz(
            tmp_path / "negative.npz", train_images=PIXELS, train_labels=LABELS.astype(int) - 1
        ): "'train_labels' to be classes, which count from 0, got -1",
        write_npz(tmp_path / "flat.npz", train_images=PIXELS[:, :0]): "1 channels of 0 x 5",
        write_npz(
            tmp_path / "rgba.npz", train_images=rgba
        ): "rgba.npz: expected an opaque picture, got transparent",
        write_npz(tmp_path / "none.npz", train_images=PIXELS[:0]): "uint8",
    }
    for source, message in cases.items():
        with pytest.raises(InputError, match=message) as caught:
            load_images(source)
        assert "\n" not in str(caught.value), source


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_pixels_of_more_than_8_bits_are_refused(tmp_path: Path, mode: str) -> None:
    kind = {"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]
    picture = Image.fromarray(PIXELS[0].astype(kind) * 200)
    assert picture.mode == mode
    # Pillow reads a TIFF of any mode; what counts is the content, not the name.
    picture.save(tmp_path / "a.png", format="PNG" if mode == "I;16" else "TIFF")
    with pytest.raises(InputError, match=r"a.png: expected 8 bits per channel, got mode '[IF]"):
        load_images(str(tmp_path))


@pytest.mark.parametrize(("limit", "what"), [(15, "warning"), (5, "error")])
def test_images_too_large_to_be_meant_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int, what: str
) -> None:
    Image.fromarray(PIXELS[0]).save(tmp_path / "a.png")  # 20 pixels; an error from 2 x limit on
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(InputError, match=r"a.png cannot be read as an image: .*bomb") as caught:
        load_images(str(tmp_path))
    assert what.capitalize() in type(caught.value.__cause__).__name__


def test_fingerprint_tells_sets_apart_by_all_they_hold() -> None:
    images = torch.from_numpy(PIXELS)[:, None]
    labels, names = torch.arange(12)[:, None] % 2, (Attribute("class", ("a", "b")),)
    base = ImageSet(images, labels, names)
    assert base.fingerprint() == ImageSet(images.clone(), labels.clone(), names).fingerprint()
    assert base.fingerprint() == ImageSet(images.mT.contiguous().mT, labels, names).fingerprint()
    changed = images.clone()
    changed[-1, 0, -1, -1] ^= 1
    others = [
        base,
        ImageSet(changed, labels, names),
        ImageSet(images.reshape(12, 1, 5, 4), labels, names),
        ImageSet(images, 1 - labels, names),
        ImageSet(images, labels, (Attribute("class", ("a", "c")),)),
        ImageSet(images, labels, (Attribute("kind", ("a", "b")),)),
        ImageSet(images),
    ]
    assert len({data.fingerprint() for data in others}) == len(others)


def test_a_changed_file_is_copied_anew(tmp_path: Path) -> None:
    source = write_npz(tmp_path / "a.npz", train_images=PIXELS)
    load_images(source, in_memory=0)
    write_npz(tmp_path / "a.npz", train_images=255 - PIXELS)
    assert np.array_equal(load_images(source, in_memory=0).images[:, 0], 255 - PIXELS)


def test_a_copy_that_cannot_be_written_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_npz(tmp_path / "a.npz", train_images=PIXELS)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np.lib.format, "write_array_header_1_0", full)
    with pytest.raises(InputError, match=r"in_memory_mib.*No space left"):
        load_images(source, in_memory=0)
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


def test_shapes_of_other_sets_are_read(tmp_path: Path) -> None:
    source = write_npz(tmp_path / "a.npz", train_images=PIXELS, train_labels=LABELS)
    assert expected(source, DataConfig()) == (ImageShape(1, 4, 5), (10,))


class Glyphs(Source):
    """A data set that someone adds: the letter given after the colon, as a pixel."""

    def read(self, rest: str, split: str, in_memory: int) -> ImageSet:
        return ImageSet(
            torch.full((2 if split == "train" else 1, 1, 1, 1), ord(rest or "a")).byte()
        )


def test_a_data_set_is_added_by_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SOURCES, "_found", dict(SOURCES._found))  # forget it after the test
    SOURCES.register("glyphs", Glyphs())
    assert load_images("glyphs").images.flatten().tolist() == [97, 97]
    assert load_images("glyphs:b", "test").images.flatten().tolist() == [98]
    assert expected("glyphs", DataConfig()) == (ImageShape(1, 1, 1), ())
    assert data_name("glyphs:/a/b") == "glyphs:b"
    with pytest.raises(InputError, match=r"coloured, glyphs; did you mean 'glyphs'"):
        load_images("glyph")


def test_files_named_after_a_set_have_its_classes(tmp_path: Path) -> None:
    source = write_npz(tmp_path / "CIFAR-10.npz", train_images=PIXELS, train_labels=LABELS)
    assert load_images(source).attributes[0].values[0] == "airplane"
