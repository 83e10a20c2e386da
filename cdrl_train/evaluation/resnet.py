"""Features and classes of a ResNet-56 for CIFAR-10 (He et al., CVPR 2016, section 4.2)."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cdrl_infer.errors import InputError, shown
from cdrl_train.evaluation.extractors import Extractor, digest_of

FEATURE_DIM, CLASSES, DEPTH = 64, 10, 9  # blocks per width
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Block(nn.Module):
    """Two convolutions beside a shortcut without weights: every ``stride``-th pixel, new channels 0."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.stride, self.added = stride, width - before

    def forward(self, x: Tensor) -> Tensor:
        """(B, before, H, W) -> (B, width, H / stride, W / stride)."""
        h = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        kept = x[:, :, :: self.stride, :: self.stride]
        half = self.added // 2
        return F.relu(h + F.pad(kept, (0, 0, 0, 0, half, self.added - half)))


class CifarResNet56(nn.Module):
    """(B, 3, 32, 32) in [0, 1] -> (B, 10) logits. The weights' names are those of the usual files."""

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._blocks(16, 16, 1)
        self.layer2 = self._blocks(16, 32, 2)
        self.layer3 = self._blocks(32, FEATURE_DIM, 2)
        self.linear = nn.Linear(FEATURE_DIM, CLASSES)
        self.register_buffer("mean", torch.tensor(MEAN).reshape(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).reshape(1, 3, 1, 1), persistent=False)

    @staticmethod
    def _blocks(before: int, width: int, stride: int) -> nn.Sequential:
        first = Block(before, width, stride)
        return nn.Sequential(first, *(Block(width, width, 1) for _ in range(DEPTH - 1)))

    def features(self, images: Tensor) -> Tensor:
        """(B, 3, 32, 32) in [0, 1] -> (B, 64), averaged over pixels."""
        h = F.relu(self.bn1(self.conv1((images - self.mean) / self.std)))
        features: Tensor = self.layer3(self.layer2(self.layer1(h))).mean((2, 3))
        return features

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, 32, 32) in [0, 1] -> (B, 10)."""
        logits: Tensor = self.linear(self.features(images))
        return logits

    def rows(self, images: Tensor) -> Tensor:
        """(B, 3, 32, 32) in [0, 1] -> (B, 74): features, then logits."""
        features = self.features(images)
        return torch.cat([features, self.linear(features)], dim=1)

    @classmethod
    def load(cls, weights: Path) -> CifarResNet56:
        """The network with the weights of a safetensors file.

        Raises:
            InputError: the file does not fit.
        """
        from safetensors.torch import load_file

        network = cls()
        try:
            network.load_state_dict(load_file(weights), strict=True)
        except Exception as error:
            raise InputError(
                f"{weights}: expected the weights of a ResNet-56 for CIFAR-10 ({shown(error)})"
            ) from error
        return network.eval().requires_grad_(False)


class CifarResNet(Extractor):
    """64 features and 10 logits."""

    name = "cifar10-resnet56"
    title = "CIFAR-10 ResNet-56"
    feature_dim = FEATURE_DIM
    logits = CLASSES
    convention = (
        f"ResNet-56 trained on CIFAR-10, {FEATURE_DIM} mean-pooled features; no resizing, "
        "(x/255 - mean)/std of ImageNet; covariances over n - 1"
    )

    def rows(self, images: Tensor) -> Tensor:
        """(B, 3, 32, 32) uint8 -> (B, 74)."""
        rows: Tensor = self.network(images.float() / 255)
        return rows

    @classmethod
    def load(cls, weights: Path | None, device: torch.device) -> CifarResNet:
        """Load the network.

        Args:
            weights: a safetensors file with the state dict; there is no package of such weights.
            device: the device of the network.

        Raises:
            InputError: the file is missing or does not fit.
        """
        if weights is None:
            raise InputError(
                f"the extractor {cls.name} needs --extractor-weights FILE.safetensors, such as those of "
                "https://github.com/akamaster/pytorch_resnet_cifar10"
            )
        network = CifarResNet56.load(weights)
        digest = digest_of(cls.convention, network.state_dict())
        return cls(network.to(device).rows, digest, device)
