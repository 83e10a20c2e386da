"""Spectral normalisation (Miyato et al. 2018) added for training and folded away on export."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from cdrl_infer.errors import ConfigError


def add_spectral_norm(network: nn.Module) -> None:
    """Parametrise the weights of the layers the network names as W / σ(W), in place.

    Raises:
        ConfigError: the network names none; one with layers that start at zero has no σ(W) to divide by.
    """
    choice = getattr(network, "spectral_norm_layers", None)
    if choice is None:
        raise ConfigError(
            f"spectral_norm is not defined for {type(network).__name__}; "
            "use ResidualEBM or set spectral_norm=false"
        )
    for _, layer in list(choice()):
        parametrizations.spectral_norm(layer)


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block: no power iteration, no dropout."""
    training = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(training)


@torch.no_grad()
def folded_state(network: nn.Module) -> dict[str, Tensor]:
    """The state of the same network without parametrisations: weights as the forward pass uses them."""
    state = {
        name: value.detach().clone()
        for name, value in network.state_dict().items()
        if ".parametrizations." not in name
    }
    with evaluating(network):
        for prefix, layer in network.named_modules():
            if parametrize.is_parametrized(layer):
                for name in layer.parametrizations:
                    state[f"{prefix}.{name}"] = getattr(layer, name).detach().clone()
    return state
