"""Data sets and the stream of batches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cdrl_infer.checkpoint import Attribute
from cdrl_infer.errors import InputError
from cdrl_train.config import DataConfig
from cdrl_train.data import FASHION_MNIST_CLASSES, BatchStream, ImageSet, load_images

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
    Image.fromarray(np.stack([PIXELS[0]] * 3, -1)).save(tmp_path / "a.png")
    data = load_images(str(tmp_path))
    assert data.images.shape == (1, 3, 4, 5) and data.labels is None


def test_torchvision_fashion_mnist(tmp_path: Path) -> None:
    pytest.importorskip("torchvision")
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for split, n in (("train", 12), ("t10k", 3)):
        header = np.array([0x803, n, 4, 5], dtype=">i4").tobytes()
        (raw / f"{split}-images-idx3-ubyte").write_bytes(header + PIXELS[:n].tobytes())
        labels = np.array([0x801, n], dtype=">i4").tobytes() + LABELS[:n].tobytes()
        (raw / f"{split}-labels-idx1-ubyte").write_bytes(labels)
    data = load_images(f"torchvision:FashionMNIST:{tmp_path}")
    assert torch.equal(data.images[:, 0], torch.from_numpy(PIXELS))
    assert data.labels is not None and data.labels.tolist() == LABELS[:, None].tolist()
    assert data.attributes == (Attribute("class", FASHION_MNIST_CLASSES),)


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
        str(tmp_path / "empty"): "no images in",
        str(tmp_path / "broken.npz"): "cannot be read",
        str(tmp_path / "sizes"): "one size",
        str(tmp_path / "junk"): "cannot be read as an image",
        "torchvision:CIFAR3": "unknown torchvision data set",
        write_npz(tmp_path / "float.npz", train_images=PIXELS / 255): "uint8",
        write_npz(tmp_path / "names.npz", images=PIXELS): "train_images",
        write_npz(tmp_path / "short.npz", train_images=PIXELS, train_labels=LABELS[:3]): "labels",
        write_npz(tmp_path / "objects.npz", train_images=np.array([None])): "cannot be read",
        str(tmp_path / "nothing.npz"): "cannot be read as .npz",
        str(tmp_path / "single.npz"): "an array without a name: was it written by np.savez",
        write_npz(
            tmp_path / "negative.npz", train_images=PIXELS, train_labels=LABELS.astype(int) - 1
        ): "'train_labels' from 0 on, got -1",
        write_npz(tmp_path / "flat.npz", train_images=PIXELS[:, :0]): "1 channels of 0 x 5",
        write_npz(tmp_path / "rgba.npz", train_images=rgba): "of 1 or 3 channels .* got 4",
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


def stream(config: DataConfig, n: int = 7) -> BatchStream:
    images = torch.arange(n, dtype=torch.uint8).reshape(n, 1, 1, 1).repeat(1, 1, 1, 2) * 10
    images[..., 1] += 3
    data = ImageSet(images, torch.arange(n)[:, None], (Attribute("class", tuple("abcdefg"[:n])),))
    return BatchStream(data, config, 3, "cpu")


def test_every_epoch_has_each_image_once_in_a_new_order() -> None:
    source = stream(DataConfig(dequantise=False, label_dropout=0.0))
    generator = torch.Generator().manual_seed(0)
    seen = []
    for _ in range(7):
        labels = source.next(3, generator).labels  # 21 images: three epochs
        assert labels is not None
        seen += (labels[:, 0] - 1).tolist()
    epochs = [seen[:7], seen[7:14], seen[14:]]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_a_restored_stream_goes_on_where_it_was() -> None:
    config = DataConfig()
    a, b = stream(config), stream(config)
    for _ in range(4):
        a.next(3, torch.Generator().manual_seed(1))
    b.load_state(a.state())
    for _ in range(3):
        x = a.next(3, torch.Generator().manual_seed(2))
        y = b.next(3, torch.Generator().manual_seed(2))
        assert torch.equal(x.x, y.x)
        assert torch.equal(torch.as_tensor(x.labels), torch.as_tensor(y.labels))


def test_a_position_beyond_the_data_begins_the_next_epoch() -> None:
    source = stream(DataConfig(dequantise=False, label_dropout=0.0))
    source.load_state({"epoch": 4, "position": 9})  # of 7 images
    batch = source.next(7, torch.Generator().manual_seed(0))
    assert batch.labels is not None and sorted(batch.labels[:, 0].tolist()) == [*range(1, 8)]
    assert source.state() == {"epoch": 5, "position": 7}


def test_scaling_reaches_the_ends_and_dequantisation_stays_within_a_grey_level() -> None:
    images = torch.tensor([0, 255], dtype=torch.uint8).reshape(1, 1, 1, 2)
    data = ImageSet(images)
    generator = torch.Generator().manual_seed(0)
    plain = BatchStream(data, DataConfig(dequantise=False), 0, "cpu").next(1, generator)
    assert plain.x.flatten().tolist() == [-1.0, 1.0]
    assert plain.labels is None
    noisy = BatchStream(data, DataConfig(), 0, "cpu").next(2000, generator).x
    for values, low in ((noisy[..., 0], -1.0), (noisy[..., 1], 1 - 1 / 128)):
        assert low <= float(values.min()) and float(values.max()) <= low + 1 / 128
        assert abs(float(values.mean()) - (low + 0.5 / 128)) < 1e-3


def test_which_labels_are_hidden_is_drawn_after_the_pixels() -> None:
    """The draws of a run with one attribute, by which runs are resumed and repeated."""
    config = DataConfig(flip=True, label_dropout=0.4)
    batch = stream(config).next(50, torch.Generator().manual_seed(8))
    shown = stream(DataConfig(label_dropout=0.0)).next(50, torch.Generator().manual_seed(8))
    generator = torch.Generator().manual_seed(8)
    torch.rand(batch.x.shape, generator=generator)
    torch.rand(50, generator=generator)  # flips
    kept = torch.rand(50, generator=generator) >= 0.4
    assert batch.labels is not None and shown.labels is not None
    assert torch.equal(batch.labels, shown.labels * kept[:, None])
    assert 0 < int(kept.sum()) < 50


def test_labels_are_hidden_and_images_flipped_as_often_as_asked() -> None:
    source = stream(DataConfig(dequantise=False, flip=True, label_dropout=0.25))
    batch = source.next(7000, torch.Generator().manual_seed(0))
    assert batch.labels is not None
    hidden = float((batch.labels == 0).float().mean())
    flipped = float((batch.x[..., 0] > batch.x[..., 1]).float().mean())
    assert abs(hidden - 0.25) < 5 * (0.25 * 0.75 / 7000) ** 0.5
    assert abs(flipped - 0.5) < 5 * 0.5 / 7000**0.5
