"""Folder <-> safetensors: how a model lies on a disk.

::

    config.json                        format_version, schedule, sampler, image, labels, training
    ebm/config.json                    {"class": …, constructor arguments}
    ebm/model.safetensors              float32 or float16; loaded as float32
    initializer/config.json, model.safetensors
    README.md                          the model card (optional)
"""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from cdrl_infer.errors import CheckpointError, ConfigError, did_you_mean, listing
from cdrl_infer.files import replaced_folder
from cdrl_infer.networks.config import check_keys, from_config
from cdrl_infer.schedule import NoiseSchedule
from cdrl_infer.version import __version__

FORMAT_VERSION = 1
NOT_THESE = "are these the weights of the network in config.json?"
FILES = ("config.json", "README.md", "ebm", "initializer")
BUNDLED = Path(__file__).parent / "models"

# The classes a folder may name, by role; a new network is one more line here.
NETWORKS: dict[str, dict[str, str]] = {
    "ebm": {
        "EnergyUNet": "cdrl_infer.networks.energy_unet:EnergyUNet",
        "ResidualEBM": "cdrl_infer.networks.residual_ebm:ResidualEBM",
    },
    "initializer": {
        "PatchInitializer": "cdrl_infer.networks.initializer:PatchInitializer",
        "UNetInitializer": "cdrl_infer.networks.unet:UNetInitializer",
    },
}


@dataclass(frozen=True)
class SamplerDefaults:
    """How to sample where the caller does not say.

    Args:
        langevin_steps: K, one int for all levels or one per level, t = T … 1.
        step_scale: multiplies the schedule's Langevin step variance.
        score_scale: multiplies the score of the last denoising step.

    Raises:
        ConfigError: a value out of range.
    """

    langevin_steps: int | tuple[int, ...] = 15
    step_scale: float = 1.0
    score_scale: float = 1.0

    def __post_init__(self) -> None:
        steps = self.langevin_steps
        if min((steps,) if isinstance(steps, int) else steps, default=0) < 0:
            raise ConfigError(f"langevin_steps must not be negative, got {steps}")
        if self.step_scale <= 0 or self.score_scale < 0:
            raise ConfigError(
                "expected step_scale > 0 and score_scale >= 0, "
                f"got step_scale={self.step_scale}, score_scale={self.score_scale}"
            )

    def check_levels(self, num_levels: int) -> None:
        """Raise `ConfigError` unless K is one integer or one per level."""
        steps = self.langevin_steps
        if not isinstance(steps, int) and len(steps) != num_levels:
            raise ConfigError(
                f"langevin_steps must be one integer or {num_levels}, one per level, "
                f"got {len(steps)}"
            )


@dataclass(frozen=True)
class ImageShape:
    """Channels, height and width of the images of a model, each at least 1."""

    channels: int
    height: int
    width: int

    def __post_init__(self) -> None:
        if min(self.channels, self.height, self.width) < 1:
            raise ConfigError(f"image sizes must be positive, got {self.shape}")

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return self.channels, self.height, self.width


@dataclass(frozen=True)
class Attribute:
    """An attribute of an image and the names of its values; value k is label k + 1 of a network."""

    name: str
    values: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.values or len(set(self.values)) < len(self.values):
            raise ConfigError(
                f"the values of {self.name!r} must be distinct names, got {listing(self.values)}"
            )


