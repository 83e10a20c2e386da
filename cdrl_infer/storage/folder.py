"""A model as a folder on a disk; docs/format.md describes the format in full.

::

    config.json                  format_version, schedule, sampler, image, labels, training
    model_index.json             the class of each network
    ebm/config.json              its constructor's arguments
    ebm/model.safetensors        its weights, loaded as float32; model.fp16.safetensors: a variant
    initializer/                 the same (absent for DRL, which has no initializer)
    README.md, samples.png       the model card and its picture (optional)
    statistics.safetensors       of the scores of in-distribution images (optional)
    normalisers.json             what makes densities of the energies (optional)

Nothing in a folder is trusted. It can name no code and no file, and loading allocates no more than the
stored weights need.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from cdrl_infer.config import check_keys, from_config
from cdrl_infer.device import default_switches
from cdrl_infer.errors import CheckpointError, ConfigError, NumericalError, did_you_mean, listing
from cdrl_infer.files import added_files, finish_moving
from cdrl_infer.likelihood.normalisers import NORMALISERS, read_normalisers
from cdrl_infer.model import Attribute, CDRLModel, ImageShape, SamplerDefaults
from cdrl_infer.networks.base import Network
from cdrl_infer.networks.registry import NETWORKS
from cdrl_infer.schedule import NoiseSchedule
from cdrl_infer.scoring.reference import STATISTICS, read_statistics
from cdrl_infer.storage.weights import (
    VARIANTS,
    check_other_variants,
    load_network,
    stored_type,
    to_weights,
    weights_file,
)
from cdrl_infer.untrusted import MAX_PICTURE, MAX_TEXT, read_bytes, read_json, read_text
from cdrl_infer.version import __version__

FORMAT_VERSION = 3
UPGRADE = "python -m cdrl_infer.storage.upgrade"
CONFIG, INDEX, CARD, PICTURE = "config.json", "model_index.json", "README.md", "samples.png"
OF_WEIGHTS = (STATISTICS, NORMALISERS)  # belong to the weights, and are left out beside others
OPTIONAL = (CARD, PICTURE, *OF_WEIGHTS)
LEFT_BY_SYSTEMS = ("lost+found", "desktop.ini", "Thumbs.db")  # in folders that users call empty
BUNDLED = Path(__file__).parents[1] / "models"
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
    """The names of all files that `load_model` looks for.

    Those in `OPTIONAL` may be absent, and those of the initializer where the model has none.

    Raises:
        ConfigError: an unknown variant.
    """
    weights = weights_file(variant)
    networks = [f"{role}/{name}" for role in NETWORKS for name in (CONFIG, weights)]
    return [CONFIG, INDEX, *networks, *OPTIONAL]


@default_switches()
def load_model(folder: str | os.PathLike[str], *, variant: str | None = None) -> CDRLModel:
    """Read a model folder, on the CPU, in float32.

    Sizes are compared with the header of the weights before anything is allocated.

    Args:
        folder: as `save_model` writes it.
        variant: which weights: "fp16", "bf16", or None for ``model.safetensors``.

    Raises:
        CheckpointError: a file is missing, damaged, foreign or of another format; its tensors are not
            those of the network, or not finite; or a link leads out of the folder.
        ConfigError: a config with an unknown key or class, or a value out of range.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: expected a model folder, found none")
    weights_file(variant)  # raises for an unknown one
    _finish_save(folder)
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
            role: cls and load_network(folder, role, cls, variant, image, labels)
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
            normalisers=read_normalisers(folder, schedule.num_levels),
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
    """Write a model folder, whole or not at all; it replaces a model that is there already.

    The folder itself, other variants of this model's weights and all files that are not a model's stay.
    If the process is killed, the folder holds the old model, or the new one once it is opened again.

    Statistics and normalisers that belong to other weights are left out, with a warning: so the model
    itself is saved in any case.

    Args:
        model: what to write; its networks may be on any device.
        folder: where to; it is made with its parents if it does not exist.
        dtype: of the stored weights, float32, float16 or bfloat16 (half the size; loaded as float32);
            by default that of the variant.
        variant: "fp16" or "bf16" for a file of that name beside, or in place of,
            ``model.safetensors``.

    Raises:
        CheckpointError: the folder holds something else or cannot be written to, or the weights are
            not finite.
        ConfigError: ``training`` is not JSON, a network's class is not registered, the dtype is not the
            variant's, or `load_model` would refuse a text or the picture.
    """
    folder = Path(folder)
    weights = weights_file(variant)
    dtype = stored_type(dtype, variant)
    check_replaceable(folder)
    config = {
        "format_version": FORMAT_VERSION,
        "library": "cdrl",
        "library_version": __version__,
        **model.config(),
    }
    index: dict[str, Any] = {"_class_name": "CDRLPipeline", **dict.fromkeys(NETWORKS)}
    files = {CONFIG: _to_json(config)}
    for role, network in model.networks.items():
        index[role] = ["cdrl", NETWORKS[role].checked_name(type(network))]
        files[f"{role}/{CONFIG}"] = _to_json(network.config)
        files[f"{role}/{weights}"] = to_weights(role, network, dtype)
        check_other_variants(folder, role, network, variant)
    files[INDEX] = _to_json(index)
    if model.model_card is not None:
        files[CARD] = model.model_card.encode()
    if model.samples is not None:
        files[PICTURE] = model.samples
    for name, part, mend in (
        (STATISTICS, model.statistics, "; calibrate again"),
        (NORMALISERS, model.normalisers, ""),
    ):
        if part is not None:
            try:
                part.check_weights(model)
                files[name] = part.to_bytes()
            except (ConfigError, NumericalError) as error:
                _log.warning("%s is not written to %s: %s%s", name, folder, error, mend)
    _check_readable(files)
    try:
        folder.resolve().parent.mkdir(parents=True, exist_ok=True)
        with added_files(folder, _outdated(folder, files)) as new:
            for path, content in files.items():
                (new / path).parent.mkdir(exist_ok=True)
                (new / path).write_bytes(content)
    except OSError as error:
        raise CheckpointError(f"cannot write the model to {folder}: {error.strerror}") from error


