"""Folder <-> safetensors: how a model lies on a disk; docs/format.md says it in full.

::

    config.json                  format_version, schedule, sampler, image, labels, training
    model_index.json             the class of each network
    ebm/config.json              its constructor's arguments
    ebm/model.safetensors        its weights, loaded as float32; model.fp16.safetensors: a variant
    initializer/                 likewise
    README.md, samples.png       the model card and its picture (optional)
    statistics.safetensors       what in-distribution images score (optional)

Nothing in a folder is trusted: it can name no code and no file, and no more is allocated than the
weights on the disk have.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from cdrl_infer.config import check_keys, from_config
from cdrl_infer.errors import (
    CheckpointError,
    ConfigError,
    NumericalError,
    did_you_mean,
    listing,
)
from cdrl_infer.files import replaced_folder
from cdrl_infer.model import Attribute, CDRLModel, ImageShape, SamplerDefaults, check_sizes
from cdrl_infer.networks.registry import NETWORKS, network_class
from cdrl_infer.networks.skeleton import skeleton
from cdrl_infer.schedule import NoiseSchedule
from cdrl_infer.scoring.reference import STATISTICS, read_statistics
from cdrl_infer.untrusted import (
    MAX_PICTURE,
    MAX_TEXT,
    StoredTensors,
    read_bytes,
    read_json,
    read_text,
)
from cdrl_infer.version import __version__

FORMAT_VERSION = 2
NOT_THESE = "are these the weights of the network in config.json?"
CONFIG, INDEX, CARD, PICTURE = "config.json", "model_index.json", "README.md", "samples.png"
OPTIONAL = (CARD, PICTURE, STATISTICS)
FILES = (CONFIG, INDEX, *OPTIONAL, "ebm", "initializer")
BUNDLED = Path(__file__).parents[1] / "models"
VARIANTS = {None: torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
STORED_TYPES = ("F16", "BF16", "F32")
PNG_START = b"\x89PNG\r\n\x1a\n"

_log = logging.getLogger(__name__)


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


def model_files(variant: str | None = None) -> list[str]:
    """The names of all files that `load_model` looks for; those of `OPTIONAL` may be absent.

    Raises:
        ConfigError: an unknown variant.
    """
    weights = _weights_file(variant)
    networks = [f"{role}/{name}" for role in NETWORKS for name in (CONFIG, weights)]
    return [CONFIG, INDEX, *networks, *OPTIONAL]


def load_model(folder: str | os.PathLike[str], *, variant: str | None = None) -> CDRLModel:
    """Read a model folder, on the CPU, in float32.

    Sizes are compared with the header of the weights before anything is allocated.

    Args:
        folder: as `save_model` writes it.
        variant: which weights: "fp16", "bf16", or None for ``model.safetensors``.

    Raises:
        CheckpointError: a file is missing, damaged, foreign or of a newer format, or its tensors
            are not those of the network, or not finite; or a link leads out of the folder.
        ConfigError: a config with an unknown key or class, or a value out of range.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: expected a model folder, found none")
    weights = _weights_file(variant)
    config = read_json(folder, CONFIG)
    where = str(folder / CONFIG)
    _check_format(config, where)
    check_keys(
        config,
        required=[
            *("format_version", "library", "library_version", "schedule", "sampler", "image"),
            "labels",
        ],
        optional=["training"],
        where=where,
    )
    if not isinstance(config.get("training", {}), dict):
        raise ConfigError(f"{where}: 'training' must be an object")
    schedule = from_config(NoiseSchedule, config["schedule"], f"{where}, 'schedule'")
    sampler = from_config(SamplerDefaults, config["sampler"], f"{where}, 'sampler'")
    image = from_config(ImageShape, config["image"], f"{where}, 'image'")
    labels = labels_from(config["labels"], where)
    classes = _read_index(folder)
    try:
        networks = {
            role: _load_network(folder, role, cls, weights, image, labels)
            for role, cls in classes.items()
        }
        return CDRLModel(
            **networks,
            schedule=schedule,
            image=image,
            labels=labels,
            sampler=sampler,
            training=config.get("training", {}),
            model_card=read_text(folder, CARD),
            samples=_read_picture(folder),
            statistics=read_statistics(folder, schedule.num_levels),
        )
    except ConfigError as error:
        raise ConfigError(f"{folder}: {error}") from None


