"""The networks that a model folder may name."""

from __future__ import annotations

import importlib

from torch import nn

from cdrl_infer.errors import ConfigError, did_you_mean, listing

# The classes a folder may name, by role; a new network is one more line here.
NETWORKS: dict[str, dict[str, str]] = {
    "ebm": {
        "EnergyUNet": "cdrl_infer.networks.energy_unet:EnergyUNet",
        "MLPEnergy": "cdrl_infer.networks.mlp:MLPEnergy",
        "ResidualEBM": "cdrl_infer.networks.residual_ebm:ResidualEBM",
    },
    "initializer": {
        "IdentityInitializer": "cdrl_infer.networks.identity:IdentityInitializer",
        "MLPInitializer": "cdrl_infer.networks.mlp:MLPInitializer",
        "PatchInitializer": "cdrl_infer.networks.initializer:PatchInitializer",
        "UNetInitializer": "cdrl_infer.networks.unet:UNetInitializer",
    },
}


def network_class(role: str, name: object, where: str) -> type[nn.Module]:
    """The class of `NETWORKS` of that role and name; ConfigError for any other name."""
    if not isinstance(name, str) or name not in NETWORKS[role]:
        raise ConfigError(
            f"{where}: unknown class {name!r:.60}, expected {listing(NETWORKS[role])}"
            f"{did_you_mean(str(name), NETWORKS[role])}"
        )
    module, _, attribute = NETWORKS[role][name].partition(":")
    found: type[nn.Module] = getattr(importlib.import_module(module), attribute)
    return found
