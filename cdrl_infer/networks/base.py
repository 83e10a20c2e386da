"""The contracts of networks: what a model asks of each, and what a head asks of its backbone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from torch import Tensor, nn

from cdrl_infer.config import Configurable
from cdrl_infer.errors import ConfigError
from cdrl_infer.networks.registry import BACKBONES
from cdrl_infer.registry import Registry

Layer = nn.Conv2d | nn.Linear


class Network(Configurable, nn.Module):
    """A network of a model: an energy, an initializer or the backbone of one.

    The arguments of its constructor are annotated and hold what JSON can hold (or a `Backbone`): a model
    folder stores them. All its tensors are parameters or persistent buffers in floating point: a model
    folder stores no others.

    Attributes:
        in_channels: channels of the images.
        num_classes: how many values each attribute has; () for an unconditional network.
        num_pixels: height times width of the images, for a network that fixes it; else None.
        size_multiple: height and width of the images must be divisible by this.
    """

    in_channels: int
    num_classes: tuple[int, ...]
    num_pixels: int | None = None
    size_multiple: int = 1

    def spectral_norm_layers(self) -> list[Layer]:
        """The layers that training normalises by their largest singular value, if it is asked to.

        Raises:
            ConfigError: there are none, as in a network with layers that start at zero.
        """
        raise ConfigError(
            f"spectral_norm is not defined for {type(self).__name__}; "
            "use ResidualEBM or set spectral_norm=false"
        )


class Backbone(Network, ABC):
    """A network from images to images, (B, C, H, W) -> (B, C, H, W), for the heads in `heads.py`.

    A subclass takes ``in_channels`` and ``num_classes`` (and, if it fixes them, ``num_pixels``) in its
    constructor, beside arguments of its own, and sets the attributes of `Network`. `BACKBONES.register`
    gives it a name. An output that starts at zero makes training start at the head's Gaussian.
    """

    registry: ClassVar[Registry[Any]] = BACKBONES

    @abstractmethod
    def condition(self, logsnr: Tensor, labels: Tensor | None) -> Any:
        """Everything that depends on noise level and labels alone, for `forward`.

        Args:
            logsnr: the log signal-to-noise ratio of the input, () or (B,).
            labels: (B, A) integers, 0 = not given; None for an unconditional network.
        """

    @abstractmethod
    def forward(self, x: Tensor, condition: Any) -> Tensor:
        """(B, C, H, W) -> the same shape, given the output of `condition`.

        The result is twice differentiable in x if the backbone is to serve in an energy.
        """


class Head(Network):
    """A network around a backbone; its images are those of the backbone."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone
        self.in_channels, self.num_classes = backbone.in_channels, backbone.num_classes
        self.num_pixels, self.size_multiple = backbone.num_pixels, backbone.size_multiple

    def spectral_norm_layers(self) -> list[Layer]:
        """Those of the backbone."""
        return self.backbone.spectral_norm_layers()
