"""Energies of a model of points in the plane, with chains that walk on them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from cdrl_infer.demo.levels import MOST_STEPS, watched
from cdrl_infer.demo.live import steps_of
from cdrl_infer.demo.pieces import said, uri, working
from cdrl_infer.energies.neural import NeuralEnergy
from cdrl_infer.errors import InputError
from cdrl_infer.images.plane import POINT
from cdrl_infer.model import CDRLModel
from cdrl_infer.pipeline import CDRLPipeline
from cdrl_infer.sampler import LevelEnd
from cdrl_infer.scoring.plots import colours

EXTENT = 2.4  # the pictures show the square [-EXTENT, EXTENT]²
CELLS = 96  # on its side
TRAILS, TRAIL = 12, 12  # chains with a trail, and the steps in it
MOST_CHAINS = 400


class PlaneView(NamedTuple):
    """What the page shows, as HTML."""

    status: str
    plane: str


def is_plane(model: CDRLModel) -> bool:
    """Whether the model's images are points in the plane, without labels."""
    return model.image.shape == POINT and not model.labels


class Plane:
    """The energies of a model of points in the plane.

    Args:
        pipe: an unconditional model of images (1, 1, 2).

    Raises:
        InputError: the model is for other images.
    """

    def __init__(self, pipe: CDRLPipeline) -> None:
        if not is_plane(pipe.model):
            raise InputError(
                f"expected an unconditional model of images {POINT}, got {pipe.model.image.shape} of "
                f"{pipe.name!r}"
            )
        self.pipe = pipe
        self.num_levels = pipe.model.schedule.num_levels

    @torch.no_grad()
    def density(self, t: int) -> Tensor:
        """``exp(-E)`` at level t - 1, relative to its largest value: (CELLS, CELLS), x₁ by row."""
        level = self.pipe.model.schedule.level(t, self.pipe.device)
        axis = EXTENT * ((2 * torch.arange(CELLS, device=self.pipe.device) + 1) / CELLS - 1)
        x = torch.cartesian_prod(axis, axis).reshape(-1, 1, 1, 2)
        energies = NeuralEnergy(self.pipe.model.ebm)(x * level.scale, level).double()
        return (energies.min() - energies).exp().reshape(CELLS, CELLS).cpu()

    @cached_property
    def pictures(self) -> dict[int, str]:
        """The address of the picture of each level by its t; brighter is likelier, x₂ goes up."""
        found = {}
        for t in range(self.num_levels, 0, -1):
            shade = self.density(t).sqrt().T.flip(0).numpy()
            found[t] = uri(Image.fromarray(colours(shade)).quantize(32))
        return found

    def drawn(self, t: int, trails: Sequence[Tensor] = ()) -> str:
        """The energy of level t - 1 and the chains on it, and the energies of all levels below.

        Args:
            t: the transition.
            trails: the points (N, 2) of the chains after each of the last steps; the last are the newest.
        """
        strip = "".join(
            f'<figure class="{"now" if k == t else ""}"><img src="{address}" alt="energy of level '
            f'{k - 1}"><figcaption>level {k - 1}</figcaption></figure>'
            for k, address in self.pictures.items()
        )
        return (
            f'<div class="cdrl-plane"><svg viewBox="0 0 {CELLS} {CELLS}" role="img" '
            f'aria-label="chains on the energy of level {t - 1}">'
            f'<image href="{self.pictures[t]}" width="{CELLS}" height="{CELLS}"/>'
            f'{_chains(trails)}</svg><div class="cdrl-strip">{strip}</div></div>'
        )

    def walk(
        self,
        stop: threading.Event,
        *,
        chains: int,
        seed: int | None,
        langevin_steps: int,
        pause: float = 0.06,
        sleep: Callable[[float], object] = time.sleep,
    ) -> Iterator[PlaneView]:
        """Draw points, and show the chains after each step.

        Args:
            stop: ends the walk at the next step.
            chains: number of points, up to `MOST_CHAINS`.
            seed: of the first point.
            langevin_steps: K, up to `MOST_STEPS`.
            pause: seconds from one view to the next.
            sleep: waits so long.

        Raises:
            Stopped: ``stop`` was set.
            InputError: a number is out of range.
            NumericalError: the chains left the finite numbers.
        """
        for name, value, most in (
            ("chains", chains, MOST_CHAINS),
            ("K", langevin_steps, MOST_STEPS),
        ):
            if not 0 <= value <= most:
                raise InputError(f"expected {name} of at most {most}, got {value}")
        schedule, steps = self.pipe.model.schedule, langevin_steps

        def work(tell: Callable[[LevelEnd | Tensor], None]) -> None:
            self.pipe(
                num_images=chains,
                seeds=seed,
                langevin_steps=steps,
                kernel=watched(self.pipe.model, tell),
                step_scale=self.pipe.model.sampler.step_scale,
                callback_on_level_end=lambda end, first: tell(end),
                batch_size=chains,
                output_type="pt",
                progress=False,
            )

        t, step, done, total = self.num_levels, 0, 0, self.num_levels * (steps + 1)
        trails: list[Tensor] = []
        for item in steps_of(work, stop):
            ended = isinstance(item, LevelEnd)
            if steps == 0 or not ended:
                scale = schedule.level(t, self.pipe.device).scale
                x = item.refined if isinstance(item, LevelEnd) else item / scale
                trails = [*trails[-TRAIL:], _points(x)]
                what = f"step {step} of {steps}" if step else "proposal"
                step, done = step + 1, done + 1
                yield self._view(t, trails, what, done / total)
                sleep(pause)
            if ended:
                t, step, end, trails = t - 1, 0, trails[-1:], []
        yield PlaneView(said(f"done: {chains} chains, K = {steps}"), self.drawn(1, end))

    def _view(self, t: int, trails: Sequence[Tensor], what: str, share: float) -> PlaneView:
        return PlaneView(working(f"level {t - 1}, {what}", share), self.drawn(t, trails))


def _points(x: Tensor) -> Tensor:
    """(N, 1, 1, 2) in the plane -> (N, 2) in cells of the picture, from its upper left corner."""
    across, up = x.reshape(-1, 2).cpu().unbind(1)
    return torch.stack([across + EXTENT, EXTENT - up], 1) * CELLS / (2 * EXTENT)


def _chains(trails: Sequence[Tensor]) -> str:
    """Dots, and the trails of the first chains."""
    if not trails:
        return ""
    paths = torch.stack(list(trails))[:, :TRAILS].transpose(0, 1).tolist()
    lines = "".join(
        '<polyline points="' + " ".join(f"{x:.1f},{y:.1f}" for x, y in path) + '"/>'
        for path in paths
        if len(path) > 1
    )
    dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="0.9"/>' for x, y in trails[-1].tolist())
    return lines + dots
