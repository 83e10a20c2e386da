"""Draw pictures and show each level as soon as it is there."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from PIL import Image

from cdrl_infer.conditions.conditions import Condition
from cdrl_infer.demo.live import steps_of
from cdrl_infer.demo.pieces import figure, row, said, side_by_side, working
from cdrl_infer.drawing import CDRLPipelineOutput
from cdrl_infer.errors import InputError
from cdrl_infer.images import to_pil
from cdrl_infer.kernels.base import Kernel, StepInfo
from cdrl_infer.kernels.langevin import Langevin
from cdrl_infer.pipeline import CDRLPipeline
from cdrl_infer.random import PerImageRandom, RandomSource
from cdrl_infer.sampler import LevelEnd
from cdrl_infer.showing import caption

MOST = 8  # pictures of one call
MOST_STEPS = 30  # K


class View(NamedTuple):
    """What the page shows, as HTML."""

    status: str
    result: str
    levels: str


class Watched(Kernel[Any]):
    """A kernel that tells the points of the chains (B, ...) when they start and after every step.

    Args:
        kernel: makes the steps.
        tell: is called with the points; what it raises ends the chains.
    """

    def __init__(self, kernel: Kernel[Any], tell: Callable[[torch.Tensor], None]) -> None:
        self.kernel = kernel
        self.tell = tell

    def init(self, y: torch.Tensor, potential: Any) -> Any:
        """Start chains at y (B, ...)."""
        self.tell(y)
        return self.kernel.init(y, potential)

    def step(
        self, state: Any, potential: Any, step_size: torch.Tensor, random: RandomSource
    ) -> tuple[Any, StepInfo]:
        """One transition of every chain."""
        state, info = self.kernel.step(state, potential, step_size, random)
        self.tell(state.y)
        return state, info


class _Level(NamedTuple):
    """The end of one transition."""

    t: int
    pictures: list[Image.Image]
    energies: list[float]


def views(
    pipe: CDRLPipeline,
    draw: Callable[..., CDRLPipelineOutput],
    condition: Condition,
    stop: threading.Event,
    *,
    num_images: int,
    seed: int | None,
    langevin_steps: int,
    restarts: int = 0,
) -> Iterator[View]:
    """Draw, and after each step and level yield what to show.

    Args:
        pipe: the model.
        draw: a call of the pipeline, which takes the options below.
        condition: what the call draws under, for the energies of the levels.
        stop: ends the work at the next step.
        num_images: N, up to `MOST`.
        seed: of the first picture.
        langevin_steps: K, up to `MOST_STEPS`.
        restarts: R.

    Raises:
        Stopped: ``stop`` was set.
        InputError: a number is out of range, and what the call refuses.
        NumericalError: sampling left the finite numbers.
    """
    for name, value, most in (("pictures", num_images, MOST), ("K", langevin_steps, MOST_STEPS)):
        if not 0 <= value <= most:
            raise InputError(f"expected {name} of at most {most}, got {value}")
    schedule = pipe.model.schedule
    random = PerImageRandom.from_seeds(range(num_images), pipe.device)
    energy, _ = condition.bind(pipe.model, slice(0, num_images), random)

    def level_of(end: LevelEnd) -> _Level:
        level = schedule.level(end.t, pipe.device)
        values = energy(end.refined * level.scale, level)
        return _Level(end.t, to_pil(end.refined), values.tolist())

    def work(tell: Callable[[_Level | CDRLPipelineOutput | None], None]) -> None:
        output = draw(
            num_images=num_images,
            seeds=seed,
            langevin_steps=langevin_steps,
            restarts=restarts,
            kernel=Watched(Langevin(), lambda y: tell(None)),
            callback_on_level_end=lambda end, first: tell(level_of(end)),
            progress=False,
        )
        tell(output)

    total = schedule.num_levels * (1 + restarts) * (1 + langevin_steps)
    done, rows, result = 0, "", ""
    shown: list[_Level] = []
    for item in steps_of(work, stop):
        if isinstance(item, CDRLPipelineOutput):
            yield View(said(_summary(item)), result_row(item), rows)
            return
        if item is None:
            done += 1
        else:
            shown.append(item)
            result = row(map(figure, item.pictures), f"so far: level {item.t - 1}", "large")
            rows = level_rows(shown)
        level = shown[-1].t - 1 if shown else schedule.num_levels
        status = working(f"level {max(level - 1, 0)}, step {done} of {total}", done / total)
        yield View(status, result, rows)


def level_rows(levels: Sequence[_Level]) -> str:
    """The levels so far, the noisiest first, with energies under the pictures."""
    rows = []
    for level in levels:
        figures = (
            figure(picture, f"{energy:.1f}", f"level {level.t - 1}: {energy:.1f} nats")
            for picture, energy in zip(level.pictures, level.energies, strict=True)
        )
        rows.append(row(figures, f"level {level.t - 1}, nats", "small"))
    return side_by_side(rows)


def result_row(output: CDRLPipelineOutput) -> str:
    """The pictures with their labels and energies."""
    if not isinstance(output.images, list):
        raise TypeError(f"expected pictures, got {type(output.images).__name__}")
    names: Sequence[Any] = output.labels or [None] * len(output.images)
    captions = map(caption, names, output.energies.tolist())
    return row(map(figure, output.images, captions), "result", "large")


def _summary(output: CDRLPipelineOutput) -> str:
    steps = output.info.langevin_steps[0]
    seeds = output.seeds or []
    return f"done: K = {steps}, seeds {seeds[0]} … {seeds[-1]}; a lower energy is likelier"
