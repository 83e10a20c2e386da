"""Clothes in colour: the labels are true, held-out pairs stay out, and the same seed paints the same."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from cdrl_infer.errors import InputError
from cdrl_infer.model import Attribute
from cdrl_train.config import DataConfig
from cdrl_train.data.coloured import (
    ATTRIBUTES,
    BACKGROUNDS,
    COLOURS,
    GARMENTS,
    HELD_OUT,
    RGB,
    render,
)
from cdrl_train.data.idx import FASHION_MNIST_CLASSES
from cdrl_train.data.image_set import ImageSet
from cdrl_train.data.sources import load_images
from cdrl_train.data.stream import BatchStream


def clothes(n: int = 2_000) -> ImageSet:
    """Squares of cloth, 4 x 4 of several greys in 8 x 8; every class as often."""
    generator = torch.Generator().manual_seed(0)
    images = torch.zeros(n, 1, 8, 8, dtype=torch.uint8)
    images[..., 2:6, 2:6] = torch.randint(
        90, 256, (n, 1, 4, 4), generator=generator, dtype=torch.uint8
    )
    labels = torch.arange(n)[:, None] % 10
    return ImageSet(images, labels, (Attribute("class", FASHION_MNIST_CLASSES),))


def labels_of(data: ImageSet) -> Tensor:
    assert data.labels is not None
    return data.labels


def pairs(data: ImageSet) -> set[tuple[str, str]]:
    return {(GARMENTS.values[g], COLOURS.values[c]) for g, c, _ in labels_of(data).tolist()}


def test_the_same_seed_paints_the_same() -> None:
    first, again, other = render(clothes(), 0), render(clothes(), 0), render(clothes(), 1)
    assert first.fingerprint() == again.fingerprint() != other.fingerprint()
    assert not torch.equal(labels_of(first)[:, 1:], labels_of(other)[:, 1:])


def test_shapes_and_names() -> None:
    data = render(clothes(50), 0)
    assert data.images.shape == (50, 3, 8, 8) and data.images.dtype == torch.uint8
    assert labels_of(data).shape == (50, 3) and labels_of(data).dtype == torch.int64
    assert data.attributes == ATTRIBUTES and data.num_classes == (10, 4, 2)
    assert torch.equal(labels_of(data)[:, :1], labels_of(clothes(50)))


def test_labels_are_what_the_pixels_show() -> None:
    data = render(clothes(), 0, HELD_OUT)
    pixels = data.images.double() / 255
    cloth = pixels[..., 2:6, 2:6].flatten(2).mean(2)
    hue = cloth / cloth.norm(dim=1, keepdim=True)
    paints = RGB.double() / RGB.double().norm(dim=1, keepdim=True)
    assert torch.equal((hue @ paints.mT).argmax(1), labels_of(data)[:, 1])
    ground = pixels[..., 0, 0]
    assert (ground == ground[:, :1]).all()  # grey
    assert torch.equal((ground[:, 0] > 0.5).long(), labels_of(data)[:, 2])


def test_brighter_cloth_is_brighter_paint() -> None:
    data, grey = render(clothes(200), 0), clothes(200).images[:, 0, 2:6, 2:6].flatten(1)
    painted = data.images[..., 2:6, 2:6].float().amax(1).flatten(1)
    dark, bright = grey.argmin(1, keepdim=True), grey.argmax(1, keepdim=True)
    assert (painted.gather(1, bright) > painted.gather(1, dark)).all()


def test_held_out_pairs_stay_out_and_all_others_come() -> None:
    everything = {(g, c) for g in GARMENTS.values for c in COLOURS.values}
    assert set(HELD_OUT) < everything
    assert pairs(render(clothes(), 0, HELD_OUT)) == everything - set(HELD_OUT)
    assert pairs(render(clothes(), 1)) == everything


def test_colours_and_backgrounds_are_drawn_evenly_and_apart() -> None:
    n = 8_000
    labels = labels_of(render(clothes(n), 0))
    joint = torch.bincount(labels[:, 1] * 2 + labels[:, 2], minlength=8) / n
    assert (joint - 1 / 8).abs().max() < 5 * (1 / 8 * 7 / 8 / n) ** 0.5
    sneakers = labels_of(render(clothes(n), 0, HELD_OUT))
    sneakers = sneakers[sneakers[:, 0] == GARMENTS.values.index("sneaker"), 1]
    shares = torch.bincount(sneakers, minlength=4) / len(sneakers)
    assert shares[0] == 0  # no red ones
    assert (shares[1:] - 1 / 3).abs().max() < 5 * (2 / 9 / len(sneakers)) ** 0.5


def test_parts_do_not_show() -> None:
    """More images than are painted at once: the last has the labels' colours, too."""
    data = render(clothes(4_100), 0)
    last = data.images[-4:].float()
    dark = last[..., 0, 0].mean(1) < 128
    assert torch.equal(dark, labels_of(data)[-4:, 2] == BACKGROUNDS.values.index("dark"))


