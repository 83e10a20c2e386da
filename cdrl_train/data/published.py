"""Public data sets as they are published: read from the files themselves, downloaded by torchvision.

Nothing here unpickles a file: MNIST and Fashion-MNIST are IDX, CIFAR-10 is the binary version (the
pickled one is left to torchvision), ImageNet-32 is ``.npz``, CelebA is pictures and text.
"""

from __future__ import annotations

import gzip
import math
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from cdrl_infer.errors import InputError, listing
from cdrl_infer.images import open_image
from cdrl_infer.model import Attribute, ImageShape
from cdrl_train.data.image_set import ImageSet, held
from cdrl_train.toy import CHECKERBOARD, POINT, checkerboard

TORCHVISION, IMAGENET32 = "torchvision:", "imagenet32:"
FASHION_MNIST_CLASSES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
CIFAR10_CLASSES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)
DIGITS = tuple(str(k) for k in range(10))
CELEBA_ATTRIBUTES = 40
CELEBA_CROP, CELEBA_SIZE = (
    140,
    64,
)  # of 178 x 218 aligned pictures, the usual cut (Song & Ermon 2019)
CIFAR10_RECORD = 1 + 3 * 32 * 32
IMAGENET32_BATCHES = 10


@dataclass(frozen=True)
class Published:
    """A data set that can be named in place of a file.

    Args:
        image: the shape of one image.
        num_classes: of each attribute, as `ImageSet.num_classes`.
        read: (root, split, in_memory) -> the images.
        home: where it is from.
    """

    image: ImageShape
    num_classes: tuple[int, ...]
    read: Callable[[Path, str, int], ImageSet]
    home: str


def _missing(file: Path, home: str, command: str) -> InputError:
    return InputError(f"no {file}: it comes from {home}; get it by: {command}")


# -- MNIST and its kin: IDX files ----------------------------------------------------------------


def _idx_set(name: str, root: Path, split: str, classes: tuple[str, ...], home: str) -> ImageSet:
    folder = root / name / "raw"
    part = "train" if split == "train" else "t10k"
    files = [folder / f"{part}-{kind}-ubyte" for kind in ("images-idx3", "labels-idx1")]
    if not all(map(_there, files)):
        _download(name, root, _first_missing(files, _there), home, _curl(files, home))
    images, labels = _read_idx(files[0], 3), _read_idx(files[1], 1)
    if len(images) != len(labels):
        raise InputError(
            f"{files[0]} has {len(images)} images, {files[1]} {len(labels)} labels; delete both to "
            "have them downloaded again"
        )
    return _labelled(torch.from_numpy(images[:, None]), labels, classes, files[1])


def _there(file: Path) -> bool:
    """Whether an IDX file is there, or its compressed form."""
    return file.is_file() or file.with_name(file.name + ".gz").is_file()


def _curl(files: list[Path], home: str) -> str:
    missing = next(file for file in files if not _there(file))
    packed = missing.with_name(missing.name + ".gz")
    return f"curl -fL --create-dirs -o {packed} {home}/{packed.name}"


