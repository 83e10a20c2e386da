"""Features and logits of the Inception network that FIDs are computed with, by torch-fidelity."""

from __future__ import annotations

import hashlib
import sys
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cdrl_infer.errors import InputError, NetworkError
from cdrl_train.evaluation.fidelity import check_torch_fidelity

FEATURE_DIM, LOGITS = 2048, 1008
PIXELS = 299
CONVENTION = (
    f"Inception v3 of the original FID (torch-fidelity inception-v3-compat), {FEATURE_DIM} pooled "
    f"features and unbiased logits; grey repeated to RGB, bilinear as in TensorFlow 1 to {PIXELS} px, "
    "(x - 128)/128; covariances over n - 1"
)
ELSE = "or choose --extractor efficientnet-lite0, whose weights come with cdrl[eval]"


@dataclass(frozen=True)
class Inception:
    """Images (N, C, H, W) uint8 -> features and logits (N, 2048 + 1008) float32.

    Args:
        network: (B, 3, H, W) uint8 -> (B, 2048), (B, 1008).
        digest: of its weights and the convention.
    """

    network: Any
    digest: str
    device: torch.device
    batch_size: int = 50
    name: str = "inception-v3-compat"
    title: str = "Inception v3"
    convention: str = CONVENTION
    feature_dim: int = FEATURE_DIM
    logits: int = LOGITS

    @torch.no_grad()
    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """A row for each image."""
        rows = []
        for start in range(0, len(images), self.batch_size):
            x = torch.from_numpy(images[start : start + self.batch_size]).to(self.device)
            rows.append(torch.cat(self.network(x.expand(-1, 3, -1, -1)), dim=1).cpu().numpy())
        return np.concatenate(rows)


def load_inception(weights: Path | None, device: torch.device) -> Inception:
    """The network with the weights that were converted from TensorFlow's.

    Args:
        weights: torch-fidelity's ``weights-inception-2015-12-05-6726825d.pth``, a state dict; None:
            torch-fidelity downloads it once.
        device: where to run it.

    Raises:
        InputError: torch-fidelity is not installed, or the file holds something else.
        NetworkError: the weights could not be downloaded.
    """
    check_torch_fidelity()
    from torch_fidelity.feature_extractor_inceptionv3 import (
        URL_INCEPTION_V3,
        FeatureExtractorInceptionV3,
    )

    try:
        # torch-fidelity unpickles without limits; what passes here holds tensors alone.
        if weights is None:
            with redirect_stdout(sys.stderr):  # it tells that it downloads
                torch.hub.load_state_dict_from_url(
                    URL_INCEPTION_V3, progress=False, check_hash=True, weights_only=True
                )
        else:
            torch.load(weights, map_location="cpu", weights_only=True)
        network = FeatureExtractorInceptionV3(
            "inception-v3-compat",
            ["2048", "logits_unbiased"],
            feature_extractor_weights_path=None if weights is None else str(weights),
            verbose=False,
        )
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].split(". ")[0]
        if weights is not None:
            raise InputError(
                f"{weights}: expected torch-fidelity's weights of Inception v3, a state dict ({reason})"
            ) from error
        raise NetworkError(
            f"the weights of Inception v3 could not be downloaded ({reason}): give them with "
            f"--extractor-weights FILE, {ELSE}"
        ) from error
    sha = hashlib.sha256(CONVENTION.encode())
    for name, tensor in sorted(network.state_dict().items()):
        sha.update(name.encode() + tensor.numpy().tobytes())
    network.to(device)
    return Inception(network, sha.hexdigest()[:12], device)
