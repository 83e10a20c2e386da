"""Data sets and the stream of batches."""

from __future__ import annotations

import gzip
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cdrl_infer.errors import InputError
from cdrl_infer.model import Attribute, ImageShape
from cdrl_infer.storage.authors import imagenet_names
from cdrl_train.config import DataConfig
from cdrl_train.data.published import FASHION_MNIST_CLASSES
from cdrl_train.data.sources import ImageSet, expected, load_images
from cdrl_train.data.stream import BatchStream

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


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", ["FashionMNIST", "MNIST"])
def test_idx_files_are_read_without_torchvision(tmp_path: Path, name: str, packed: bool) -> None:
    raw = tmp_path / name / "raw"
    raw.mkdir(parents=True)
    for split, n in (("train", 12), ("t10k", 3)):
        images = np.array([0x803, n, 4, 5], dtype=">i4").tobytes() + PIXELS[:n].tobytes()
        labels = np.array([0x801, n], dtype=">i4").tobytes() + LABELS[:n].tobytes()
        for kind, content in (("images-idx3", images), ("labels-idx1", labels)):
            file = raw / f"{split}-{kind}-ubyte{'.gz' if packed else ''}"
            file.write_bytes(gzip.compress(content) if packed else content)
    data = load_images(f"torchvision:{name}:{tmp_path}")
    assert torch.equal(data.images[:, 0], torch.from_numpy(PIXELS))
    assert data.labels is not None and data.labels.tolist() == LABELS[:, None].tolist()
    classes = FASHION_MNIST_CLASSES if name == "FashionMNIST" else tuple("0123456789")
    assert data.attributes == (Attribute("class", classes),)
    assert len(load_images(f"torchvision:{name}:{tmp_path}", "test")) == 3


def write_cifar10(root: Path) -> np.ndarray:
    """Two images a batch; image k is all k."""
    folder = root / "cifar-10-batches-bin"
    folder.mkdir()
    names = [*(f"data_batch_{k}.bin" for k in range(1, 6)), "test_batch.bin"]
    pixels = np.random.default_rng(1).integers(0, 256, (12, 3, 32, 32), dtype=np.uint8)
    for k, name in enumerate(names):
        rows = [bytes([k]) + pixels[2 * k].tobytes(), bytes([9]) + pixels[2 * k + 1].tobytes()]
        (folder / name).write_bytes(b"".join(rows))
    return pixels


def test_cifar10_binary(tmp_path: Path) -> None:
    pixels = write_cifar10(tmp_path)
    data = load_images(f"torchvision:CIFAR10:{tmp_path}")
    assert np.array_equal(data.images.numpy(), pixels[:10])
    assert data.labels is not None
    assert data.labels[:, 0].tolist() == [0, 9, 1, 9, 2, 9, 3, 9, 4, 9]
    assert data.attributes[0].values[9] == "truck"
    test = load_images(f"torchvision:CIFAR10:{tmp_path}", "test")
    assert np.array_equal(test.images.numpy(), pixels[10:])
    unlabelled = load_images(f"torchvision:CIFAR10:{tmp_path}", attributes=())
    assert unlabelled.labels is None and unlabelled.attributes == ()


def test_cifar10_by_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}

    class CIFAR10:
        def __init__(self, root: str, **options: object) -> None:
            asked.update(options, root=root)
            self.data = np.stack([PIXELS[:3]] * 3, axis=-1)
            self.targets = [3, 0, 9]

    fake_torchvision(monkeypatch, CIFAR10=CIFAR10)
    data = load_images(f"torchvision:CIFAR10:{tmp_path}", "test")
    assert asked == {"root": str(tmp_path), "download": True, "train": False}
    assert np.array_equal(data.images[:, 1].numpy(), PIXELS[:3])
    assert data.labels is not None and data.labels[:, 0].tolist() == [3, 0, 9]


def fake_torchvision(monkeypatch: pytest.MonkeyPatch, **sets: object) -> None:
    package, datasets = types.ModuleType("torchvision"), types.ModuleType("torchvision.datasets")
    vars(datasets).update(sets)
    package.datasets = datasets  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torchvision", package)
    monkeypatch.setitem(sys.modules, "torchvision.datasets", datasets)


def write_imagenet32(root: Path, batches: range = range(1, 11)) -> np.ndarray:
    """Three images of 4 x 4 a batch, of classes that count from 1."""
    pixels = np.random.default_rng(2).integers(0, 256, (33, 3, 4, 4), dtype=np.uint8)
    for k in batches:
        rows = pixels[3 * k - 3 : 3 * k].reshape(3, -1)
        np.savez(root / f"train_data_batch_{k}.npz", data=rows, labels=np.array([1, k, 1000]))
    np.savez(root / "val_data.npz", data=pixels[30:].reshape(3, -1), labels=np.array([1, 2, 3]))
    return pixels


