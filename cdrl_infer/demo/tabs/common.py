"""What the tabs share: the choice of a model and its labels, sliders, and work that can be stopped."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import gradio as gr

from cdrl_infer.demo.draw import IN_TURN, NOT_GIVEN
from cdrl_infer.demo.levels import MOST, MOST_STEPS, usual_steps
from cdrl_infer.demo.live import Runs, Stopped
from cdrl_infer.demo.pieces import problem, said
from cdrl_infer.errors import CDRLError
from cdrl_infer.model import CDRLModel
from cdrl_infer.pipeline import CDRLPipeline

Work = Callable[..., Iterator[Sequence[str]]]


def run_button(
    desk: Runs,
    button: gr.Button,
    stop: gr.Button,
    work: Work,
    inputs: Sequence[Any],
    outputs: Sequence[Any],
    first: str = "values[0]",
    lane: str = "model",
) -> None:
    """Let a button start work that fills outputs, and another one stop it.

    Args:
        desk: knows what each session does.
        button, stop: of the page.
        work: is called with an event that stops it and the values of the inputs; yields the values of
            the outputs, the first of which is the line of status.
        inputs, outputs: components.
        first: the first input's value as the browser shall send it, in JavaScript.
        lane: work of one lane is done one after the other, for all sessions.
    """

    def handler(request: gr.Request, *values: Any) -> Iterator[Sequence[str]]:
        last: Sequence[str] = [""] * len(outputs)
        event = desk.begin(str(request.session_hash))
        try:
            for last in work(event, *values):
                yield tuple(last)
        except Stopped:
            yield (said("stopped"), *last[1:])
        except CDRLError as error:
            yield (problem(error), *last[1:])

    place = outputs[0].elem_id
    button.click(
        handler,
        list(inputs),
        list(outputs),
        js=f"(...values) => {{ cdrlShow('{place}'); return [{first}, ...values.slice(1)]; }}",
        show_progress="minimal",
        show_progress_on=[outputs[0]],
        concurrency_id=lane,
        concurrency_limit=1,
        api_visibility="private",
    )
    stop.click(halting(desk), queue=False, show_progress="hidden", api_visibility="private")


def halting(desk: Runs) -> Callable[[gr.Request], None]:
    """A handler that stops what the session does."""

    def halt(request: gr.Request) -> None:
        desk.stop(str(request.session_hash))

    return halt


def buttons(text: str) -> tuple[gr.Button, gr.Button]:
    """A button to start with and one to stop with, side by side."""
    with gr.Row():
        return gr.Button(text, variant="primary", min_width=80), gr.Button(
            "Stop", variant="stop", min_width=80
        )


def model_choice(pipes: Mapping[str, CDRLPipeline]) -> gr.Radio:
    """One of the models; hidden where there is only one."""
    return gr.Radio(list(pipes), value=next(iter(pipes)), label="Model", visible=len(pipes) > 1)


class Sliders:
    """How many pictures, from which seed, with how many steps."""

    def __init__(self, model: CDRLModel, count: str = "Pictures") -> None:
        self.count = gr.Slider(1, MOST, value=4, step=1, label=count)
        self.steps = gr.Slider(
            0,
            MOST_STEPS,
            value=usual_steps(model),
            step=1,
            label="K, Langevin steps at each level",
            info="0 leaves the initializer's proposals as they are",
        )
        self.seed = gr.Number(
            value=0, precision=0, minimum=0, label="Seed", info="empty: a new one"
        )

    @property
    def all(self) -> list[Any]:
        """The components."""
        return [self.count, self.steps, self.seed]

    @staticmethod
    def options(count: int, steps: int, seed: int | None) -> dict[str, Any]:
        """Their values as options of `cdrl_infer.demo.levels.views`."""
        return {"num_images": count, "langevin_steps": steps, "seed": seed}


class LabelChoice:
    """A list of values for each attribute of each model; those of the chosen model are shown.

    Args:
        pipes: the models by name.
        in_turn: whether the first attribute starts with its values in turn.
    """

    def __init__(self, pipes: Mapping[str, CDRLPipeline], in_turn: bool = True) -> None:
        self.pipes = pipes
        self.columns: list[Any] = []
        self.lists: list[Any] = []
        self.parts: dict[str, slice] = {}
        for k, (name, pipe) in enumerate(pipes.items()):
            start = len(self.lists)
            with gr.Column(visible=k == 0) as column:
                for j, attribute in enumerate(pipe.model.labels):
                    choices = [("each in turn", IN_TURN), ("any", NOT_GIVEN)]
                    choices += [(value, index) for index, value in enumerate(attribute.values)]
                    value = IN_TURN if in_turn and j == 0 else NOT_GIVEN
                    label = attribute.name.capitalize()
                    self.lists.append(gr.Dropdown(choices, value=value, label=label))
            self.columns.append(column)
            self.parts[name] = slice(start, len(self.lists))

    def chosen(self, name: str, values: Sequence[int]) -> Sequence[int]:
        """The values for one model, of the values of all lists."""
        return values[self.parts[name]]

    def follow(self, choice: gr.Radio, sliders: Sliders) -> None:
        """Show the lists of another model, and its K, when it is chosen."""

        def shown(name: str) -> list[Any]:
            columns = [gr.Column(visible=name == other) for other in self.pipes]
            return [*columns, usual_steps(self.pipes[name].model)]

        choice.change(
            shown,
            choice,
            [*self.columns, sliders.steps],
            queue=False,
            show_progress="hidden",
            api_visibility="private",
        )


def two_columns() -> tuple[Any, Any]:
    """A column for the controls and a wider one for the results; one below the other on a phone."""
    with gr.Row():
        return gr.Column(scale=1, min_width=300), gr.Column(scale=2, min_width=320)


def results(tab: str, count: int = 3) -> list[Any]:
    """A line of status, and what there is to show."""
    status = gr.HTML(elem_id=f"cdrl-{tab}", elem_classes="cdrl-out")
    return [status, *(gr.HTML(elem_classes="cdrl-out") for _ in range(count - 1))]