def save_model(
    model: CDRLModel,
    folder: str | os.PathLike[str],
    *,
    dtype: torch.dtype | None = None,
    variant: str | None = None,
) -> None:
    """Write a model folder, whole or not at all; a model that is there already is replaced.

    Weights of other variants that are there stay if they are those of this model. Statistics of other
    weights than the model's are left out, with a warning: a training that ended here is not lost.

    Args:
        model: what to write; its networks may be on any device.
        folder: where; made if it does not exist, with its parents.
        dtype: of the stored weights, float32, float16 or bfloat16 (half the size; loaded as float32);
            by default that of the variant.
        variant: "fp16" or "bf16" for a file of that name beside, or in place of,
            ``model.safetensors``.

    Raises:
        CheckpointError: the folder holds something else, or cannot be written to, or the weights
            are not finite.
        ConfigError: ``training`` is not JSON, a network's class is not in `NETWORKS`, a dtype that is
            not the variant's, or a text or picture that `load_model` would refuse.
    """
    folder = Path(folder).resolve()
    weights = _weights_file(variant)
    dtype = stored_type(dtype, variant)
    check_replaceable(folder)
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
    index: dict[str, Any] = {"_class_name": "CDRLPipeline"}
    files = {CONFIG: _to_json(config)}
    for role in NETWORKS:
        network = getattr(model, role)
        name = type(network).__name__
        network_class(role, name, f"the {role} to save")
        index[role] = ["cdrl", name]
        files[f"{role}/{CONFIG}"] = _to_json(network.config)
        files[f"{role}/{weights}"] = _to_weights(role, network, dtype)
        files |= _other_variants(folder, role, network, weights)
    files[INDEX] = _to_json(index)
    if model.model_card is not None:
        files[CARD] = model.model_card.encode()
    if model.samples is not None:
        files[PICTURE] = model.samples
    if model.statistics is not None:
        try:
            model.statistics.check_weights(model)
            files[STATISTICS] = model.statistics.to_bytes()
        except (ConfigError, NumericalError) as error:
            _log.warning("%s is not written to %s: %s; calibrate again", STATISTICS, folder, error)
    _check_readable(files)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with replaced_folder(folder) as new:
            for path, content in files.items():
                (new / path).parent.mkdir(exist_ok=True)
                (new / path).write_bytes(content)
    except OSError as error:
        raise CheckpointError(f"cannot write the model to {folder}: {error.strerror}") from error


def stored_type(dtype: torch.dtype | None, variant: str | None) -> torch.dtype:
    """The dtype to store weights in; None is that of the variant.

    Raises:
        ConfigError: an unknown variant, another dtype than the variant's, or one that is not stored.
    """
    weights = _weights_file(variant)
    allowed = [VARIANTS[variant]] if variant else list(VARIANTS.values())
    dtype = dtype or allowed[0]
    if dtype not in allowed:
        raise ConfigError(f"weights in {weights} are stored in {listing(allowed)}, got {dtype}")
    return dtype


