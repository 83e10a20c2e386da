"""The tab *See the energy*."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import gradio as gr

from cdrl_infer.demo.levels import MOST_STEPS, usual_steps
from cdrl_infer.demo.live import Runs
from cdrl_infer.demo.plane import MOST_CHAINS, Plane, PlaneView
from cdrl_infer.demo.tabs.common import (
    buttons,
    results,
    run_button,
    two_columns,
)
from cdrl_infer.pipeline import CDRLPipeline

ABOUT = """A model of points in the plane, whose data fill the squares of a checkerboard. Bright means
likely, that is, of low energy. Each level has its own energy, smooth where there is much noise. Chains
start at the proposals and walk K steps at each level; some leave a trail."""


def plane_tab(pipe: CDRLPipeline, runs: Runs) -> None:
    """Lay out the tab."""
    plane = Plane(pipe)
    gr.Markdown(ABOUT)
    left, right = two_columns()
    with left:
        start, stop = buttons("Walk")
        chains = gr.Slider(1, MOST_CHAINS, value=150, step=1, label="Chains")
        steps = gr.Slider(
            0,
            MOST_STEPS,
            value=usual_steps(pipe.model),
            step=1,
            label="K, Langevin steps at each level",
        )
        seed = gr.Number(value=0, precision=0, minimum=0, label="Seed", info="empty: a new one")
        pause = gr.Slider(0, 0.3, value=0.06, step=0.02, label="Pause after each step, seconds")
        level = gr.Slider(
            0,
            plane.num_levels - 1,
            value=0,
            step=1,
            label="Show the energy of level",
            info="0 has the least noise",
        )
    with right:
        status, picture = results("plane", 2)
        picture.value = plane.drawn(1)

    def work(
        event: threading.Event, count: int, number: int, first: int | None, wait: float
    ) -> Iterator[PlaneView]:
        return plane.walk(event, chains=count, seed=first, langevin_steps=number, pause=wait)

    run_button(
        runs, start, stop, work, [chains, steps, seed, pause], [status, picture], lane="plane"
    )
    level.release(
        lambda i: plane.drawn(int(i) + 1),
        level,
        picture,
        queue=False,
        show_progress="hidden",
        api_visibility="private",
    )
