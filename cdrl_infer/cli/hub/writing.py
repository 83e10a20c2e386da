"""Shared by the commands that write a model folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    import torch

    from cdrl_infer.model import CDRLModel

Command = TypeVar("Command", bound=Callable[..., Any])
OPTIONS = (
    click.option(
        "--dtype",
        type=click.Choice(["float32", "float16", "bfloat16"]),
        help="Type of the stored weights. They are loaded as float32.",
    ),
    click.option(
        "--variant",
        type=click.Choice(["fp16", "bf16"]),
        help="Write model.VARIANT.safetensors and keep the other weights in FOLDER.",
    ),
    click.option("--license", "licence", metavar="ID", help="Licence in the card, e.g. mit."),
    click.option(
        "--dataset", "datasets", multiple=True, metavar="NAME", help="Data set in the card."
    ),
    click.option("--json", "as_json", is_flag=True, help="Print the result as JSON."),
)


def writes_a_model(command: Command) -> Command:
    """Give a command the options for writing a model folder."""
    for option in reversed(OPTIONS):
        command = option(command)
    return command


def check_target(folder: str, dtype: str | None, variant: str | None) -> torch.dtype | None:
    """Refuse what `save_model` would refuse, before any work; returns the dtype of that name.

    Raises:
        CheckpointError, ConfigError: see `cdrl_infer.storage.folder.save_model`.
    """
    import torch

    from cdrl_infer.storage.folder import check_replaceable
    from cdrl_infer.storage.weights import stored_type

    check_replaceable(Path(folder))
    named: torch.dtype | None = getattr(torch, dtype) if dtype else None
    stored_type(named, variant)
    return named


def tell(model: CDRLModel, folder: str, as_json: bool, **more: object) -> None:
    """Print the folder, or with ``--json`` what is in it."""
    if not as_json:
        click.echo(folder)
        return
    made = {
        "folder": folder,
        "image": model.image.shape,
        "labels": {attribute.name: len(attribute.values) for attribute in model.labels},
        "networks": {role: network.config for role, network in model.networks.items()},
        "langevin_steps": model.sampler.langevin_steps,
        "score_scale": model.sampler.score_scale,
        **more,
    }
    click.echo(json.dumps(made, indent=2))
