"""Digests of weights. A calibration and the normalisers store them to recognise their model."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch

from cdrl_infer.errors import ConfigError
from cdrl_infer.model import CDRLModel, state_of

RECOGNISED = (torch.float32, torch.float16, torch.bfloat16)  # the types that weights are stored in


def weights_digest(model: CDRLModel, dtype: torch.dtype = torch.float32) -> str:
    """The sha256 of the names, shapes and values of all weights; the values are rounded to ``dtype``.

    It does not depend on the device or on the layout in memory.
    """
    sha = hashlib.sha256()
    for role, network in model.networks.items():
        for name, tensor in sorted(state_of(network).items()):
            values = tensor.detach().cpu()
            if values.is_floating_point():
                values = values.to(dtype).float()
            sha.update(f"{role}.{name} {tuple(values.shape)} ".encode())
            sha.update(values.numpy().tobytes())
    return sha.hexdigest()


def weights_digests(model: CDRLModel) -> tuple[str, ...]:
    """The digests of a model's weights, and of the weights rounded to float16 and bfloat16."""
    return tuple(dict.fromkeys(weights_digest(model, dtype) for dtype in RECOGNISED))


def check_digests(model: CDRLModel, digests: Sequence[str], what: str) -> None:
    """Raise `ConfigError` unless the model has the weights of one of these digests.

    Args:
        model: has the weights.
        digests: as `weights_digests` gives them, so each stored variant of the model is recognised.
        what: the thing that belongs to the weights, for the message; plural.
    """
    found = weights_digest(model)
    if found not in digests:
        raise ConfigError(
            f"{what} belong to other weights: expected the sha256 digest {digests[0]:.12}… or that of "
            f"rounded weights, found {found:.12}…"
        )