def _read_idx(file: Path, dimensions: int) -> NDArray[np.uint8]:
    """The array in an IDX file of unsigned bytes (http://yann.lecun.com/exdb/mnist), or in its .gz."""
    try:
        if file.is_file():
            content = file.read_bytes()
        else:
            content = gzip.decompress(file.with_name(file.name + ".gz").read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(
            f"{file} cannot be read ({error}); delete it to download it anew"
        ) from None
    start = 4 + 4 * dimensions
    header = content[:start].ljust(start, b"\0")
    shape = tuple(np.frombuffer(header, dtype=">u4", offset=4).tolist())
    if header[:4] != bytes([0, 0, 8, dimensions]) or len(content) != start + math.prod(shape):
        raise InputError(
            f"{file}: expected an IDX file of bytes in {dimensions} dimensions, found another or a part "
            "of one; delete it to download it anew"
        )
    return np.frombuffer(content, dtype=np.uint8, offset=start).reshape(shape).copy()


# -- CIFAR-10 ------------------------------------------------------------------------------------


def _cifar10(root: Path, split: str, in_memory: int) -> ImageSet:
    folder = root / "cifar-10-batches-bin"
    names = [f"data_batch_{k}.bin" for k in range(1, 6)] if split == "train" else ["test_batch.bin"]
    files = [folder / name for name in names]
    if not folder.is_dir():
        home = PUBLISHED[f"{TORCHVISION}CIFAR10"].home
        archive = f"curl -fL {home} | tar xz -C {root}"
        data = _download("CIFAR10", root, files[0], home, archive, train=split == "train")
        pixels = torch.from_numpy(np.ascontiguousarray(data.data.transpose(0, 3, 1, 2)))
        return _labelled(pixels, np.asarray(data.targets), CIFAR10_CLASSES, root)
    rows = []
    for file in files:
        content = file.read_bytes() if file.is_file() else b""
        if not content or len(content) % CIFAR10_RECORD:
            raise InputError(
                f"{file}: expected records of {CIFAR10_RECORD} bytes, found {len(content)} bytes; "
                "unpack cifar-10-binary.tar.gz again"
            )
        rows.append(np.frombuffer(content, dtype=np.uint8).reshape(-1, CIFAR10_RECORD))
    records = np.concatenate(rows)
    pixels = torch.from_numpy(records[:, 1:].reshape(-1, 3, 32, 32).copy())
    return _labelled(pixels, records[:, 0], CIFAR10_CLASSES, folder)


# -- ImageNet-32 ---------------------------------------------------------------------------------


def _imagenet32(root: Path, split: str, in_memory: int) -> ImageSet:
    names = ["val_data.npz"]
    if split == "train":
        names = [f"train_data_batch_{k}.npz" for k in range(1, IMAGENET32_BATCHES + 1)]
    files = [root / name for name in names]
    for file in files:
        if not file.is_file():
            archive = f"Imagenet32_{'train' if split == 'train' else 'val'}_npz.zip"
            home = PUBLISHED[IMAGENET32].home
            raise _missing(file, f"{home} (after signing in)", f"unzip {archive} -d {root}")
    labels = np.concatenate([_imagenet_array(file, "labels") for file in files])
    sizes = {width for file in files for width in [_imagenet_array(file, "data").shape[-1]]}
    side = math.isqrt(max(sizes) // 3)
    if len(sizes) > 1 or sizes != {3 * side * side}:
        raise InputError(
            f"{root}: expected square RGB images of one size, got rows of {sizes} bytes"
        )

    def parts() -> Iterator[NDArray[np.uint8]]:
        for file in files:
            yield _imagenet_array(file, "data").reshape(-1, 3, side, side)

    shape = (len(labels), 3, side, side)
    images = held(shape, parts(), sources=files, split=split, in_memory=in_memory)
    return _labelled(images, labels - 1, _imagenet_names(root), files[0])  # they count from 1


def _imagenet_array(file: Path, name: str) -> NDArray[Any]:
    try:
        with open(file, "rb") as content:
            array: NDArray[Any] = np.asarray(np.load(content, allow_pickle=False)[name])
    except (ValueError, OSError, EOFError, LookupError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{file}: '{name}' cannot be read ({error}); unpack it again") from None
    expected = np.uint8 if name == "data" else np.integer
    if not np.issubdtype(array.dtype, expected) or array.ndim != (2 if name == "data" else 1):
        raise InputError(
            f"{file}: expected 'data' (N, 3·S·S) uint8 and 'labels' (N,) integers, "
            f"got '{name}' {array.shape} {array.dtype}"
        )
    return array


def _imagenet_names(root: Path) -> tuple[str, ...]:
    """By the set's own list ``map_clsloc.txt`` if it is there, else the numbers of the labels."""
    from cdrl_infer.storage.authors import imagenet_names

    numbering = root / "map_clsloc.txt"
    if not numbering.is_file():
        return tuple(str(k) for k in range(1, 1001))
    names = imagenet_names()
    rows = [row.split() for row in numbering.read_text(encoding="utf-8").splitlines() if row]
    try:
        by_number = {int(number): names[wordnet] for wordnet, number, _ in rows}
        return tuple(by_number[k] for k in range(1, 1001))
    except (ValueError, KeyError) as error:
        raise InputError(
            f"{numbering}: expected 1,000 rows 'WORDNET-ID NUMBER NAME', missing or odd: {error}"
        ) from None


# -- CelebA --------------------------------------------------------------------------------------


def _celeba(root: Path, split: str, in_memory: int) -> ImageSet:
    folder = root / "celeba"
    pictures = folder / "img_align_celeba"
    lists = [folder / "list_attr_celeba.txt", folder / "list_eval_partition.txt"]
    if not all(path.exists() for path in (pictures, *lists)):
        home = PUBLISHED[f"{TORCHVISION}CelebA"].home
        lacking = _first_missing([pictures, *lists], Path.exists)
        archive = f"unzip img_align_celeba.zip -d {folder}"
        _download("CelebA", root, lacking, home, archive, split="all")
    wanted = "0" if split == "train" else "2"
    rows = [row.split() for row in lists[1].read_text(encoding="utf-8").splitlines() if row]
    names = [name for name, part in rows if part == wanted]
    _, header, *table = lists[0].read_text(encoding="utf-8").splitlines()
    attributes = header.split()
    values = {name: marks for name, *marks in (row.split() for row in table if row)}
    lacking_row = next((n for n in names if len(values.get(n, ())) != len(attributes)), None)
    if not names or lacking_row is not None:
        raise InputError(
            f"{lists[0]}: expected {len(attributes)} attributes of each picture in {lists[1].name}, "
            f"found none of {lacking_row or 'any'}; download both again"
        )
    labels = torch.tensor([[int(mark) > 0 for mark in values[name]] for name in names]).long()

    def parts() -> Iterator[NDArray[np.uint8]]:
        for name in names:
            yield _celeba_face(pictures / name)[None]

    shape = (len(names), 3, CELEBA_SIZE, CELEBA_SIZE)
    sources = [*lists, pictures]
    images = held(shape, parts(), sources=sources, split=split, in_memory=in_memory)
    # "Male" and "not Male", so that concepts are said as they are: Smiling & ~Male.
    return ImageSet(images, labels, tuple(Attribute(a, (f"not {a}", a)) for a in attributes))


def _celeba_face(file: Path) -> NDArray[np.uint8]:
    picture = open_image(file).convert("RGB")
    left, top = (picture.width - CELEBA_CROP) // 2, (picture.height - CELEBA_CROP) // 2
    face = picture.crop((left, top, left + CELEBA_CROP, top + CELEBA_CROP))
    small = face.resize((CELEBA_SIZE, CELEBA_SIZE), Image.Resampling.BILINEAR)
    return np.asarray(small).transpose(2, 0, 1)


# -- shared --------------------------------------------------------------------------------------


def _first_missing(files: list[Path], there: Callable[[Path], bool]) -> Path:
    return next(file for file in files if not there(file))


def _download(name: str, root: Path, missing: Path, home: str, command: str, **which: Any) -> Any:
    """torchvision's data set of that name, downloaded into root if need be."""
    try:
        from torchvision import datasets
    except (ImportError, RuntimeError):  # the latter: built for another torch
        raise _missing(
            missing, home, f"{command}  (or pip install 'cdrl[train]', which downloads it)"
        ) from None
    try:
        return getattr(datasets, name)(str(root), download=True, **which)
    except (RuntimeError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"torchvision could not download {name} into {str(root)!r} ({reason}); get {missing} from "
            f"{home} by: {command}"
        ) from error


def _labelled(
    images: torch.Tensor, labels: NDArray[Any], classes: tuple[str, ...], file: Path
) -> ImageSet:
    if len(labels) and not (int(labels.min()) >= 0 and int(labels.max()) < len(classes)):
        raise InputError(
            f"{file}: expected labels of {len(classes)} classes, found "
            f"{int(labels.min())} … {int(labels.max())}; download it again"
        )
    targets = torch.from_numpy(np.asarray(labels).astype(np.int64))
    return ImageSet(images, targets[:, None], (Attribute("class", classes),))


FASHION_HOME = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"
MNIST_HOME = "https://ossci-datasets.s3.amazonaws.com/mnist"


def _fashion_mnist(root: Path, split: str, in_memory: int) -> ImageSet:
    return _idx_set("FashionMNIST", root, split, FASHION_MNIST_CLASSES, FASHION_HOME)


def _mnist(root: Path, split: str, in_memory: int) -> ImageSet:
    return _idx_set("MNIST", root, split, DIGITS, MNIST_HOME)


PUBLISHED = {
    f"{TORCHVISION}FashionMNIST": Published(
        ImageShape(1, 28, 28), (10,), _fashion_mnist, FASHION_HOME
    ),
    f"{TORCHVISION}MNIST": Published(ImageShape(1, 28, 28), (10,), _mnist, MNIST_HOME),
    f"{TORCHVISION}CIFAR10": Published(
        ImageShape(3, 32, 32),
        (10,),
        _cifar10,
        "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    ),
    f"{TORCHVISION}CelebA": Published(
        ImageShape(3, CELEBA_SIZE, CELEBA_SIZE),
        (2,) * CELEBA_ATTRIBUTES,
        _celeba,
        "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html",
    ),
    IMAGENET32: Published(
        ImageShape(3, 32, 32), (1000,), _imagenet32, "https://image-net.org/download-images.php"
    ),
    CHECKERBOARD: Published(POINT, (), lambda root, split, in_memory: checkerboard(), "no file"),
}


def published(source: str) -> tuple[Published, Path] | None:
    """The data set that a source names, and where its files are or are to be; None for none.

    Raises:
        InputError: a set of torchvision's that is not known here.
    """
    if source.startswith(IMAGENET32):
        return PUBLISHED[IMAGENET32], Path(source.removeprefix(IMAGENET32) or "data/imagenet32")
    if source == CHECKERBOARD:
        return PUBLISHED[CHECKERBOARD], Path()
    if not source.startswith(TORCHVISION):
        return None
    _, name, root = [*source.split(":", 2), ""][:3]
    known = PUBLISHED.get(f"{TORCHVISION}{name}")
    if known is None:
        names = [key.partition(":")[2] for key in PUBLISHED if key.startswith(TORCHVISION)]
        raise InputError(f"unknown torchvision data set {name!r}; known: {listing(names)}")
    return known, Path(root or "data")
