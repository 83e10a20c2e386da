"""From the options of a run to its networks."""

from __future__ import annotations

import inspect
from functools import partial
from typing import Any

from cdrl_infer.config import from_registry
from cdrl_infer.errors import ConfigError
from cdrl_infer.networks.base import Network
from cdrl_infer.networks.registry import NETWORKS
from cdrl_infer.networks.skeleton import skeleton
from cdrl_train.config import AUTO, TrainConfig

PARTS = ("backbone", "base")  # arguments that are networks, and get the sizes of the data
MAX_SIZE = 2**32  # values of a network; the paper's largest has 2**26


def build_network(
    role: str, options: dict[str, Any], channels: int, num_classes: tuple[int, ...]
) -> Network:
    """A new network.

    Args:
        role: "ebm" or "initializer".
        options: ``{"class": ..., **constructor arguments}``, a backbone's or base's nested in it; without
            channels and classes, which that part gets, or a network that has none.
        channels: the channels of the images.
        num_classes: how many values each attribute has; () for an unconditional network.

    Raises:
        ConfigError: an unknown class or argument.
    """
    options = dict(options)
    target, cls = options, NETWORKS[role].find(options.get("class"), role)
    taken = inspect.signature(cls.__init__).parameters
    for part in PARTS:
        if part in taken:
            inner = options.get(part)
            if not isinstance(inner, dict):
                raise ConfigError(
                    f'{role}: expected "{part}": {{"class": ...}}, found {inner!r:.60}'
                )
            target = options[part] = dict(inner)
    for name, value in (("in_channels", channels), ("num_classes", list(num_classes))):
        if name in target:
            raise ConfigError(f"{role}: {name} comes from the data; leave it out")
        target[name] = value
    return from_registry(NETWORKS[role], options, role)


def check_networks(config: TrainConfig) -> None:
    """Raise `ConfigError` for options that no data can make networks of; nothing is allocated."""
    for role, options in (("ebm", config.ebm), ("initializer", config.initializer)):
        if options is None:
            continue
        options = {key: value for key, value in options.items() if value != AUTO}
        network = skeleton(partial(build_network, role, options, 1, ()))
        size = sum(tensor.numel() for tensor in network.state_dict().values())
        if size > MAX_SIZE:
            raise ConfigError(
                f"{role}: a network may have at most {MAX_SIZE:,} values, got {size:,}; choose smaller "
                "sizes"
            )
        if role == "ebm" and config.spectral_norm:
            network.spectral_norm_layers()
