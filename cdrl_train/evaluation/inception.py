"""torch-fidelity's Inception network computes features and logits for the FID."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from pathlib import Path

import torch
from torch import Tensor

from cdrl_infer.errors import InputError, NetworkError
from cdrl_train.evaluation.extractors import Extractor, digest_of
from cdrl_train.evaluation.fidelity import check_torch_fidelity

FEATURE_DIM, LOGITS = 2048, 1008
PIXELS = 299
ELSE = "or choose --extractor efficientnet-lite0, whose weights come with cdrl[eval]"


class Inception(Extractor):
    """2,048 features and 1,008 logits; the network maps (B, 3, H, W) uint8 to both."""

    name = "inception-v3-compat"
    title = "Inception v3"
    feature_dim = FEATURE_DIM
    logits = LOGITS
    convention = (
        f"Inception v3 of the original FID (torch-fidelity inception-v3-compat), {FEATURE_DIM} pooled "
        "features and unbiased logits; grey repeated to RGB, bilinear as in TensorFlow 1 to "
        f"{PIXELS} px, (x - 128)/128; covariances over n - 1"
    )

    def rows(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 -> (B, 2048 + 1008)."""
        return torch.cat(self.network(images), dim=1)

    @classmethod
    def load(cls, weights: Path | None, device: torch.device) -> Inception:
        """Load the network with weights that were converted from TensorFlow.

        Args:
            weights: torch-fidelity's ``weights-inception-2015-12-05-6726825d.pth``, a state dict. For
                None, torch-fidelity downloads it once.
            device: the device of the network.

        Raises:
            InputError: torch-fidelity is not installed, or the file does not fit.
            NetworkError: the download failed.
        """
        check_torch_fidelity()
        from torch_fidelity.feature_extractor_inceptionv3 import (
            URL_INCEPTION_V3,
            FeatureExtractorInceptionV3,
        )

        try:
            # torch-fidelity unpickles anything; `weights_only` first refuses all but tensors.
            if weights is None:
                with redirect_stdout(sys.stderr):  # it prints that it downloads
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
                    f"{weights}: expected torch-fidelity's weights of Inception v3, a state dict "
                    f"({reason})"
                ) from error
            raise NetworkError(
                f"the weights of Inception v3 could not be downloaded ({reason}): give them with "
                f"--extractor-weights FILE, {ELSE}"
            ) from error
        digest = digest_of(cls.convention, network.state_dict())
        return cls(network.to(device), digest, device)
