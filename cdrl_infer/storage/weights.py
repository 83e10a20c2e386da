"""Networks <-> the safetensors files of a model folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from cdrl_infer.config import from_config
from cdrl_infer.errors import CheckpointError, ConfigError, did_you_mean, listing
from cdrl_infer.model import Attribute, ImageShape, check_sizes, state_of
from cdrl_infer.networks.base import Network
from cdrl_infer.networks.skeleton import skeleton
from cdrl_infer.untrusted import StoredTensors, read_json, to_bytes

VARIANTS = {None: torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
METADATA = {"format": "pt"}
STORED_TYPES = ("F16", "BF16", "F32")
NOT_THESE = "are these the weights of the network in config.json?"


def weights_file(variant: str | None) -> str:
    """The name of the file of weights; `ConfigError` for an unknown variant."""
    if variant not in VARIANTS:
        names = [name for name in VARIANTS if name]
        raise ConfigError(
            f"unknown variant {variant!r}, expected {listing(names)} or none"
            f"{did_you_mean(str(variant), names)}"
        )
    return f"model.{variant}.safetensors" if variant else "model.safetensors"


def stored_type(dtype: torch.dtype | None, variant: str | None) -> torch.dtype:
    """The dtype of the stored weights: ``dtype``, or by default the variant's.

    Raises:
        ConfigError: the variant is unknown, or the dtype is not the variant's or is not stored.
    """
    weights = weights_file(variant)
    allowed = [VARIANTS[variant]] if variant else list(VARIANTS.values())
    dtype = dtype or allowed[0]
    if dtype not in allowed:
        raise ConfigError(f"weights in {weights} are stored in {listing(allowed)}, got {dtype}")
    return dtype


def load_network(
    folder: Path,
    role: str,
    cls: type[Network],
    variant: str | None,
    image: ImageShape,
    labels: tuple[Attribute, ...],
) -> Network:
    """The network in the sub-folder ``role``: built without memory first, then given the tensors.

    Raises:
        CheckpointError, ConfigError: see `cdrl_infer.storage.folder.load_model`.
    """
    config = read_json(folder, f"{role}/config.json")
    where, weights = str(folder / role / "config.json"), f"{role}/{weights_file(variant)}"
    with StoredTensors(folder, weights, "the network's weights") as stored:
        network = skeleton(lambda: from_config(cls, config, where), num_stored=len(stored.names))
        check_sizes(role, network, image, labels)
        tensors = _read(stored, network)
    # Copies: a view into the file may lie unaligned, which changes the last bit of a sum.
    tensors = {name: tensor.to(torch.float32, copy=True) for name, tensor in tensors.items()}
    _check_finite(tensors, str(folder / weights))
    network.load_state_dict(tensors, strict=True, assign=True)
    unstored = [name for name, buffer in network.named_buffers() if buffer.is_meta]
    if unstored:
        raise ConfigError(
            f"{cls.__name__} has buffers that no file stores: {listing(unstored, 3)}; make them "
            "persistent, or compute them in `condition`"
        )
    return network.eval()


def to_weights(role: str, network: nn.Module, dtype: torch.dtype) -> bytes:
    """The content of a file of weights; `CheckpointError` if they are not finite."""
    tensors = {
        name: tensor.detach().to("cpu", dtype).contiguous().clone()
        for name, tensor in state_of(network).items()
    }
    _check_finite(tensors, f"the {role} to save, as {dtype}")
    return to_bytes(tensors, METADATA)


def check_other_variants(folder: Path, role: str, network: nn.Module, variant: str | None) -> None:
    """Check the other files of weights in a folder that is saved to: they stay.

    Raises:
        CheckpointError: one of them holds the weights of another model.
    """
    state = state_of(network)
    for path in sorted((folder / role).glob("*.safetensors")):
        name = f"{role}/{path.name}"
        if path.name == weights_file(variant):
            continue
        tensors: dict[str, Tensor] | None = None
        try:
            with StoredTensors(folder, name, "the network's weights") as stored:
                tensors = _read(stored, network)
        except CheckpointError:
            pass
        if tensors is None or any(
            not torch.equal(tensor, state[key].detach().to("cpu", tensor.dtype))
            for key, tensor in tensors.items()
        ):
            raise CheckpointError(
                f"{folder}: {name} has the weights of another model, which would be lost; name a new "
                "folder, or delete that file"
            )


def _read(stored: StoredTensors, network: nn.Module) -> dict[str, Tensor]:
    shapes = {name: tuple(tensor.shape) for name, tensor in state_of(network).items()}
    return stored.read(shapes, STORED_TYPES, NOT_THESE)


def _check_finite(tensors: Mapping[str, Tensor], where: str) -> None:
    for name, tensor in tensors.items():
        if not bool(tensor.isfinite().all()):
            raise CheckpointError(
                f"{where}: {name} holds NaN or infinity, expected finite weights; "
                "go back to an earlier checkpoint"
            )
