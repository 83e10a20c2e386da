"""The tab *Repair*."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from typing import Any

import gradio as gr
from PIL import Image

from cdrl_infer.demo.levels import View
from cdrl_infer.demo.live import Runs
from cdrl_infer.demo.pieces import problem, said
from cdrl_infer.demo.repair import NO_PICTURE, PAINT, canvas, draw_one, repair
from cdrl_infer.demo.tabs.common import (
    LabelChoice,
    Sliders,
    buttons,
    model_choice,
    results,
    run_button,
    two_columns,
)
from cdrl_infer.demo.uploads import read_upload
from cdrl_infer.errors import CDRLError
from cdrl_infer.pipeline import CDRLPipeline

ABOUT = """Paint over a part of a picture, and the model fills it in several ways. All other pixels stay
exactly as they are."""


def repair_tab(pipes: Mapping[str, CDRLPipeline], runs: Runs) -> None:
    """Lay out the tab, for models of pictures."""
    gr.Markdown(ABOUT)
    picture = gr.State(None)
    left, right = two_columns()
    with left:
        model = model_choice(pipes)
        with gr.Row():
            drawn = gr.Button("Draw one", size="md", min_width=120)
            upload = gr.UploadButton("Upload one", size="md", min_width=120)
        board = gr.HTML(NO_PICTURE, elem_classes="cdrl-out")
        clear = gr.Button("Clear the mask", size="sm")
        gr.Slider(
            1, 9, value=4, step=1, label="Brush, pixels", elem_id="cdrl-brush", interactive=True
        )
        start, stop = buttons("Fill")
        labels = LabelChoice(pipes, in_turn=False)
        sliders = Sliders(next(iter(pipes.values())).model, "Fillings")
        bits = gr.Textbox(visible=False)
    with right:
        outputs = results("repair")
    labels.follow(model, sliders)
    quick: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}

    def draw_work(
        event: threading.Event, name: str, steps: int, seed: int | None, *values: int
    ) -> Iterator[tuple[str, str, Any]]:
        chosen = labels.chosen(name, values)
        return draw_one(pipes[name], chosen, event, seed=seed, langevin_steps=steps)

    def upload_one(name: str, path: str) -> tuple[str, str, Any]:
        try:
            found = read_upload(path, pipes[name].model.image)
        except CDRLError as error:
            return problem(error), NO_PICTURE, None
        return said(PAINT), canvas(found), found

    shown = [outputs[0], board, picture]
    run_button(
        runs, drawn, stop, draw_work, [model, sliders.steps, sliders.seed, *labels.lists], shown
    )
    upload.upload(upload_one, [model, upload], shown, queue=False, **quick)
    model.change(lambda: (NO_PICTURE, None), None, [board, picture], queue=False, **quick)
    clear.click(None, js="() => window.cdrlClear()", **quick)

    def work(
        event: threading.Event,
        mask: str,
        image: Image.Image | None,
        name: str,
        count: int,
        steps: int,
        seed: int | None,
        *values: int,
    ) -> Iterator[View]:
        options = Sliders.options(count, steps, seed)
        chosen = labels.chosen(name, values)
        return repair(pipes[name], image, mask, chosen, event, **options)

    run_button(
        runs,
        start,
        stop,
        work,
        [bits, picture, model, *sliders.all, *labels.lists],
        outputs,
        first="cdrlMask()",
    )
