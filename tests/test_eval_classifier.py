"""Classifiers of the user's: what they see, and which are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cdrl_infer.errors import InputError
from cdrl_train.evaluation.classifier import load_classifier

SHAPE = (1, 8, 8)


class ByBrightness(nn.Module):
    """Three classes: the darkest third of the grey levels, the middle, the brightest."""

    def forward(self, x: Tensor) -> Tensor:
        return -(x.mean((1, 2, 3))[:, None] - torch.tensor([0.2, 0.5, 0.8])).abs()


def export(network: nn.Module, file: Path, batch: bool = True, shape: Any = SHAPE) -> Path:
    dims = ({0: torch.export.Dim("batch")},) if batch else None
    program = torch.export.export(network.eval(), (torch.rand(2, *shape),), dynamic_shapes=dims)
    torch.export.save(program, file)
    return file


@pytest.fixture
def classifier(tmp_path: Path) -> Path:
    return export(ByBrightness(), tmp_path / "c.pt2")


def test_a_classifier_sees_images_in_0_to_1_in_batches_of_any_size(classifier: Path) -> None:
    found = load_classifier(classifier, SHAPE, [3])
    images = np.broadcast_to(
        np.array([51, 127, 204, 0], np.uint8)[:, None, None, None], (4, *SHAPE)
    )
    assert found(images.copy())[:, 0].tolist() == [0, 1, 2, 0]
    assert found(images[2:3].copy()).tolist() == [[2]]
    two = load_classifier(classifier, SHAPE, [1, 2])
    assert two(images[:3].copy()).tolist() == [[0, 0], [0, 0], [0, 1]]


def test_classifiers_that_do_not_fit(classifier: Path, tmp_path: Path) -> None:
    one_size = export(ByBrightness(), tmp_path / "one.pt2", batch=False)
    junk = tmp_path / "junk.pt2"
    junk.write_bytes(b"junk")
    archive = tmp_path / "archive.pt2"
    np.savez(archive.with_suffix(".npz"), a=1)
    archive.with_suffix(".npz").rename(archive)
    for file, shape, classes, message in (
        (tmp_path / "nowhere", SHAPE, [3], "expected a file, found none"),
        (junk, SHAPE, [3], "found another file"),
        (archive, SHAPE, [3], "expected a .pt2 file written by torch.export.save"),
        (one_size, SHAPE, [3], "in batches of any size"),
        (classifier, (3, 8, 8), [3], r"expected a network of 3 images \(3, 8, 8\)"),
        (classifier, SHAPE, [4], r"expected logits \(3, 4\) for 3 images"),
    ):
        with pytest.raises(InputError, match=message) as found:
            load_classifier(file, shape, classes)
        assert "\n" not in str(found.value)
