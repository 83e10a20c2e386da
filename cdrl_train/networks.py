"""From a run's options to networks."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from cdrl_infer.config import from_config
from cdrl_infer.errors import ConfigError
from cdrl_infer.networks.registry import network_class
from cdrl_train.config import TrainConfig
from cdrl_train.engine.spectral import layers_to_norm


def build_network(
    role: str, options: dict[str, Any], channels: int, num_classes: tuple[int, ...]
) -> nn.Module:
    """A fresh network for images of that many channels and these attributes.

    Args:
        role: "ebm" or "initializer".
        options: ``{"class": ..., **constructor arguments}``.
        channels: of the images.
        num_classes: of each attribute; () if unconditional.

    Raises:
        ConfigError: an unknown class or argument.
    """
    arguments = dict(options)
    kind = network_class(role, arguments.pop("class", None), role)
    for name, value in (("in_channels", channels), ("num_classes", list(num_classes))):
        if name in arguments:
            raise ConfigError(f"{role}: {name} comes from the data; leave it out")
        arguments[name] = value
    return from_config(kind, arguments, role)


def check_networks(config: TrainConfig) -> None:
    """Raise `ConfigError` for options that no data could make networks of; nothing is allocated."""
    for role, options in (("ebm", config.ebm), ("initializer", config.initializer)):
        with torch.device("meta"):
            network = build_network(role, options, 1, ())
        if role == "ebm" and config.spectral_norm:
            layers_to_norm(network)
