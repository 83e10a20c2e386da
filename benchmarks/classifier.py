"""The judge: a small convolutional network that says what an image shows, each attribute for itself."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from cdrl_infer.files import replaced_file
from cdrl_train.data.image_set import ImageSet


@dataclass(frozen=True)
class Recipe:
    """How the judge is trained; part of the name it is cached under."""

    widths: tuple[int, ...] = (24, 48, 96)
    epochs: int = 4
    batch_size: int = 128
    learning_rate: float = 5e-3
    weight_decay: float = 1e-2
    seed: int = 0


class SmallCNN(nn.Sequential):
    """Per width: 3x3 convolution, batch norm, ReLU, 2x2 max pooling; then one linear layer for the logits
    of all attributes side by side.
    """

    def __init__(
        self, shape: Sequence[int], num_classes: Sequence[int], widths: Sequence[int]
    ) -> None:
        self.num_classes = tuple(num_classes)
        channels, height, width = shape
        layers: list[nn.Module] = []
        for out in widths:
            layers += [
                nn.Conv2d(channels, out, 3, padding=1, bias=False),
                nn.BatchNorm2d(out),
                nn.ReLU(),
                nn.MaxPool2d(2),
            ]
            channels, height, width = out, height // 2, width // 2
        features = channels * height * width
        super().__init__(
            *layers, nn.Flatten(), nn.Dropout(0.3), nn.Linear(features, sum(num_classes))
        )


def standardised(images: Tensor) -> Tensor:
    """(B, C, H, W) uint8 -> float32 of mean 0 and variance 1 on Fashion-MNIST, channels last."""
    return ((images.float() / 255 - 0.286) / 0.353).contiguous(memory_format=torch.channels_last)


def train_classifier(data: ImageSet, recipe: Recipe, progress: bool = False) -> SmallCNN:
    """AdamW on a one-cycle schedule, mirrored images with probability ½."""
    generator = torch.Generator().manual_seed(recipe.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        network = SmallCNN(data.images.shape[1:], data.num_classes, recipe.widths)
        network.to(memory_format=torch.channels_last)
        optimizer = torch.optim.AdamW(
            network.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay
        )
        steps = recipe.epochs * -(-len(data) // recipe.batch_size)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, recipe.learning_rate, total_steps=steps
        )
        with tqdm(total=steps, desc="classifier", unit="step", disable=not progress) as bar:
            for _ in range(recipe.epochs):
                order = torch.randperm(len(data), generator=generator)
                for index in order.split(recipe.batch_size):
                    x = standardised(data.images[index])
                    mirrored = torch.rand(len(x), 1, 1, 1, generator=generator) < 0.5
                    x = torch.where(mirrored, x.flip(-1), x)
                    logits = network(x).split(data.num_classes, dim=1)
                    loss = sum(
                        nn.functional.cross_entropy(part, data.labels[index, k])
                        for k, part in enumerate(logits)
                    )
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    schedule.step()
                    bar.update()
    return network.eval().requires_grad_(False)


@torch.no_grad()
def predict(network: SmallCNN, images: Tensor) -> Tensor:
    """(N, C, H, W) uint8 -> (N, A) indices."""
    logits = torch.cat([network(standardised(part)) for part in images.split(500)])
    return torch.stack([part.argmax(1) for part in logits.split(network.num_classes, 1)], dim=1)


@torch.no_grad()
def last_features(network: SmallCNN, images: Tensor) -> Tensor:
    """(N, C, H, W) uint8 -> (N, D) what the last layer makes its logits of."""
    rows = []
    for x in map(standardised, images.split(500)):
        for layer in list(network)[:-1]:
            x = layer(x)
        rows.append(x)
    return torch.cat(rows)


def load_or_train(
    cache: Path, train: ImageSet, test: ImageSet, recipe: Recipe, progress: bool = False
) -> tuple[SmallCNN, float]:
    """The judge and the share of test images of which it knows every label; trained once, then read
    from ``cache``.
    """
    key = json.dumps([train.fingerprint(), test.fingerprint(), asdict(recipe)])
    file = cache / f"classifier-{hashlib.sha256(key.encode()).hexdigest()[:12]}.safetensors"
    if file.is_file():
        network = SmallCNN(train.images.shape[1:], train.num_classes, recipe.widths)
        network.load_state_dict(load_file(file))
        with safe_open(file, "pt") as archive:
            accuracy = float(archive.metadata()["accuracy"])
        return network.eval().requires_grad_(False), accuracy
    network = train_classifier(train, recipe, progress)
    accuracy = share_recognised(network, test.images.numpy(), test.labels)
    with replaced_file(file) as temporary:
        tensors = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
        save_file(tensors, temporary, {"accuracy": repr(accuracy)})
    return network, accuracy


def share_recognised(network: SmallCNN, images: NDArray[np.uint8], asked: Tensor) -> float:
    """The share, in [0, 1], of images (N, C, H, W) that the judge gives all labels (N, A) asked."""
    right = (predict(network, torch.from_numpy(images)) == asked).all(dim=1)
    return float(right.double().mean())
