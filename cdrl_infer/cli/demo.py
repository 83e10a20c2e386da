"""`cdrl-demo`: draw, compose, repair and score in the browser, and see an energy."""

from __future__ import annotations

import signal
import threading

import click

from cdrl_infer.cli.command import (
    DEVICE,
    IMPORT,
    REVISION,
    VARIANT,
    OneLineErrors,
)
from cdrl_infer.errors import InputError
from cdrl_infer.version import __version__


@click.command(
    "cdrl-demo", cls=OneLineErrors, context_settings={"help_option_names": ["-h", "--help"]}
)
@click.option(
    "--model",
    metavar="NAME|FOLDER|USER/MODEL",
    help="Bundled model, folder, or repository of the Hugging Face Hub. [all bundled models]",
)
@REVISION
@VARIANT
@DEVICE
@IMPORT
@click.option(
    "--port", type=click.IntRange(1, 65535), help="Port of the page. [the first free one from 7860]"
)
@click.option(
    "--open/--no-open", "browser", default=True, help="Open the page in your browser. [open]"
)
@click.version_option(__version__, prog_name="cdrl-demo")
def main(
    model: str | None,
    revision: str | None,
    variant: str | None,
    device: str | None,
    port: int | None,
    browser: bool,
) -> None:
    """Show models in the browser: cdrl-demo, then Ctrl-C to end.

    Without --model it shows the models that come with the package. The page is served on this machine
    alone, needs no network and keeps nothing.
    """
    if model is None and (revision is not None or variant is not None):
        raise InputError("--revision and --variant are for one model: name it with --model")
    from cdrl_infer.demo.serve import open_models, served
    from cdrl_infer.device import usual_device

    options = {} if model is None else {"revision": revision, "variant": variant}
    pipes = open_models(model, device=device or usual_device(), **options)
    with served(pipes, port=port, browser=browser) as address:
        ended = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: ended.set())
        click.echo(f"{address} shows {', '.join(pipes)}; press Ctrl-C to end")
        ended.wait()
