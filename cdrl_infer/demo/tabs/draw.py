"""The tab *Draw*."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from typing import Any

import gradio as gr

from cdrl_infer.demo.draw import draw
from cdrl_infer.demo.levels import View
from cdrl_infer.demo.live import Runs
from cdrl_infer.demo.tabs.common import (
    LabelChoice,
    Sliders,
    buttons,
    model_choice,
    results,
    run_button,
    two_columns,
)
from cdrl_infer.pipeline import CDRLPipeline

ABOUT = """Pictures appear from noise, level by level. At each level the *initializer* proposes, and K
Langevin steps along the gradient of the *energy* refine. Under each picture is its energy in nats; lower
is likelier. Compare energies within one level."""


def draw_tab(pipes: Mapping[str, CDRLPipeline], runs: Runs) -> None:
    """Lay out the tab, for models of pictures."""
    gr.Markdown(ABOUT)
    left, right = two_columns()
    with left:
        model = model_choice(pipes)
        labels = LabelChoice(pipes)
        start, stop = buttons("Draw")
        guidance = gr.Slider(
            1,
            5,
            value=1,
            step=0.5,
            label="Guidance",
            info="more: nearer to the class, less diverse",
        )
        sliders = Sliders(next(iter(pipes.values())).model)
    with right:
        outputs = results("draw")
    labels.follow(model, sliders)

    def work(
        event: threading.Event,
        name: str,
        scale: float,
        count: int,
        steps: int,
        seed: int | None,
        *values: Any,
    ) -> Iterator[View]:
        options = Sliders.options(count, steps, seed)
        chosen = labels.chosen(name, values)
        return draw(pipes[name], chosen, event, guidance_scale=scale, **options)

    run_button(runs, start, stop, work, [model, guidance, *sliders.all, *labels.lists], outputs)
