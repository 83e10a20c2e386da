"""The judge, a small convolutional network that recognises each attribute of an image."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from cdrl_infer.files import replaced_file
from cdrl_train.data.image_set import ImageSet
from cdrl_train.evaluation.classifier import Classifier

JUDGE_AT_LEAST = 0.91  # share of real test images of Fashion-MNIST


@dataclass(frozen=True)
class Recipe:
    """The training options of the judge; the name of its cached file depends on them."""

    widths: tuple[int, ...] = (24, 48, 96)
    epochs: int = 4
    batch_size: int = 128
    learning_rate: float = 5e-3
    weight_decay: float = 1e-2
    seed: int = 0


class Standardise(nn.Module):
    """(B, C, H, W) in [0, 1] -> mean 0 and variance 1 on Fashion-MNIST, channels last."""

    def forward(self, x: Tensor) -> Tensor:
        """The same shape."""
        return ((x - 0.286) / 0.353).contiguous(memory_format=torch.channels_last)


class SmallCNN(nn.Sequential):
    """A 3x3 convolution, batch norm, ReLU and 2x2 max pooling per width; then one linear layer gives the
    logits of all attributes. Images (B, C, H, W) are float32 in [0, 1].
    """

    def __init__(
        self, shape: Sequence[int], num_classes: Sequence[int], widths: Sequence[int]
    ) -> None:
        channels, height, width = shape
        layers: list[nn.Module] = [Standardise()]
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


def train_classifier(data: ImageSet, recipe: Recipe, progress: bool = False) -> SmallCNN:
    """Train with AdamW and a one-cycle schedule; mirror each image with probability ½."""
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
                    x = data.images[index] / 255
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


def load_or_train(
    cache: Path, train: ImageSet, test: ImageSet, recipe: Recipe, progress: bool = False
) -> tuple[Classifier, float]:
    """The judge, and the share of test images in which it recognises every label.

    The first call trains the judge and writes it into the folder ``cache``; later calls read it.
    """
    cache.mkdir(parents=True, exist_ok=True)
    key = json.dumps([train.fingerprint(), test.fingerprint(), asdict(recipe)])
    digest = hashlib.sha256(key.encode()).hexdigest()[:12]
    file = cache / f"judge-{digest}.safetensors"
    if file.is_file():
        network = SmallCNN(train.images.shape[1:], train.num_classes, recipe.widths)
        network.load_state_dict(load_file(file))
        with safe_open(file, "pt") as archive:
            accuracy = float(archive.metadata()["accuracy"])
        return Classifier(network.eval().requires_grad_(False), train.num_classes, digest), accuracy
    network = train_classifier(train, recipe, progress)
    judge = Classifier(network, train.num_classes, digest)
    accuracy = judge.share_recognised(test.images.numpy(), test.labels.numpy())
    with replaced_file(file) as temporary:
        tensors = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
        save_file(tensors, temporary, {"accuracy": repr(accuracy)})
    return judge, accuracy


def judge_warning(real: float) -> str | None:
    """A warning if the judge recognises too few of the real test images (a share in 0 … 1)."""
    if real >= JUDGE_AT_LEAST:
        return None
    return (
        f"WARNING: the judge recognises {100 * real:.2f} % of the real test images, fewer than "
        f"{100 * JUDGE_AT_LEAST:.0f} %: shares of recognised samples say little."
    )
