"""Public data sets, read from their files."""

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
from cdrl_train.data.idx import FASHION_MNIST_CLASSES
from cdrl_train.data.sources import data_name, expected, load_images

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 4, 5), dtype=np.uint8)
LABELS = np.arange(12, dtype=np.uint8) % 10


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
    with pytest.raises(InputError, match=r"no attribute 'Mail', expected one of Male, .*'Male'"):
        load_images(f"torchvision:CelebA:{tmp_path}", attributes=("Mail",))


@pytest.mark.parametrize("fault", ["needs torchvision: pip", "torchvision::nms does not exist"])
def test_missing_data_say_which_file_from_where_and_how(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    def broken(name: str) -> None:
        raise (ModuleNotFoundError if fault.startswith("needs") else RuntimeError)(fault)

    package = types.ModuleType("torchvision")
    package.__getattr__ = broken  # type: ignore[method-assign]
    monkeypatch.setitem(sys.modules, "torchvision", package)
    write_imagenet32(tmp_path, range(1, 7))
    cases = {
        "torchvision:FashionMNIST": (
            "train-images-idx3-ubyte",
            "amazonaws.com",
            "curl -fL ",
            fault,
        ),
        "torchvision:MNIST": ("train-images-idx3-ubyte", "ossci-datasets", "pip install ", fault),
        "torchvision:CIFAR10": ("data_batch_1.bin", "cs.toronto.edu", "| tar xz -C ", fault),
        "torchvision:CelebA": ("img_align_celeba", "mmlab.ie.cuhk.edu.hk", "unzip ", fault),
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
    with pytest.raises(InputError, match="images-idx3-ubyte: expected a complete IDX file"):
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
    with pytest.raises(InputError, match=r"train_data_batch_4\.npz cannot be read as \.npz"):
        load_images(f"imagenet32:{tmp_path}")


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"\xff\xfe", "expected text in UTF-8"),
        (b"", "expected 0 attributes"),
        (None, "a regular file"),
    ],
)
def test_damaged_lists_are_named(tmp_path: Path, content: bytes | None, fault: str) -> None:
    write_celeba(tmp_path)
    marks = tmp_path / "celeba" / "list_attr_celeba.txt"
    if content is None:
        with open(marks, "wb") as file:
            file.truncate(2**40)
    else:
        marks.write_bytes(content)
    with pytest.raises(InputError, match=f"list_attr_celeba.txt.*{fault}.*download"):
        load_images(f"torchvision:CelebA:{tmp_path}")


@pytest.mark.parametrize("kind", ["npz", "folder", "imagenet32", "celeba"])
def test_large_sets_are_mapped_and_the_same(tmp_path: Path, kind: str) -> None:
    source, root = str(tmp_path), tmp_path
    if kind == "npz":
        source = str(tmp_path / "a.npz")
        np.savez(source, train_images=PIXELS, train_labels=LABELS)
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
        ("checkerboard", None, (1, 1, 2), ()),
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


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("torchvision:MNIST:/a/b", "torchvision:MNIST"),
        ("imagenet32:/a/b", "imagenet32:b"),
        ("imagenet32:", "imagenet32"),
        ("checkerboard", "checkerboard"),
        ("coloured:torchvision:FashionMNIST:/a", "coloured:torchvision:FashionMNIST"),
        ("coloured:/a/b.npz", "coloured:b.npz"),
        ("/a/b", "b"),
    ],
)
def test_a_card_does_not_show_the_folders_of_this_machine(source: str, shown: str) -> None:
    assert data_name(source) == shown