def test_imagenet32_batches(tmp_path: Path) -> None:
    pixels = write_imagenet32(tmp_path)
    data = load_images(f"imagenet32:{tmp_path}")
    assert np.array_equal(data.images.numpy(), pixels[:30])
    assert data.labels is not None and data.labels[3:6, 0].tolist() == [0, 1, 999]
    assert data.num_classes == (1000,) and data.attributes[0].values[0] == "1"
    assert np.array_equal(load_images(f"imagenet32:{tmp_path}", "test").images, pixels[30:])


def test_imagenet32_takes_names_from_its_own_list(tmp_path: Path) -> None:
    write_imagenet32(tmp_path)
    known = imagenet_names()
    order = [*reversed(known)]
    rows = [f"{wordnet} {k + 1} whatever" for k, wordnet in enumerate(order)]
    (tmp_path / "map_clsloc.txt").write_text("\n".join(rows))
    names = load_images(f"imagenet32:{tmp_path}").attributes[0].values
    assert names[0] == known[order[0]] and names[999] == "tench"
    (tmp_path / "map_clsloc.txt").write_text("\n".join(rows[:-1]))
    with pytest.raises(InputError, match="1,000 rows"):
        load_images(f"imagenet32:{tmp_path}")


def write_celeba(root: Path) -> None:
    folder = root / "celeba"
    (folder / "img_align_celeba").mkdir(parents=True)
    for k in range(4):
        face = np.zeros((218, 178, 3), dtype=np.uint8)
        face[39:179, 19:159] = 60 * k + 10  # the middle 140 x 140
        Image.fromarray(face).save(folder / "img_align_celeba" / f"00000{k}.png")
    rows = ["4", "Male Smiling Young", *(f"00000{k}.png {1 - 2 * (k % 2)} -1  1" for k in range(4))]
    (folder / "list_attr_celeba.txt").write_text("\n".join(rows) + "\n")
    (folder / "list_eval_partition.txt").write_text(
        "000000.png 0\n000001.png 0\n000002.png 1\n000003.png 2\n"
    )


def test_celeba_has_attributes_for_labels(tmp_path: Path) -> None:
    write_celeba(tmp_path)
    data = load_images(f"torchvision:CelebA:{tmp_path}")
    assert data.images.shape == (2, 3, 64, 64)
    assert data.images[0].unique().tolist() == [10] and data.images[1].unique().tolist() == [70]
    assert data.labels is not None and data.labels.tolist() == [[1, 0, 1], [0, 0, 1]]
    assert data.attributes[0] == Attribute("Male", ("not Male", "Male"))
    assert len(load_images(f"torchvision:CelebA:{tmp_path}", "test")) == 1
    some = load_images(f"torchvision:CelebA:{tmp_path}", attributes=("Young", "Male"))
    assert [a.name for a in some.attributes] == ["Young", "Male"]
    assert some.labels is not None and some.labels.tolist() == [[1, 1], [1, 0]]
    with pytest.raises(InputError, match=r"no attribute 'Mail', expected of Male, .*'Male'"):
        load_images(f"torchvision:CelebA:{tmp_path}", attributes=("Mail",))


