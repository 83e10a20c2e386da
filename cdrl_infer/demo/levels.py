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
from cdrl_infer.energies.base import Energy
from cdrl_infer.errors import InputError
from cdrl_infer.images import to_pil
from cdrl_infer.kernels.base import Kernel, StepInfo
from cdrl_infer.model import CDRLModel
from cdrl_infer.options import find_kernel
from cdrl_infer.pipeline import CDRLPipeline
from cdrl_infer.random import PerImageRandom, RandomSource
from cdrl_infer.sampler import LevelEnd
from cdrl_infer.showing import caption

MOST = 8  # pictures of one call
MOST_STEPS = 30  # K


def usual_steps(model: CDRLModel) -> int:
    """The model's K, as one number, up to `MOST_STEPS`."""
    steps = model.sampler.langevin_steps
    return min(MOST_STEPS, steps if isinstance(steps, int) else max(steps))


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


def watched(model: CDRLModel, tell: Callable[[torch.Tensor], None]) -> Watched:
    """The kernel with which a call of the pipeline draws by default, watched."""
    return Watched(find_kernel(model.sampler.kernel), tell)


class Step(NamedTuple):
    """A step of the kernel was made."""

    text: str
    share: float  # in [0, 1], of all steps


def drawing(
    pipe: CDRLPipeline,
    draw: Callable[..., CDRLPipelineOutput],
    stop: threading.Event,
    *,
    num_images: int,
    seed: int | None,
    langevin_steps: int,
    restarts: int = 0,
) -> Iterator[Step | LevelEnd | CDRLPipelineOutput]:
    """Draw, and yield every step, every end of a level and last the result.

    Args:
        pipe: the model.
        draw: a call of the pipeline, which takes the options below.
        stop: ends the work at the next step.
        num_images: N, up to `MOST`.
        seed: of the first picture; None for new ones.
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

    def work(tell: Callable[[torch.Tensor | LevelEnd | CDRLPipelineOutput], None]) -> None:
        output = draw(
            num_images=num_images,
            seeds=seed,
            langevin_steps=langevin_steps,
            restarts=restarts,
            kernel=watched(pipe.model, tell),
            step_scale=pipe.model.sampler.step_scale,
            callback_on_level_end=lambda end, first: tell(end),
            progress=False,
        )
        tell(output)

    t = pipe.model.schedule.num_levels
    done, total = 0, t * (1 + restarts) * (1 + langevin_steps)
    for item in steps_of(work, stop):
        if isinstance(item, torch.Tensor):
            done += 1
            yield Step(f"level {t - 1}, step {done} of {total}", done / total)
        else:
            t -= 1
            yield item


def views(
    pipe: CDRLPipeline,
    draw: Callable[..., CDRLPipelineOutput],
    condition: Condition,
    stop: threading.Event,
    *,
    num_images: int,
    **options: Any,
) -> Iterator[View]:
    """Draw, and after each step and level yield what to show.

    Args:
        pipe, draw, stop, num_images: see `drawing`.
        condition: what the call draws under, for the energies of the levels.
        options: see `drawing`, also for the errors.
    """
    random = PerImageRandom.from_seeds(range(num_images), pipe.device)
    energy, _ = condition.bind(pipe.model, slice(0, num_images), random)
    status, result, rows = "", "", ""
    shown: list[str] = []
    for item in drawing(pipe, draw, stop, num_images=num_images, **options):
        if isinstance(item, CDRLPipelineOutput):
            status, result = said(_summary(item)), result_row(item)
        elif isinstance(item, Step):
            status = working(*item)
        else:
            pictures = to_pil(item.refined)
            shown.append(level_row(item, pictures, energy, pipe))
            rows = side_by_side(shown)
            result = row(map(figure, pictures), f"so far: level {item.t - 1}", "large")
        yield View(status, result, rows)


@torch.no_grad()
def level_row(
    end: LevelEnd, pictures: Sequence[Image.Image], energy: Energy, pipe: CDRLPipeline
) -> str:
    """The pictures of a level with their energies."""
    level = pipe.model.schedule.level(end.t, pipe.device)
    name = f"level {end.t - 1}"
    figures = (
        figure(picture, f"{value:.1f}", f"{name}: {value:.1f} nats")
        for picture, value in zip(
            pictures, energy(end.refined * level.scale, level).tolist(), strict=True
        )
    )
    return row(figures, f"{name}, nats", "small")


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
