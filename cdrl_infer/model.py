"""A model: networks, noise levels, the shape of its images and the names of its labels."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cdrl_infer.errors import ConfigError, listing
from cdrl_infer.schedule import NoiseSchedule

if TYPE_CHECKING:
    from cdrl_infer.likelihood.normalisers import Normalisers
    from cdrl_infer.scoring.reference import ReferenceStatistics

# Limits that no real model reaches.
MAX_STEPS, MAX_VALUES, MAX_NAME = 10_000, 2**22, 200
MAX_SIDE = 64  # of an image at a network's coarsest resolution


@dataclass(frozen=True)
class SamplerDefaults:
    """Sampling options that a caller may leave out.

    Args:
        langevin_steps: K, one integer for all transitions or one per transition, t = T … 1.
        step_scale: multiplies the schedule's Langevin step variance, for the model's own kernel. With
            another kernel the default is 1.
        score_scale: multiplies the score of the last denoising step.
        kernel: a name in `cdrl_infer.kernels.KERNELS`.

    Raises:
        ConfigError: a value out of range.
    """

    langevin_steps: int | tuple[int, ...] = 15
    step_scale: float = 1.0
    score_scale: float = 1.0
    kernel: str = "langevin"

    def __post_init__(self) -> None:
        steps = self.langevin_steps
        each = (steps,) if isinstance(steps, int) else steps
        if min(each, default=0) < 0:
            raise ConfigError(f"langevin_steps must not be negative, got {steps}")
        if self.step_scale <= 0 or self.score_scale < 0:
            raise ConfigError(
                "expected step_scale > 0 and score_scale >= 0, got step_scale="
                f"{self.step_scale}, score_scale={self.score_scale}"
            )

    def check_levels(self, num_levels: int) -> None:
        """Raise `ConfigError` unless K is one integer or one per transition, and the sum has a limit."""
        steps = self.langevin_steps
        if not isinstance(steps, int) and len(steps) != num_levels:
            raise ConfigError(
                f"langevin_steps must be one integer or {num_levels}, one per level, "
                f"got {len(steps)}"
            )
        total = num_levels * steps if isinstance(steps, int) else sum(steps)
        if total > MAX_STEPS:
            raise ConfigError(
                f"expected at most {MAX_STEPS:,} Langevin steps in all {num_levels} transitions "
                f"together, got {total:,}"
            )


@dataclass(frozen=True)
class ImageShape:
    """Channels, height and width of the images of a model, each at least 1.

    Raises:
        ConfigError: a size is not positive, or an image exceeds `MAX_VALUES`.
    """

    channels: int
    height: int
    width: int

    def __post_init__(self) -> None:
        if min(self.channels, self.height, self.width) < 1:
            raise ConfigError(f"image sizes must be positive, got {self.shape}")
        if self.channels * self.height * self.width > MAX_VALUES:
            raise ConfigError(f"an image must have at most {MAX_VALUES:,} values, got {self.shape}")

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return self.channels, self.height, self.width


@dataclass(frozen=True)
class Attribute:
    """An attribute of an image and the names of its values; a network calls value k label k + 1."""

    name: str
    values: tuple[str, ...]

    def __post_init__(self) -> None:
        for name in (self.name, *self.values):
            if not 1 <= len(name) <= MAX_NAME or not name.isprintable():
                raise ConfigError(
                    f"a label must be a printable name of at most {MAX_NAME} characters, "
                    f"got {name!r:.60}"
                )
        if not self.values or len(set(self.values)) < len(self.values):
            raise ConfigError(
                f"the values of {self.name!r} must be distinct names, got {listing(self.values)}"
            )


@dataclass
class CDRLModel:
    """Everything that a model folder holds.

    Args:
        ebm: a network of a class in `cdrl_infer.networks.registry.ENERGIES`.
        initializer: a network of a class in `INITIALIZERS` there; None for DRL.
        schedule: the noise levels.
        image: the shape of one image.
        labels: one entry per attribute; () for an unconditional model.
        sampler: the default sampling options.
        training: anything JSON can hold about how the model was made.
        model_card: the text of README.md.
        samples: a PNG, samples.png, for the card to show.
        statistics: of the scores of in-distribution images; None: the model is not calibrated.
        normalisers: make densities of the energies; None: not computed.

    Raises:
        ConfigError: parts that do not fit each other.
    """

    ebm: Any
    initializer: Any
    schedule: NoiseSchedule
    image: ImageShape
    labels: tuple[Attribute, ...] = ()
    sampler: SamplerDefaults = SamplerDefaults()
    training: dict[str, Any] = field(default_factory=dict)
    model_card: str | None = None
    samples: bytes | None = None
    statistics: ReferenceStatistics | None = None
    normalisers: Normalisers | None = None

    def __post_init__(self) -> None:
        self.sampler.check_levels(self.schedule.num_levels)
        if self.statistics is not None:
            self.statistics.check_levels(self.schedule.num_levels)
        names = [attribute.name for attribute in self.labels]
        if len(set(names)) < len(names):
            raise ConfigError(f"attributes must have distinct names, got {listing(names)}")
        for role, network in self.networks.items():
            check_sizes(role, network, self.image, self.labels)

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        device: torch.device = next(self.ebm.parameters()).device
        return device

    @property
    def networks(self) -> dict[str, Any]:
        """The networks that the model has, by role: "ebm" and "initializer".

        Where a network was compiled by `torch.compile`, it is the original.
        """
        roles = {"ebm": self.ebm, "initializer": self.initializer}
        return {role: original(network) for role, network in roles.items() if network is not None}

    def config(self) -> dict[str, Any]:
        """What ``config.json`` holds of the model, as objects of JSON."""
        return {
            "schedule": self.schedule.config(),
            "sampler": asdict(self.sampler),
            "image": asdict(self.image),
            "labels": [asdict(attribute) for attribute in self.labels],
            "training": self.training,
        }


def original(network: Any) -> Any:
    """A network itself, where `torch.compile` has wrapped it."""
    return getattr(network, "_orig_mod", network)


def state_of(network: Any) -> dict[str, Tensor]:
    """The ``state_dict`` of a network, with the same names where parts of it are compiled."""
    state: dict[str, Tensor] = network.state_dict()
    return {name.replace("_orig_mod.", ""): tensor for name, tensor in state.items()}


def check_sizes(role: str, network: Any, image: ImageShape, labels: tuple[Attribute, ...]) -> None:
    """Check that a network's sizes fit the images and labels it is for.

    Args:
        role: "ebm" or "initializer", for the message.
        network: with the attributes of `cdrl_infer.networks.base.Network`.
        image: the shape of one image.
        labels: one entry per attribute; () for an unconditional network.

    Raises:
        ConfigError: they do not fit.
    """
    channels, multiple, pixels = network.in_channels, network.size_multiple, network.num_pixels
    if channels != image.channels:
        raise ConfigError(
            f"{role}: in_channels is {channels}, but images have {image.channels} channels"
        )
    if image.height % multiple or image.width % multiple:
        raise ConfigError(
            f"{role}: image height and width must be multiples of {multiple}, "
            f"got {image.height} and {image.width}"
        )
    size = getattr(network, "image_size", None)
    if size is not None and tuple(size) != (image.height, image.width):
        raise ConfigError(
            f"{role}: image_size is {size[0]} x {size[1]}, but images are {image.height} x "
            f"{image.width}; set {role}.image_size=[{image.height},{image.width}]"
        )
    found = image.height * image.width
    if pixels not in (None, found):
        raise ConfigError(f"{role}: num_pixels is {pixels}, but images have {found} pixels")
    limit = (MAX_SIDE * max(multiple, 4)) ** 2
    if pixels is None and found > limit:
        raise ConfigError(
            f"{role}: expected images of at most {limit:,} pixels for a network with size_multiple "
            f"{multiple}, got {image.height} x {image.width}; larger images need more resolutions"
        )
    stored, named = list(network.num_classes), [len(attribute.values) for attribute in labels]
    if stored != named:
        raise ConfigError(
            f"{role}: num_classes is {stored!s:.60}, but 'labels' has {named!s:.60} values"
        )