def test_missing_data_say_which_file_from_where_and_how(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    write_imagenet32(tmp_path, range(1, 7))
    cases = {
        "torchvision:FashionMNIST": ("train-images-idx3-ubyte", "amazonaws.com", "curl -fL "),
        "torchvision:MNIST": ("train-images-idx3-ubyte", "ossci-datasets", "pip install "),
        "torchvision:CIFAR10": ("data_batch_1.bin", "cs.toronto.edu", "| tar xz -C "),
        "torchvision:CelebA": ("img_align_celeba", "mmlab.ie.cuhk.edu.hk", "unzip "),
        "imagenet32": (
            "train_data_batch_7.npz",
            "image-net.org",
            "unzip Imagenet32_train_npz.zip ",
        ),
    }
    for source, wanted in cases.items():
        with pytest.raises(InputError) as caught:
            load_images(f"{source}:{tmp_path}")
        text = str(caught.value)
        assert all(part in text for part in (*wanted, str(tmp_path))), text
        assert "\n" not in text


def test_a_download_that_fails_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(root: str, **options: object) -> None:
        raise RuntimeError("Error downloading:\nfirst mirror\nsecond mirror")

    fake_torchvision(monkeypatch, MNIST=refuse)
    with pytest.raises(InputError, match=r"could not download MNIST .*first mirror") as caught:
        load_images(f"torchvision:MNIST:{tmp_path}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", ["cut", "other", "header"])
def test_damaged_files_are_named(tmp_path: Path, damage: str) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    images = np.array([0x803, 2, 4, 5], dtype=">i4").tobytes() + PIXELS[:2].tobytes()
    content = {"cut": images[:-3], "other": b"\0\0\x0d" + images[3:], "header": images[:5]}[damage]
    (raw / "train-images-idx3-ubyte").write_bytes(content)
    labels = np.array([0x801, 2], dtype=">i4").tobytes() + LABELS[:2].tobytes()
    (raw / "train-labels-idx1-ubyte").write_bytes(labels)
    with pytest.raises(InputError, match="images-idx3-ubyte: expected an IDX file"):
        load_images(f"torchvision:MNIST:{tmp_path}")


def test_damaged_batches_are_named(tmp_path: Path) -> None:
    write_cifar10(tmp_path)
    batch = tmp_path / "cifar-10-batches-bin" / "data_batch_3.bin"
    whole = batch.read_bytes()
    batch.write_bytes(whole[:-1])
    with pytest.raises(InputError, match=r"data_batch_3\.bin: expected records of 3073 bytes"):
        load_images(f"torchvision:CIFAR10:{tmp_path}")
    batch.write_bytes(b"\x0a" + whole[1:])  # a class of its own
    with pytest.raises(InputError, match="labels of 10 classes, found 0 … 10"):
        load_images(f"torchvision:CIFAR10:{tmp_path}")
    write_imagenet32(tmp_path)
    (tmp_path / "train_data_batch_4.npz").write_bytes(b"PK\x03\x04")
    with pytest.raises(InputError, match=r"train_data_batch_4\.npz: 'labels' cannot be read"):
        load_images(f"imagenet32:{tmp_path}")


@pytest.mark.parametrize("kind", ["npz", "folder", "imagenet32", "celeba"])
def test_large_sets_are_mapped_and_the_same(tmp_path: Path, kind: str) -> None:
    source, root = str(tmp_path), tmp_path
    if kind == "npz":
        source = write_npz(tmp_path / "a.npz", train_images=PIXELS, train_labels=LABELS)
    elif kind == "folder":
        for k in range(3):
            Image.fromarray(PIXELS[k]).save(tmp_path / f"{k}.png")
    elif kind == "imagenet32":
        write_imagenet32(tmp_path)
        source = f"imagenet32:{tmp_path}"
    else:
        write_celeba(tmp_path)
        source, root = f"torchvision:CelebA:{tmp_path}", tmp_path / "celeba"
    small = load_images(source)
    assert not list(root.glob("cdrl-*"))
    mapped = load_images(source, in_memory=0)
    assert mapped.fingerprint() == small.fingerprint()
    (copy,) = root.glob("cdrl-*.npy")
    written = copy.stat().st_mtime_ns
    again = load_images(source, in_memory=0)
    assert torch.equal(again.images, small.images) and copy.stat().st_mtime_ns == written
    assert not list(root.glob(".*tmp*"))
    again.images[0] += 1  # in memory alone
    assert torch.equal(load_images(source, in_memory=0).images, small.images)


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


def test_a_stream_of_mapped_images_gives_the_same_batches(tmp_path: Path) -> None:
    source = write_npz(tmp_path / "a.npz", train_images=PIXELS, train_labels=LABELS)
    batches = []
    for mib in (0, 1):
        config = DataConfig(flip=True, in_memory_mib=mib)
        data = load_images(source, in_memory=mib * 2**20)
        stream = BatchStream(data, config, 3, "cpu")
        batches.append(stream.next(20, torch.Generator().manual_seed(0)))
    a, b = batches
    assert torch.equal(a.x, b.x) and torch.equal(
        torch.as_tensor(a.labels), torch.as_tensor(b.labels)
    )


@pytest.mark.parametrize(
    ("source", "attributes", "image", "num_classes"),
    [
        ("torchvision:FashionMNIST", None, (1, 28, 28), (10,)),
        ("torchvision:CIFAR10:nowhere", (), (3, 32, 32), ()),
        ("torchvision:CelebA", ("Male", "Young"), (3, 64, 64), (2, 2)),
        ("torchvision:CelebA", None, (3, 64, 64), (2,) * 40),
        ("imagenet32:", None, (3, 32, 32), (1000,)),
        ("coloured:torchvision:FashionMNIST", None, (3, 28, 28), (10, 4, 2)),
        ("coloured:torchvision:FashionMNIST", ("background",), (3, 28, 28), (2,)),
    ],
)
def test_shapes_of_published_sets_need_no_files(
    source: str,
    attributes: tuple[str, ...] | None,
    image: tuple[int, int, int],
    num_classes: tuple[int, ...],
) -> None:
    found = expected(source, DataConfig(attributes=attributes))
    assert found == (ImageShape(*image), num_classes)


def test_shapes_of_other_sets_are_read(tmp_path: Path) -> None:
    source = write_npz(tmp_path / "a.npz", train_images=PIXELS, train_labels=LABELS)
    assert expected(source, DataConfig()) == (ImageShape(1, 4, 5), (10,))


def test_files_named_after_a_set_have_its_classes(tmp_path: Path) -> None:
    source = write_npz(tmp_path / "CIFAR-10.npz", train_images=PIXELS, train_labels=LABELS)
    assert load_images(source).attributes[0].values[0] == "airplane"
