"""The stream of batches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from cdrl_infer.model import Attribute
from cdrl_train.config import DataConfig
from cdrl_train.data.image_set import ImageSet
from cdrl_train.data.sources import load_images
from cdrl_train.data.stream import BatchStream


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


def test_a_stream_of_mapped_images_gives_the_same_batches(tmp_path: Path) -> None:
    source = str(tmp_path / "a.npz")
    pixels = np.random.default_rng(0).integers(0, 256, (12, 4, 5), dtype=np.uint8)
    np.savez(source, train_images=pixels, train_labels=np.arange(12) % 10)
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