def check_replaceable(folder: Path) -> None:
    """Check that a model can be saved to a folder: it is absent, empty or holds a model.

    Raises:
        CheckpointError: it holds something else, or is not writable.
    """
    try:
        present = target = folder.resolve()
        while not present.exists():
            present = present.parent
        writable = os.access(present, os.W_OK | os.X_OK)
    except (OSError, RuntimeError) as error:  # RuntimeError: links that form a circle
        raise CheckpointError(f"{folder}: cannot save a model there ({error})") from None
    if not present.is_dir():
        raise CheckpointError(f"{folder}: expected a folder to save to, found a file: {present}")
    if not writable:
        raise CheckpointError(f"cannot save a model to {folder}: {present} is not writable")
    if present == target:
        _finish_save(folder)
        _check_content(folder)


def _check_content(folder: Path) -> None:
    """Raise `CheckpointError` for a folder in which a model would mix with something else."""
    entries = sorted(os.listdir(folder))
    foreign = [name for name in entries if name[0] != "." and name not in LEFT_BY_SYSTEMS]
    if foreign and CONFIG not in entries:
        raise CheckpointError(
            f"{folder}: not a CDRL model folder, so not replaced (it holds "
            f"{listing(foreign, 3)}); name a new or empty folder"
        )
    if foreign and read_json(folder, CONFIG).get("library") != "cdrl":
        raise CheckpointError(
            f"{folder}: config.json is not a CDRL model's, so the folder is not replaced; "
            "name a new or empty folder"
        )
    for name in {*NETWORKS, *(name for variant in VARIANTS for name in model_files(variant))}:
        path, as_folder = folder / name, name in NETWORKS
        wrong = path.is_dir() != as_folder or (
            as_folder and (path.is_symlink() or not os.access(path, os.W_OK | os.X_OK))
        )
        if os.path.lexists(path) and wrong:
            kind = "writable folder" if as_folder else "file"
            raise CheckpointError(
                f"{path}: expected a {kind}, found something else; move it away, or save to a new "
                "folder"
            )


