"""The tab *Compose*."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from typing import Any

import gradio as gr

from cdrl_infer.demo.compose import MARK, compose, held_out, note, written
from cdrl_infer.demo.levels import View
from cdrl_infer.demo.live import Runs
from cdrl_infer.demo.tabs.common import (
    Sliders,
    buttons,
    results,
    run_button,
    two_columns,
)
from cdrl_infer.model import Attribute
from cdrl_infer.pipeline import CDRLPipeline

ABOUT = """Energies add up: click concepts, and the model draws pictures of all of them at once. Several
values of one attribute mean *one of these*. You can also write the expression: `&` and, `|` or, `~` not,
`^` a weight."""
MOST_BOXES = 40  # of one attribute


def concept_list(attribute: Attribute, label: str) -> Any:
    """The values of an attribute to click, or a list to choose from where there are many."""
    values = list(attribute.values)
    if len(values) > MOST_BOXES:
        return gr.Dropdown(values, multiselect=True, value=[], label=label)
    return gr.CheckboxGroup(values, label=label)


def compose_tab(pipes: Mapping[str, CDRLPipeline], runs: Runs) -> None:
    """Lay out the tab, for one model with labels; of several the one with the most attributes."""
    name = max(pipes, key=lambda key: len(pipes[key].model.labels))
    pipe = pipes[name]
    attributes = pipe.model.labels
    pairs = held_out(pipe.model)
    gr.Markdown(f"{ABOUT} Model: {name}.")
    left, right = two_columns()
    with left:
        wanted = [concept_list(a, a.name.capitalize()) for a in attributes]
        with gr.Accordion("Leave out (~)", open=False):
            unwanted = [concept_list(a, f"no {a.name}") for a in attributes]
        picks = []
        if pairs:
            gr.Markdown(f"{MARK} **Held out**: no training picture shows one of these pairs.")
            with gr.Row(elem_classes="cdrl-picks"):
                picks = [
                    gr.Button(f"{MARK} {' & '.join(pair)}", size="sm", min_width=100)
                    for pair in pairs
                ]
        text = gr.Textbox(label="Expression", max_lines=2, elem_id="cdrl-expression")
        told = gr.HTML(note(pipe, ""), elem_classes="cdrl-out")
        start, stop = buttons("Compose")
        guidance = gr.Slider(
            1, 5, value=2, step=0.5, label="Guidance", info="the weight of the expression"
        )
        restarts = gr.Slider(
            0, 2, value=1, step=1, label="Restarts", info="each level noised again and redone"
        )
        sliders = Sliders(pipe.model)
    with right:
        outputs = results("compose")
    groups, number = [*wanted, *unwanted], len(wanted)

    def clicked(*values: Any) -> str:
        return written(pipe, values[:number], values[number:])

    def picked(pair: tuple[str, ...]) -> list[Any]:
        return [
            *([value for value in a.values if value in pair] for a in attributes),
            *([] for _ in attributes),
        ]

    quick: dict[str, Any] = {
        "queue": False,
        "show_progress": "hidden",
        "api_visibility": "private",
    }
    for group in groups:
        group.change(clicked, groups, text, **quick)
    for button, pair in zip(picks, pairs, strict=True):
        button.click(lambda pair=pair: picked(pair), None, groups, **quick)
    text.change(lambda expression: note(pipe, expression), text, told, **quick)

    def work(
        event: threading.Event,
        expression: str,
        scale: float,
        again: int,
        count: int,
        steps: int,
        seed: int | None,
    ) -> Iterator[View]:
        options = Sliders.options(count, steps, seed)
        return compose(pipe, expression, event, guidance_scale=scale, restarts=again, **options)

    run_button(runs, start, stop, work, [text, guidance, restarts, *sliders.all], outputs)