@pytest.fixture
def source(tmp_path: Path) -> str:
    data = clothes(1_000)
    arrays = {}
    for split in ("train", "test"):
        arrays[f"{split}_images"] = data.images[:, 0].numpy()
        arrays[f"{split}_labels"] = labels_of(data)[:, 0].numpy().astype(np.uint8)
    np.savez(tmp_path / "fashion-mnist.npz", **arrays)
    return f"coloured:{tmp_path / 'fashion-mnist.npz'}"


def test_held_out_pairs_occur_in_the_test_split_alone(source: str) -> None:
    train, test = load_images(source), load_images(source, "test")
    assert not pairs(train) & set(HELD_OUT)
    assert set(HELD_OUT) <= pairs(test)
    assert train.fingerprint() == load_images(source).fingerprint()
    assert not torch.equal(labels_of(train)[:, 2], labels_of(test)[:, 2])  # other seeds


def test_bad_sources_are_named(source: str, tmp_path: Path) -> None:
    images = np.zeros((12, 8, 8), np.uint8)
    np.savez(tmp_path / "three.npz", train_images=images, train_labels=np.arange(12) % 3)
    np.savez(tmp_path / "none.npz", train_images=images)
    colour = np.zeros((12, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "colour.npz", train_images=colour, train_labels=np.arange(12) % 10)
    for name, message in {
        "coloured:nowhere.npz": "no data at 'nowhere.npz'",
        f"coloured:{tmp_path / 'three.npz'}": "expected grey clothes of 10 classes to colour",
        f"coloured:{tmp_path / 'none.npz'}": "expected grey clothes of 10 classes to colour",
        f"coloured:{tmp_path / 'colour.npz'}": "expected grey images, got 3 channels",
        f"coloured:{source}": "expected grey clothes of 10 classes to colour",
    }.items():
        with pytest.raises(InputError, match=message) as caught:
            load_images(name)
        assert "\n" not in str(caught.value), name


def test_each_attribute_is_hidden_by_itself() -> None:
    data, n, p = render(clothes(1_000), 0), 8_000, 0.3
    config = DataConfig(dequantise=False, flip=False, label_dropout=p)
    stream = BatchStream(data, config, 0, "cpu")
    labels = stream.next(n, torch.Generator().manual_seed(0)).labels
    assert labels is not None and labels.shape == (n, 3)
    hidden = (labels == 0).double()
    assert (hidden.mean(0) - p).abs().max() < 5 * (p * (1 - p) / n) ** 0.5
    together = (hidden.mT @ hidden / n)[torch.triu_indices(3, 3, 1).unbind()]
    assert (together - p**2).abs().max() < 5 * (p**2 * (1 - p**2) / n) ** 0.5
    whole = BatchStream(data, dataclasses.replace(config, label_dropout=0.0), 0, "cpu")
    shown = whole.next(n, torch.Generator().manual_seed(0)).labels
    assert shown is not None
    assert torch.equal(labels, shown * (labels > 0))
    assert shown.amin(0).tolist() == [1, 1, 1] and shown.amax(0).tolist() == [10, 4, 2]
