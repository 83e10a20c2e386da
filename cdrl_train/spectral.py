"""Spectral normalisation (Miyato et al. 2018) added for training and folded away on export."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from cdrl_infer.networks.base import Network


def add_spectral_norm(network: Network) -> None:
    """Parametrise the weights of `Network.spectral_norm_layers` as W / σ(W), in place.

    Raises:
        ConfigError: the network has no such layers. One that starts at zero has no σ(W) to divide by.
    """
    for layer in network.spectral_norm_layers():
        parametrizations.spectral_norm(layer)


def _normed(network: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    """Each parametrised layer, the name of its weight, and the module that computes the weight."""
    for layer in network.modules():
        if parametrize.is_parametrized(layer):
            recipes = cast(nn.ModuleDict, layer.parametrizations)
            for name, recipe in recipes.items():
                yield layer, name, recipe


@torch.no_grad()
def power_iteration(network: nn.Module) -> None:
    """Bring the estimate of every σ(W) one iteration forward: once a step, before anything else.

    Langevin, f(y⁺) and f(y⁻) then see the same network, also where a batch is split into parts.
    """
    for layer, name, recipe in _normed(network):
        recipe.train()
        getattr(layer, name)


@contextmanager
def normalised(network: nn.Module) -> Iterator[None]:
    """Inside the block every W / σ(W) is computed once, and σ does not change.

    Enter it outside of autocast: in bfloat16 a norm is wrong in its third digit.
    """
    recipes = [recipe.eval() for _, _, recipe in _normed(network)]
    with parametrize.cached():
        for layer, name, _ in _normed(network):
            getattr(layer, name)
        try:
            yield
        finally:
            for recipe in recipes:
                recipe.train()


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block: no power iteration, no dropout."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@torch.no_grad()
def folded_state(network: nn.Module) -> dict[str, Tensor]:
    """The state of the same network without parametrisations: the weights that the forward pass uses."""
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
