"""The page: the tabs together, and how gradio serves it. It sends nothing to other hosts."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cdrl_infer.demo.live import Runs
from cdrl_infer.demo.plane import is_plane
from cdrl_infer.demo.uploads import MAX_UPLOAD
from cdrl_infer.images import MODES
from cdrl_infer.model import CDRLModel
from cdrl_infer.optional import needed
from cdrl_infer.pipeline import CDRLPipeline

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
with needed("gradio", "the demo needs", "demo"):
    import gradio as gr

    from cdrl_infer.demo.tabs.common import halting
    from cdrl_infer.demo.tabs.compose import compose_tab
    from cdrl_infer.demo.tabs.draw import draw_tab
    from cdrl_infer.demo.tabs.odd import odd_tab
    from cdrl_infer.demo.tabs.plane import plane_tab
    from cdrl_infer.demo.tabs.repair import repair_tab

TITLE = "Energies that draw"
FONTS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]  # of the user's system
MONO = ["ui-monospace", "Consolas", "monospace"]
HERE = Path(__file__).parent
KEPT = 600  # seconds after which a file that was uploaded is deleted


def draws_pictures(model: CDRLModel) -> bool:
    """Whether a person can look at the images of a model."""
    return model.image.channels in MODES and not is_plane(model)


def build(pipes: Mapping[str, CDRLPipeline]) -> Any:
    """The page (``gradio.Blocks``) for some models; tabs that fit none of them are left out.

    Args:
        pipes: the models by name, see `cdrl_infer.demo.serve.open_models`.
    """
    runs = Runs()
    pictures = {name: pipe for name, pipe in pipes.items() if draws_pictures(pipe.model)}
    labelled = {name: pipe for name, pipe in pictures.items() if pipe.model.labels}
    planes = [pipe for pipe in pipes.values() if is_plane(pipe.model)]
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(KEPT, KEPT)) as app:
        gr.Markdown(f"# {TITLE}")
        if pictures:
            with gr.Tab("Draw"):
                draw_tab(pictures, runs)
        if labelled:
            with gr.Tab("Compose"):
                compose_tab(labelled, runs)
        if pictures:
            with gr.Tab("Repair"):
                repair_tab(pictures, runs)
            with gr.Tab("How odd?"):
                odd_tab(pictures, runs)
        for plane in planes[:1]:
            with gr.Tab("See the energy"):
                plane_tab(plane, runs)
        app.unload(halting(runs))
    return app


def launch_options() -> dict[str, Any]:
    """The options of ``launch`` that do not depend on where the app runs."""
    script = (HERE / "paint.js").read_text(encoding="utf-8")
    return {
        "theme": gr.themes.Default(font=FONTS, font_mono=MONO),
        "css_paths": [HERE / "page.css"],
        "head": f"<script>{script}</script>",
        "max_file_size": MAX_UPLOAD,
        "run_history": False,
        "footer_links": [],
        "share": False,
        "ssr_mode": False,
        "enable_monitoring": False,
        "pwa": False,
        "mcp_server": False,
    }
