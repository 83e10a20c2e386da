"""Base classes of networks: what a model needs from a network, and a head from its backbone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from cdrl_infer.config import Configurable
from cdrl_infer.errors import ConfigError
from cdrl_infer.networks.registry import BACKBONES
from cdrl_infer.random import RandomSource
from cdrl_infer.registry import Registry
from cdrl_infer.schedule import Level

Layer = nn.Conv2d | nn.Linear


class Network(Configurable, nn.Module):
    """A network of a model: an energy, an initializer or the backbone of one.

    A model folder stores the arguments of the constructor, so they have annotations and are JSON values
    or a `Backbone`. A model folder stores only parameters and persistent buffers in floating point, so a
    network has no other tensors.

    Attributes:
        in_channels: channels of the images.
        num_classes: how many values each attribute has; () for an unconditional network.
        num_pixels: height times width of the images; None if the network accepts several sizes.
        image_size: height and width of the images; None if the network accepts several sizes.
        size_multiple: height and width of the images must be divisible by this.
        default_score: the anomaly score of a model with this energy, unless its calibration or a user
            names another.
    """

    in_channels: int
    num_classes: tuple[int, ...]
    num_pixels: int | None = None
    image_size: tuple[int, int] | None = None
    size_multiple: int = 1
    default_score: ClassVar[str] = "combined"

    def spectral_norm_layers(self) -> list[Layer]:
        """The layers that training with spectral norm divides by their largest singular value.

        Raises:
            ConfigError: the network has no such layers.
        """
        raise ConfigError(
            f"spectral_norm is not defined for {type(self).__name__}; "
            "use ResidualEBM or set spectral_norm=false"
        )


class GenerativeNetwork(Network, ABC):
    """An energy that also draws images by itself, such as a VAE: it needs no initializer."""

    @abstractmethod
    def draw(self, shape: Sequence[int], random: RandomSource, level: Level) -> Tensor:
        """One draw y per image of ``random``, (B, *shape), at the level."""

    @abstractmethod
    def typical(self, x: Tensor) -> Tensor:
        """An image in the middle of the draws for each x (B, C, H, W), of the same shape."""


class Backbone(Network, ABC):
    """A network from images to images, (B, C, H, W) -> (B, C, H, W), for the heads in `heads.py`.

    The constructor of a subclass takes ``in_channels``, ``num_classes`` and arguments of its own, and
    sets the attributes of `Network`. It also takes ``num_pixels`` if the backbone fixes the size.
    `BACKBONES.register` gives the class a name. If the output starts at zero, training starts at the
    head's Gaussian.
    """

    registry: ClassVar[Registry[Any]] = BACKBONES

    @abstractmethod
    def condition(self, logsnr: Tensor, labels: Tensor | None) -> Any:
        """Compute for `forward` what depends only on the noise level and the labels.

        Args:
            logsnr: the log signal-to-noise ratio of the input, () or (B,).
            labels: (B, A) integers, 0 = not given; None for an unconditional network.
        """

    @abstractmethod
    def forward(self, x: Tensor, condition: Any) -> Tensor:
        """(B, C, H, W) -> the same shape, given the output of `condition`.

        An energy needs a result that is twice differentiable in x.
        """


class Head(Network):
    """A network around a backbone; both take one image shape."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone
        self.in_channels, self.num_classes = backbone.in_channels, backbone.num_classes
        self.num_pixels, self.size_multiple = backbone.num_pixels, backbone.size_multiple

    def spectral_norm_layers(self) -> list[Layer]:
        """The backbone's layers; see `Network.spectral_norm_layers`."""
        return self.backbone.spectral_norm_layers()
