"""Spectral normalisation (Miyato et al. 2018) added for training and folded away on export."""

from __future__ import annotations

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


@torch.no_grad()
def folded_state(network: nn.Module) -> dict[str, Tensor]:
    """The state of the same network without parametrisations: weights as the forward pass uses them.

    Evaluated as in eval mode, i.e. without another power iteration.
    """
    training = network.training
    network.eval()
    state: dict[str, Tensor] = {}
    for name, value in network.state_dict().items():
        if ".parametrizations." not in name:
            state[name] = value.detach().clone()
    for prefix, layer in network.named_modules():
        if parametrize.is_parametrized(layer):
            for tensor in layer.parametrizations:
                state[f"{prefix}.{tensor}"] = getattr(layer, tensor).detach().clone()
    network.train(training)
    return state
