"""The extractor for CIFAR-10: its layers, and files that do not fit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from cdrl_infer.errors import InputError
from cdrl_train.evaluation.extractors import load_extractor
from cdrl_train.evaluation.resnet import Block, CifarResNet56

CPU = torch.device("cpu")


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    save_file(CifarResNet56().state_dict(), tmp_path / "resnet.safetensors")
    return tmp_path / "resnet.safetensors"


def test_it_has_the_size_of_the_paper_and_56_layers() -> None:
    network = CifarResNet56()
    assert sum(p.numel() for p in network.parameters()) == 853_018  # 0.85 million, table 6
    layers = [m for m in network.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
    assert len(layers) == 56


def test_a_shortcut_takes_every_second_pixel_between_new_channels_of_zeros() -> None:
    block = Block(16, 32, 2).eval()
    torch.nn.init.zeros_(block.conv2.weight)
    x = torch.rand(2, 16, 8, 8)
    out = block(x)
    assert torch.equal(out[:, 8:24], x[:, :, ::2, ::2])
    assert not out[:, :8].any() and not out[:, 24:].any()


def test_rows_are_features_and_logits_of_normalised_pixels(weights: Path) -> None:
    extractor = load_extractor("cifar10-resnet56", weights, CPU)
    images = np.random.default_rng(0).integers(256, size=(3, 3, 32, 32), dtype=np.uint8)
    rows = extractor(images)
    assert rows.shape == (3, 74)
    network = CifarResNet56.load(weights)
    expected = network(torch.from_numpy(images).float() / 255)
    np.testing.assert_allclose(rows[:, 64:], expected.numpy(), rtol=1e-4, atol=1e-5)
    mean = torch.tensor([0.485, 0.456, 0.406]).reshape(1, 3, 1, 1).expand(1, 3, 32, 32)
    seen: list[torch.Tensor] = []
    network.conv1.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    network(mean)
    assert seen[0].abs().max() < 1e-6


def test_files_that_do_not_fit_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    save_file({"conv1.weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="expected the weights of a ResNet-56"):
        load_extractor("cifar10-resnet56", tmp_path / "other.safetensors", CPU)
    with pytest.raises(InputError, match="needs --extractor-weights"):
        load_extractor("cifar10-resnet56", None, CPU)