def check_replaceable(folder: Path) -> None:
    """Raise `CheckpointError` unless ``folder`` is absent, empty or holds a model and no more."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: expected a folder to save to, found a file")
    entries = sorted(path.name for path in folder.iterdir())
    foreign = [name for name in entries if name not in FILES]
    if entries and (foreign or CONFIG not in entries):
        raise CheckpointError(
            f"{folder}: not a CDRL model folder, so not replaced (it holds "
            f"{listing(foreign or entries, 3)}); name a new or empty folder"
        )
    if entries and read_json(folder, CONFIG).get("library") != "cdrl":
        raise CheckpointError(
            f"{folder}: config.json is not a CDRL model's, so the folder is not replaced; "
            "name a new or empty folder"
        )


def labels_from(config: object, where: str) -> tuple[Attribute, ...]:
    """The attributes that 'labels' of a JSON file names; ConfigError if it is no list of them."""
    if not isinstance(config, list):
        raise ConfigError(f"{where}: 'labels' must be a list, found {config!r:.60}")
    return tuple(from_config(Attribute, attribute, f"{where}, 'labels'") for attribute in config)


def _weights_file(variant: str | None) -> str:
    if variant not in VARIANTS:
        names = [name for name in VARIANTS if name]
        raise ConfigError(
            f"unknown variant {variant!r}, expected {listing(names)} or none"
            f"{did_you_mean(str(variant), names)}"
        )
    return f"model.{variant}.safetensors" if variant else "model.safetensors"


def _check_format(config: Mapping[str, Any], where: str) -> None:
    """Raise `CheckpointError` unless this is the config of a model in the format read here."""
    version, writer = config.get("format_version"), config.get("library_version")
    if config.get("library") != "cdrl" or type(version) is not int:
        raise CheckpointError(
            f'{where}: expected "library": "cdrl" and a format_version, found none'
        )
    if version < 1:
        raise CheckpointError(
            f"{where}: format_version must be at least 1, found {version!s:.20}; the file was changed, "
            "take it from the original again"
        )
    if version < FORMAT_VERSION:
        raise CheckpointError(
            f"{where}: format version {version} found, {FORMAT_VERSION} expected; the file is of an "
            "early version of cdrl: convert or export the model again"
        )
    if version > FORMAT_VERSION:
        # Whoever wrote the file can read it.
        known = isinstance(writer, str) and re.fullmatch(r"\d+(\.\d+){1,3}[a-z0-9.]{0,12}", writer)
        needed = f">={writer}" if known else ""
        raise CheckpointError(
            f"{where}: format version {version!s:.20} found, {FORMAT_VERSION} expected by cdrl "
            f"{__version__}; update it: pip install -U 'cdrl{needed}'"
        )


def _read_index(folder: Path) -> dict[str, type[nn.Module]]:
    """The class of each network by role."""
    index = read_json(folder, INDEX)
    where = str(folder / INDEX)
    check_keys(index, required=["_class_name", *NETWORKS], optional=[], where=where)
    if index["_class_name"] != "CDRLPipeline":
        raise ConfigError(
            f"{where}: expected '_class_name' CDRLPipeline, found {index['_class_name']!r:.60}"
        )
    classes = {}
    for role in NETWORKS:
        entry = index[role]
        if not isinstance(entry, list) or len(entry) != 2 or entry[0] != "cdrl":
            raise ConfigError(f'{where}: {role!r} must be ["cdrl", a class], found {entry!r:.60}')
        classes[role] = network_class(role, entry[1], where)
    return classes


def _load_network(
    folder: Path,
    role: str,
    cls: type[nn.Module],
    weights: str,
    image: ImageShape,
    labels: tuple[Attribute, ...],
) -> nn.Module:
    """The network of one sub-folder, built without memory first, then given the stored tensors."""
    config = read_json(folder, f"{role}/{CONFIG}")
    where = str(folder / role / CONFIG)
    with StoredTensors(folder, f"{role}/{weights}", "the network's weights") as stored:
        network = skeleton(lambda: from_config(cls, config, where), num_stored=len(stored.names))
        check_sizes(role, network, image, labels)
        tensors = _read_weights(stored, network)
    # Copies: a view into the file may lie unaligned, which changes the last bit of a sum.
    tensors = {name: tensor.to(torch.float32, copy=True) for name, tensor in tensors.items()}
    _check_finite(tensors, str(folder / role / weights))
    network.load_state_dict(tensors, strict=True, assign=True)
    return network.eval()


def _read_weights(stored: StoredTensors, network: nn.Module) -> dict[str, Tensor]:
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    return stored.read(shapes, STORED_TYPES, NOT_THESE)


def _other_variants(folder: Path, role: str, network: nn.Module, weights: str) -> dict[str, bytes]:
    """What a folder to be replaced has in other files of weights, by name: it stays."""
    kept = {}
    state = network.state_dict()
    for path in sorted((folder / role).glob("*.safetensors")):
        name = f"{role}/{path.name}"
        if path.name == weights:
            continue
        tensors: dict[str, Tensor] | None = None
        try:
            with StoredTensors(folder, name, "the network's weights") as stored:
                tensors = _read_weights(stored, network)
        except CheckpointError:
            pass
        if tensors is None or any(
            not torch.equal(tensor, state[key].detach().to("cpu", tensor.dtype))
            for key, tensor in tensors.items()
        ):
            raise CheckpointError(
                f"{folder}: {name} has the weights of another model, which would be lost; name a new "
                "folder, or delete that file"
            )
        kept[name] = path.read_bytes()
    return kept


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


def _check_readable(files: Mapping[str, bytes]) -> None:
    """Raise `ConfigError` for what `load_model` would refuse."""
    for name, content in files.items():
        limit = MAX_PICTURE if name == PICTURE else MAX_TEXT
        if len(content) > limit and not name.endswith(".safetensors"):
            raise ConfigError(
                f"{name} may have at most {limit:,} bytes, got {len(content):,}; make it shorter"
            )
    if not files.get(PICTURE, PNG_START).startswith(PNG_START):
        raise ConfigError(f"{PICTURE} must be a PNG, got something else")


def _read_picture(folder: Path) -> bytes | None:
    picture = read_bytes(folder, PICTURE, MAX_PICTURE)
    if picture is not None and not picture.startswith(PNG_START):
        raise CheckpointError(f"{folder / PICTURE}: expected a PNG, found something else")
    return picture


def _to_json(config: Mapping[str, Any]) -> bytes:
    try:
        return (json.dumps(config, indent=2, allow_nan=False, ensure_ascii=False) + "\n").encode()
    except (TypeError, ValueError) as error:
        raise ConfigError(f"the config cannot be written as JSON: {error}") from None