@dataclass
class CDRLModel:
    """All that a folder holds.

    Args:
        ebm: an `EBMNetwork`, of a class named in `NETWORKS`.
        initializer: an `InitializerNetwork`, likewise.
        schedule: the noise levels.
        image: the shape of one image.
        labels: one entry per attribute; () for an unconditional model.
        sampler: the default sampling options.
        training: anything JSON can hold about how the model was made.
        model_card: the text of README.md.

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

    def __post_init__(self) -> None:
        self.sampler.check_levels(self.schedule.num_levels)
        names = [attribute.name for attribute in self.labels]
        if len(set(names)) < len(names):
            raise ConfigError(f"attributes must have distinct names, got {listing(names)}")
        for role in NETWORKS:
            check_sizes(role, getattr(self, role), self.image, self.labels)


def bundled_models() -> list[str]:
    """The names of the models that come with the package."""
    return sorted(path.parent.name for path in BUNDLED.glob("*/config.json"))


def find_model(model: str | os.PathLike[str] | None = None) -> Path:
    """The folder of a bundled model, by name, or a local folder; None is "fashion-mnist".

    Raises:
        CheckpointError: neither.
    """
    name = os.fspath(model) if model is not None else "fashion-mnist"
    bundled = bundled_models()
    folder = BUNDLED / name if name in bundled else Path(name)
    if not folder.is_dir():
        raise CheckpointError(
            f"no model {name!r}: expected a folder, or one of the bundled models "
            f"({listing(bundled) or 'none here'}){did_you_mean(name, bundled)}"
        )
    return folder


def load_model(folder: str | os.PathLike[str]) -> CDRLModel:
    """Read a model folder, on the CPU, in float32.

    Sizes are compared with the header of the weights before anything is allocated.

    Raises:
        CheckpointError: a file is missing, damaged, foreign or of a newer format, or its tensors
            are not those of the network, or not finite.
        ConfigError: a config with an unknown key or class, or a value out of range.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: expected a model folder, found none")
    config = _read_json(folder / "config.json")
    where = str(folder / "config.json")
    version = config.get("format_version")
    if config.get("library") != "cdrl" or type(version) is not int:
        raise CheckpointError(
            f'{where}: expected "library": "cdrl" and a format_version, found none'
        )
    if version < 1:
        raise CheckpointError(
            f"{where}: format_version must be at least 1, found {version}; the file was changed, "
            "take it from the original again"
        )
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{where}: format version {version} found, {FORMAT_VERSION} expected; "
            "update cdrl (`pip install -U cdrl`) to read newer models"
        )
    check_keys(
        config,
        required=[
            *("format_version", "library", "library_version", "schedule", "sampler", "image"),
            "labels",
        ],
        optional=["training"],
        where=where,
    )
    if not isinstance(config["labels"], list) or not isinstance(config.get("training", {}), dict):
        raise ConfigError(f"{where}: 'labels' must be a list, 'training' an object")
    schedule = from_config(NoiseSchedule, config["schedule"], f"{where}, 'schedule'")
    sampler = from_config(SamplerDefaults, config["sampler"], f"{where}, 'sampler'")
    image = from_config(ImageShape, config["image"], f"{where}, 'image'")
    labels = tuple(from_config(Attribute, a, f"{where}, 'labels'") for a in config["labels"])
    try:
        return CDRLModel(
            ebm=_load_network(folder / "ebm", "ebm", image, labels),
            initializer=_load_network(folder / "initializer", "initializer", image, labels),
            schedule=schedule,
            image=image,
            labels=labels,
            sampler=sampler,
            training=config.get("training", {}),
            model_card=_read_card(folder / "README.md"),
        )
    except ConfigError as error:
        raise ConfigError(f"{folder}: {error}") from None


def save_model(
    model: CDRLModel, folder: str | os.PathLike[str], *, dtype: torch.dtype = torch.float32
) -> None:
    """Write a model folder, whole or not at all; a model that is there already is replaced.

    Args:
        model: what to write; its networks may be on any device.
        folder: where; made if it does not exist, with its parents.
        dtype: of the stored weights, float32 or float16 (half the size; loaded as float32).

    Raises:
        CheckpointError: the folder holds something else, or cannot be written to, or the weights
            are not finite.
        ConfigError: ``training`` is not JSON, or a network's class is not in `NETWORKS`.
    """
    folder = Path(folder).resolve()
    _check_replaceable(folder)
    config = {
        "format_version": FORMAT_VERSION,
        "library": "cdrl",
        "library_version": __version__,
        "schedule": model.schedule.config(),
        "sampler": asdict(model.sampler),
        "image": asdict(model.image),
        "labels": [asdict(attribute) for attribute in model.labels],
        "training": model.training,
    }
    files = {"config.json": _to_json(config)}
    for role in NETWORKS:
        network = getattr(model, role)
        name = type(network).__name__
        network_class(role, name, f"the {role} to save")
        files[f"{role}/config.json"] = _to_json({"class": name, **network.config})
        files[f"{role}/model.safetensors"] = _to_weights(role, network, dtype)
    if model.model_card is not None:
        files["README.md"] = model.model_card.encode()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with replaced_folder(folder) as new:
            for path, content in files.items():
                (new / path).parent.mkdir(exist_ok=True)
                (new / path).write_bytes(content)
    except OSError as error:
        raise CheckpointError(f"cannot write the model to {folder}: {error.strerror}") from error


def check_sizes(role: str, network: Any, image: ImageShape, labels: tuple[Attribute, ...]) -> None:
    """Check that a network's sizes fit the images and labels it is for.

    Args:
        role: "ebm" or "initializer", for the message.
        network: with its ``config`` and ``size_multiple``.
        image: the shape of one image.
        labels: one entry per attribute; () for an unconditional network.

    Raises:
        ConfigError: they do not fit.
    """
    channels, multiple = network.config["in_channels"], network.size_multiple
    if channels != image.channels:
        raise ConfigError(
            f"{role}: in_channels is {channels}, but images have {image.channels} channels"
        )
    if image.height % multiple or image.width % multiple:
        raise ConfigError(
            f"{role}: image height and width must be multiples of {multiple}, "
            f"got {image.height} and {image.width}"
        )
    stored = list(network.config["num_classes"])
    named = [len(attribute.values) for attribute in labels]
    if stored != named:
        raise ConfigError(f"{role}: num_classes is {stored}, but 'labels' names {named} values")