def _outdated(folder: Path, files: Mapping[str, bytes]) -> list[str]:
    """The names of a model's files in a folder that do not belong to the model of ``files``."""
    names = [*OPTIONAL]
    for role in NETWORKS:
        if f"{role}/{CONFIG}" not in files:
            names += [f"{role}/{CONFIG}", *(f"{role}/{weights_file(v)}" for v in VARIANTS)]
    return [name for name in names if name not in files and (folder / name).exists()]


def _finish_save(folder: Path) -> None:
    """Finish a save that was killed while its files moved to their places."""
    try:
        finish_moving(folder)
    except OSError as error:
        raise CheckpointError(
            f"{folder}: an interrupted save left files that cannot be moved to their places "
            f"({error.strerror}); open the folder as a user who may write to it"
        ) from error


def labels_from(config: object, where: str) -> tuple[Attribute, ...]:
    """The attributes in 'labels' of a JSON file; `ConfigError` unless it is a list of them."""
    if not isinstance(config, list):
        raise ConfigError(f"{where}: 'labels' must be a list, found {config!r:.60}")
    return tuple(from_config(Attribute, attribute, f"{where}, 'labels'") for attribute in config)


def _check_format(config: Mapping[str, Any], where: str) -> None:
    """Raise `CheckpointError` unless this is the config of a model in the format read here."""
    version, writer = config.get("format_version"), config.get("library_version")
    if config.get("library") != "cdrl" or type(version) is not int:
        raise CheckpointError(
            f'{where}: expected "library": "cdrl" and a format_version, found none'
        )
    if version < 1:
        raise CheckpointError(
            f"{where}: format_version must be at least 1, found {version!s:.20}; someone changed the "
            "file, take it from the original again"
        )
    if version < FORMAT_VERSION:
        mend = "convert or export the model again"
        if version == 2:
            mend = f"upgrade a copy of the folder: {UPGRADE} FOLDER"
        raise CheckpointError(
            f"{where}: expected format version {FORMAT_VERSION}, found {version}; {mend}"
        )
    if version > FORMAT_VERSION:
        # The version that wrote the file can read it.
        known = isinstance(writer, str) and re.fullmatch(r"\d+(\.\d+){1,3}[a-z0-9.]{0,12}", writer)
        needed = f">={writer}" if known else ""
        raise CheckpointError(
            f"{where}: expected format version {FORMAT_VERSION}, found {version!s:.20}; "
            f"update cdrl {__version__}: pip install -U 'cdrl{needed}'"
        )


def _read_index(folder: Path) -> dict[str, type[Network] | None]:
    """The class of each network by role; None for an initializer that the model does not have."""
    index = read_json(folder, INDEX)
    where = str(folder / INDEX)
    check_keys(index, required=["_class_name", *NETWORKS], optional=[], where=where)
    if index["_class_name"] != "CDRLPipeline":
        raise ConfigError(
            f"{where}: expected '_class_name' CDRLPipeline, found {index['_class_name']!r:.60}"
        )
    classes: dict[str, type[Network] | None] = {}
    for role, registry in NETWORKS.items():
        entry = index[role]
        if entry is None and role == "initializer":
            classes[role] = None
            continue
        if not isinstance(entry, list) or len(entry) != 2 or entry[0] != "cdrl":
            raise ConfigError(f'{where}: {role!r} must be ["cdrl", a class], found {entry!r:.60}')
        classes[role] = registry.find(entry[1], where)
    return classes


def _check_readable(files: Mapping[str, bytes]) -> None:
    """Raise `ConfigError` for a file that `load_model` would refuse."""
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
