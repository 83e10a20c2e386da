"""From a training state to a model that `cdrl_infer` opens: averaged weights, norms folded in."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cdrl_infer.config import check_keys, from_config
from cdrl_infer.errors import CheckpointError, ConfigError, listing, shown
from cdrl_infer.files import replaced_file
from cdrl_infer.model import Attribute, CDRLModel, ImageShape
from cdrl_infer.storage.folder import labels_from
from cdrl_infer.untrusted import MAX_PICTURE, read_bytes, read_json
from cdrl_train.card import render
from cdrl_train.config import TrainConfig
from cdrl_train.engine import checkpoints
from cdrl_train.engine.state import build_networks
from cdrl_train.engine.trainer import Trainer
from cdrl_train.spectral import add_spectral_norm, folded_state

STORED_TYPES = {"float32": torch.float32, "float16": torch.float16}
CONFIG, DATA = "config.json", "data.json"  # in a run's folder


@dataclass(frozen=True)
class DataRecord:
    """What a model has to know of its training data; ``data.json`` in the folder of a run.

    Args:
        name: name of the data, for the card.
        image: the shape of one image.
        labels: one entry per attribute.
        source: the data as the user named them, to resume with; a model never holds it.
        init_from: the model whose networks the run started with, likewise.
        held_out: the names of the classes that were left out.
    """

    name: str
    image: ImageShape
    labels: tuple[Attribute, ...] = ()
    source: str | None = None
    init_from: str | None = None
    held_out: tuple[str, ...] = ()


def to_model(trainer: Trainer) -> CDRLModel:
    """The EMA networks of a run as a `CDRLModel`; the trainer is left as it is."""
    image = ImageShape(*trainer.stream.images.shape[1:])
    return model_of_state(
        trainer.config, image, trainer.stream.data.attributes, trainer.state_dict()
    )


def model_of_state(
    config: TrainConfig,
    image: ImageShape,
    labels: tuple[Attribute, ...],
    state: Mapping[str, Any],
) -> CDRLModel:
    """The averaged networks of a training state (`Trainer.state_dict`), on the CPU.

    Raises:
        CheckpointError: the state has other networks than the run.
    """
    num_classes = tuple(len(attribute.values) for attribute in labels)
    # Initial weights that nobody sees must not cost draws.
    with torch.random.fork_rng(devices=[]):
        plain, trained = (build_networks(config, image, num_classes) for _ in range(2))
        if config.spectral_norm:
            add_spectral_norm(trained[0])
    ebm = _averaged(plain[0], trained[0], state["averages"]["ebm"])
    initializer: nn.Module | None = None
    if plain[1] is not None and trained[1] is not None:
        initializer = _averaged(plain[1], trained[1], state["averages"]["initializer"])
    return CDRLModel(
        ebm,
        initializer,
        schedule=config.schedule,
        image=image,
        labels=labels,
        sampler=config.sampler,
        training={
            "config": config.to_dict(),
            "steps": state["step"],
            "images": state["images_seen"],
            "hours": round(state["seconds"] / 3600, 3),
        },
    )


def picture_of(run: Path, step: int) -> Path:
    """Where a run keeps the picture of its samples at a step."""
    return run / "samples" / f"step-{step:08d}.png"


def add_card(
    model: CDRLModel,
    config: TrainConfig,
    run: Path,
    *,
    data: str,
    init_from: str | None = None,
    held_out: Sequence[str] = (),
    licence: str | None = None,
    datasets: Sequence[str] = (),
) -> None:
    """Give a model its card, and the picture of its step if the run has one.

    Args:
        model: a model from `to_model`.
        config: options of the run.
        run: folder of the run.
        data: name of the training data.
        init_from: the model that the run started with, if any; a folder is named without its parents.
        held_out: the names of the classes that were left out.
        licence, datasets: see `cdrl_infer.storage.card.render`.
    """
    preview = picture_of(run, model.training["steps"])
    if preview.is_file() and preview.stat().st_size <= MAX_PICTURE:
        model.samples = read_bytes(preview.parent, preview.name, MAX_PICTURE)
    if init_from is not None:
        start = Path(init_from)
        model.training["init_from"] = start.name if start.is_absolute() else init_from
    if held_out:
        model.training["held_out_classes"] = list(held_out)
    model.model_card = render(model, config, data=data, licence=licence, datasets=datasets)


def record_data(run: Path, record: DataRecord) -> None:
    """Write ``data.json`` into the folder of a run; `export_run` and ``--resume`` need it."""
    with replaced_file(run / DATA) as new:
        new.write_text(json.dumps(asdict(record), indent=2) + "\n", encoding="utf-8")


def export_run(
    run: Path,
    step: int | None = None,
    *,
    licence: str | None = None,
    datasets: Sequence[str] = (),
) -> tuple[CDRLModel, TrainConfig]:
    """The model of a checkpoint with its card, and the options of its run.

    Args:
        run: folder of the run.
        step: step of the checkpoint; by default the newest.
        licence, datasets: for the card, see `cdrl_infer.storage.card.render`.

    Raises:
        CheckpointError: not the folder of a run, or no such checkpoint.
        ConfigError: the run's options or data record are not ones of this version.
    """
    config, record = _read_run(run)
    path = _checkpoint(run, step)
    state = checkpoints.load(path)
    try:
        model = model_of_state(config, record.image, record.labels, state)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    except (LookupError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path} is not a training state of this package ({error!r:.200})"
        ) from None
    add_card(
        model,
        config,
        run,
        data=record.name,
        init_from=record.init_from,
        held_out=record.held_out,
        licence=licence,
        datasets=datasets,
    )
    return model, config


def _read_run(run: Path) -> tuple[TrainConfig, DataRecord]:
    if not (run / CONFIG).is_file():
        raise CheckpointError(
            f"{run}: expected the folder of a training run, found no {CONFIG} in it"
        )
    if not (run / DATA).is_file():
        raise CheckpointError(
            f"{run}: expected {DATA}, which tells image size and labels, found none; "
            "`cdrl-train --resume` writes it"
        )
    try:
        config = TrainConfig.from_dict(read_json(run, CONFIG))
    except ConfigError as error:
        raise ConfigError(f"{run / CONFIG}: {error}") from None
    return config, read_record(run)


def read_record(run: Path) -> DataRecord:
    """The record of the data in the folder of a run.

    Raises:
        CheckpointError: there is none, or it cannot be read.
        ConfigError: it has other content.
    """
    data, where = read_json(run, DATA), str(run / DATA)
    optional = ["source", "init_from"]
    required = ["name", "image", "labels"]
    check_keys(data, required=required, optional=[*optional, "held_out"], where=where)
    image = from_config(ImageShape, data["image"], f"{where}, 'image'")
    told = [None if data.get(key) is None else str(data[key]) for key in optional]
    gone = data.get("held_out", ())
    if not isinstance(gone, list | tuple):
        raise ConfigError(f"{where}: expected a list of names as held_out, found {gone!r:.60}")
    names, labels = tuple(map(str, gone)), labels_from(data["labels"], where)
    source, start = told
    return DataRecord(str(data["name"]), image, labels, source, start, names)


def _checkpoint(run: Path, step: int | None) -> Path:
    """The file of a step; of the newest if the step is None."""
    steps = {
        int(number): path
        for path in checkpoints.all_of(run / "checkpoints")
        if (number := path.stem.rpartition("-")[2]).isdecimal()
    }
    if not steps:
        raise CheckpointError(f"{run}: expected a checkpoint, found none yet; let the run go on")
    if step is not None and step not in steps:
        raise CheckpointError(f"{run}: no checkpoint of step {step}; there are {listing(steps)}")
    return steps[max(steps) if step is None else step]


def _averaged(plain: nn.Module, trained: nn.Module, average: Mapping[str, Any]) -> nn.Module:
    """``plain`` with the averaged weights of ``trained``, spectral norms folded in."""
    weights = {k.removeprefix("module."): v for k, v in average.items() if k != "n_averaged"}
    try:
        trained.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        raise CheckpointError(f"it does not fit this run's options: {shown(error)}") from None
    plain.load_state_dict(folded_state(trained), strict=True)
    return plain.eval()
