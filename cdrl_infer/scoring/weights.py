"""Digests of weights: for a calibration that belongs to them, and for the file that holds them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

from cdrl_infer.model import CDRLModel, state_of

RECOGNISED = (torch.float32, torch.float16, torch.bfloat16)  # the types that weights are stored in


def digest(networks: Mapping[str, Mapping[str, Tensor]], dtype: torch.dtype = torch.float32) -> str:
    """The sha256 of networks' states by role: names, shapes, and values rounded to a type.

    It does not depend on the device, nor on the layout in memory.
    """
    sha = hashlib.sha256()
    for role, state in networks.items():
        for name, tensor in sorted(state.items()):
            values = tensor.detach().cpu()
            if values.is_floating_point():
                values = values.to(dtype).float()
            sha.update(f"{role}.{name} {tuple(values.shape)} ".encode())
            sha.update(values.numpy().tobytes())
    return sha.hexdigest()


def weights_digest(model: CDRLModel, dtype: torch.dtype = torch.float32) -> str:
    """The digest of a model's networks."""
    return digest({role: state_of(network) for role, network in model.networks.items()}, dtype)


def weights_digests(model: CDRLModel) -> tuple[str, ...]:
    """The digests of a model's weights and of their roundings to float16 and bfloat16."""
    return tuple(dict.fromkeys(weights_digest(model, dtype) for dtype in RECOGNISED))
