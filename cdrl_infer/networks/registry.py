"""The network classes by name. Model folders and the options of runs use these names.

::

    BACKBONES.register("Mixer", Mixer)
    # Then options may say {"class": "InnerProductEnergy", "backbone": {"class": "Mixer"}}.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from cdrl_infer.registry import Registry

if TYPE_CHECKING:
    from cdrl_infer.networks.base import Backbone, Network
    from cdrl_infer.networks.distributions import Distribution

_HERE = "cdrl_infer.networks"

BACKBONES: Registry[type[Backbone]] = Registry(
    "backbone",
    {
        "PatchUNet": f"{_HERE}.patch_unet:PatchUNet",
        "UNet": f"{_HERE}.unet:UNet",
        "MLP": f"{_HERE}.mlp:MLP",
    },
)
ENERGIES: Registry[type[Network]] = Registry(
    "energy network",
    {
        "InnerProductEnergy": f"{_HERE}.heads:InnerProductEnergy",
        "SquaredDistanceEnergy": f"{_HERE}.heads:SquaredDistanceEnergy",
        "ResidualEBM": f"{_HERE}.residual_ebm:ResidualEBM",
        "MLPEnergy": f"{_HERE}.mlp:MLPEnergy",
        "TiltedEnergy": f"{_HERE}.tilted:TiltedEnergy",
        "ConvEnergy": f"{_HERE}.autoencoder:ConvEnergy",
        "ReconstructionEnergy": f"{_HERE}.autoencoder:ReconstructionEnergy",
        "VAEEnergy": f"{_HERE}.vae:VAEEnergy",
    },
)
_DISTRIBUTIONS = {
    "GaussianDistribution": f"{_HERE}.distributions:GaussianDistribution",
    "MixtureDistribution": f"{_HERE}.distributions:MixtureDistribution",
}
DISTRIBUTIONS: Registry[type[Distribution]] = Registry("distribution", _DISTRIBUTIONS)
INITIALIZERS: Registry[type[Network]] = Registry(
    "initializer network",
    {
        "ResidualInitializer": f"{_HERE}.heads:ResidualInitializer",
        **_DISTRIBUTIONS,
        "SphereAutoencoder": f"{_HERE}.autoencoder:SphereAutoencoder",
        "AutoencoderEnsemble": f"{_HERE}.autoencoder:AutoencoderEnsemble",
    },
)
NETWORKS: Mapping[str, Registry[type[Network]]] = {"ebm": ENERGIES, "initializer": INITIALIZERS}
