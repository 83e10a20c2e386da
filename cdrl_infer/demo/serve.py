"""Open the models that the demo shows, and serve it on this machine."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from cdrl_infer.demo.plane import is_plane
from cdrl_infer.errors import InputError
from cdrl_infer.pipeline import CDRLPipeline
from cdrl_infer.storage.folder import bundled_models

LOCAL = "127.0.0.1"
PLANE, FIRST_PORT = "toy-2d", 7860


def open_models(
    model: str | None = None, *, device: str | None = None, **options: Any
) -> dict[str, CDRLPipeline]:
    """The models by name: the bundled ones, or one and the bundled model of points in the plane.

    Args:
        model: a bundled model, a folder or a repository; None for all bundled ones.
        device: where to put them; None for the CPU.
        options: of `CDRLPipeline.from_pretrained`, for ``model``.

    Raises:
        CDRLError: a model cannot be opened.
    """
    if model is not None:
        pipe = CDRLPipeline.from_pretrained(model, device=device, **options)
        pipes = {pipe.name: pipe}
        if is_plane(pipe.model):
            return pipes
        names = [PLANE]
    else:
        pipes = {}
        names = ["fashion-mnist", *bundled_models()]
    for name in dict.fromkeys(names):
        pipes[name] = CDRLPipeline.from_pretrained(name, device=device)
    return pipes


@contextmanager
def served(
    pipes: Mapping[str, CDRLPipeline], *, port: int | None = None, browser: bool = False
) -> Iterator[str]:
    """Serve the page on this machine alone until the block ends; uploaded files are deleted then.

    Args:
        pipes: see `open_models`.
        port: of 127.0.0.1; None for the first free one from 7860 on.
        browser: open the page in the user's browser.

    Yields:
        The address of the page.

    Raises:
        InputError: gradio cannot be imported, or the port is not free.
    """
    with tempfile.TemporaryDirectory(prefix="cdrl-demo-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder  # of uploads; gradio makes it when it is imported
        from cdrl_infer.demo.app import build, launch_options

        app = build(pipes)
        try:
            _, address, _ = app.launch(
                server_name=LOCAL,
                server_port=port,
                inbrowser=browser,
                prevent_thread_lock=True,
                quiet=True,
                **launch_options(),
            )
        except OSError:
            raise InputError(
                f"port {port or FIRST_PORT} of this machine is not free: choose another with --port"
            ) from None
        try:
            yield str(address)
        finally:
            app.close(verbose=False)
