"""Options of the command line that the benchmarks share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

MODEL = click.option(
    "--model", metavar="NAME|FOLDER", help="Bundled model or folder. [fashion-mnist]"
)
DATA = click.option(
    "--data", required=True, help="Fashion-MNIST: .npz or torchvision:FashionMNIST."
)
OUTSIDE = click.option(
    "--outside",
    "sources",
    metavar="NAME=DATA",
    multiple=True,
    help="Another set, as mnist=mnist.npz: its test images, of the model's size. Repeatable.",
)
EXTRACTOR = click.option(
    "--extractor-weights",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Safetensors of EfficientNet-Lite0. [those of the installed package]",
)


def draws(kept: str, on: str | None = "Device of the model.") -> Decorator:
    """``--batch-size``, ``--device`` and ``--cache``.

    Args:
        kept: the help text of ``--cache``, which says what it contains.
        on: the help text of ``--device``; None leaves the option out.
    """
    device = [] if on is None else [click.option("--device", default="cpu", help=on)]

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for option in (
            click.option(
                "--cache",
                type=click.Path(file_okay=False, path_type=Path),
                default=Path("runs/benchmarks"),
                help=kept,
            ),
            *device,
            click.option("--batch-size", type=click.IntRange(1), default=64),
        ):
            function = option(function)
        return function

    return decorate


def writes(default: str) -> Decorator:
    """``--out``, the results as JSON."""
    return click.option(
        "--out", type=click.Path(dir_okay=False, path_type=Path), default=Path(default)
    )
