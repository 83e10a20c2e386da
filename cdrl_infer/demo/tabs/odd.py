"""The tab *How odd?*."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping

import gradio as gr

from cdrl_infer.demo.live import Runs
from cdrl_infer.demo.odd import OddView, judge, judge_examples, read_all
from cdrl_infer.demo.tabs.common import (
    buttons,
    model_choice,
    results,
    run_button,
    two_columns,
)
from cdrl_infer.demo.uploads import MAX_FILES, MAX_UPLOAD
from cdrl_infer.pipeline import CDRLPipeline

ABOUT = """How odd is a picture for the model, and where? The score is compared with those of ordinary
pictures, which the model was calibrated with. Pictures are cropped and scaled to the model's size."""


def odd_tab(pipes: Mapping[str, CDRLPipeline], runs: Runs) -> None:
    """Lay out the tab, for models of pictures."""
    limit = f"Up to {MAX_FILES} at once, each of at most {MAX_UPLOAD // 2**20} MB."
    gr.Markdown(f"{ABOUT} {limit}")
    left, right = two_columns()
    with left:
        model = model_choice(pipes)
        files = gr.File(file_count="multiple", label="Pictures", height=180)
        start, stop = buttons("Score")
        samples = gr.Button("Score examples instead")
    with right:
        outputs = results("odd")

    def score_files(
        event: threading.Event, name: str, paths: list[str] | None
    ) -> Iterator[OddView]:
        pictures, wrong = read_all(paths or [], pipes[name].model)
        return judge(pipes[name], pictures, wrong, event)

    def score_examples(event: threading.Event, name: str) -> Iterator[OddView]:
        return judge_examples(pipes[name], event)

    run_button(runs, start, stop, score_files, [model, files], outputs)
    run_button(runs, samples, stop, score_examples, [model], outputs)