def network_class(role: str, name: object, where: str) -> type[nn.Module]:
    """The class of `NETWORKS` of that role and name; ConfigError for any other name."""
    if not isinstance(name, str) or name not in NETWORKS[role]:
        raise ConfigError(
            f"{where}: unknown class {name!r}, expected {listing(NETWORKS[role])}"
            f"{did_you_mean(str(name), NETWORKS[role])}"
        )
    module, _, attribute = NETWORKS[role][name].partition(":")
    found: type[nn.Module] = getattr(importlib.import_module(module), attribute)
    return found


class _Unfilled(TorchFunctionMode):
    """Skips the normal fills of new tensors: the meta device has nothing to fill, and a second of
    imports to do it with."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is nn.init.normal_:
            return kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def _load_network(
    folder: Path, role: str, image: ImageShape, labels: tuple[Attribute, ...]
) -> nn.Module:
    """The network of one sub-folder, built without memory first, then given the stored tensors."""
    config = _read_json(folder / "config.json")
    where = str(folder / "config.json")
    cls = network_class(role, config.pop("class", None), where)
    with torch.device("meta"), _Unfilled():
        network = from_config(cls, config, where)
    check_sizes(role, network, image, labels)
    tensors = _read_weights(folder / "model.safetensors", network.state_dict())
    network.load_state_dict(tensors, strict=True, assign=True)
    return network.eval()


def _read_weights(file: Path, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a file, once names, shapes and types in its header are those expected."""
    if not file.is_file():
        raise CheckpointError(f"{file}: expected the network's weights, found no such file")
    try:
        with safe_open(file, framework="pt", device="cpu") as stored:
            names = set(stored.keys())
            for problem, odd in (
                ("lacks", sorted(expected.keys() - names)),
                ("has the unexpected", sorted(names - expected.keys())),
            ):
                if odd:
                    raise CheckpointError(
                        f"{file}: {problem} tensors {listing(odd, 3)}; {NOT_THESE}"
                    )
            for name, tensor in expected.items():
                header = stored.get_slice(name)
                shape, kind = tuple(header.get_shape()), header.get_dtype()
                if shape != tuple(tensor.shape) or kind not in ("F16", "BF16", "F32"):
                    raise CheckpointError(
                        f"{file}: expected {name} of shape {tuple(tensor.shape)} in F16, BF16 or "
                        f"F32, found {shape} in {kind}; {NOT_THESE}"
                    )
            # Copies: a view into the file may lie unaligned, which changes the last bit of a sum.
            tensors = {
                name: stored.get_tensor(name).to(torch.float32, copy=True) for name in expected
            }
    except SafetensorError as error:
        raise CheckpointError(
            f"{file}: not a whole safetensors file ({error}); copy or download it again"
        ) from None
    _check_finite(tensors, str(file))
    return tensors


def _check_finite(tensors: Mapping[str, Tensor], where: str) -> None:
    for name, tensor in tensors.items():
        if not bool(tensor.isfinite().all()):
            raise CheckpointError(
                f"{where}: {name} holds NaN or infinity, expected finite weights; "
                "go back to an earlier checkpoint"
            )


def _to_weights(role: str, network: nn.Module, dtype: torch.dtype) -> bytes:
    tensors = {
        name: tensor.detach().to("cpu", dtype).contiguous().clone()
        for name, tensor in network.state_dict().items()
    }
    _check_finite(tensors, f"the {role} to save, as {dtype}")
    return to_safetensors(tensors, metadata={"format": "pt"})


def _read_json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise CheckpointError(f"{file}: expected a file of a CDRL model folder, found none")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{file}: not valid JSON ({error})") from None
    if not isinstance(config, dict):
        raise ConfigError(f"{file}: expected an object of named values, found {config!r:.60}")
    return config


def _read_card(file: Path) -> str | None:
    try:
        return file.read_text(encoding="utf-8") if file.is_file() else None
    except UnicodeDecodeError as error:
        raise CheckpointError(
            f"{file}: expected text in UTF-8, found other bytes ({error.reason}); convert or "
            "delete it"
        ) from None


def _to_json(config: Mapping[str, Any]) -> bytes:
    try:
        return (json.dumps(config, indent=2, allow_nan=False, ensure_ascii=False) + "\n").encode()
    except (TypeError, ValueError) as error:
        raise ConfigError(f"the config cannot be written as JSON: {error}") from None


def _check_replaceable(folder: Path) -> None:
    """Raise `CheckpointError` unless ``folder`` is absent, empty or holds a model and no more."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: expected a folder to save to, found a file")
    entries = sorted(path.name for path in folder.iterdir())
    foreign = [name for name in entries if name not in FILES]
    if entries and (foreign or "config.json" not in entries):
        raise CheckpointError(
            f"{folder}: not a CDRL model folder, so not replaced (it holds "
            f"{listing(foreign or entries, 3)}); name a new or empty folder"
        )
    if entries and _read_json(folder / "config.json").get("library") != "cdrl":
        raise CheckpointError(
            f"{folder}: config.json is not a CDRL model's, so the folder is not replaced; "
            "name a new or empty folder"
        )
