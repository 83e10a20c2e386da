"""Drawing batch by batch: noise, chains, pictures."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from cdrl_infer import showing
from cdrl_infer.arguments import Noise, positive, progress_bar
from cdrl_infer.conditions.conditions import Condition
from cdrl_infer.conditions.labels import Names, label_names
from cdrl_infer.energies.pinned import PinnedPixels
from cdrl_infer.errors import InputError, NumericalError, listing
from cdrl_infer.images import MODES, to_numpy, to_pil, to_unit
from cdrl_infer.model import CDRLModel
from cdrl_infer.options import SamplingOptions, kernel_name
from cdrl_infer.random import RandomSource
from cdrl_infer.sampler import CooperativeSampler, LevelEnd
from cdrl_infer.schedule import NoiseSchedule


@dataclass(frozen=True)
class SamplingInfo:
    """How images were drawn; tuples and columns are in the order of the transitions, t = T … 1.

    Attributes:
        kernel: the name of the transition kernel.
        langevin_steps: K of each transition.
        restarts: R, the same for all.
        step_scale: the factor of the schedule's step variance, for each transition.
        step_sizes: the s that follows, in units of y: the standard deviation of the noise in one
            Langevin step.
        acceptance: (N, T) the mean acceptance probability of each image's steps, on the CPU; 1 for a
            kernel that accepts everything, NaN at a transition of no steps.
        expression: of concepts, written out; None if none was asked for.
    """

    kernel: str
    langevin_steps: tuple[int, ...]
    restarts: int
    step_scale: tuple[float, ...]
    step_sizes: tuple[float, ...]
    acceptance: Tensor
    expression: str | None

    @classmethod
    def of(
        cls, sampler: CooperativeSampler, acceptance: Tensor, condition: Condition
    ) -> SamplingInfo:
        """What a sampler did under a condition."""
        schedule, expression = sampler.schedule, condition.expression
        order = range(schedule.num_levels, 0, -1)
        scales = tuple(sampler.scale_at(t) for t in order)
        return cls(
            kernel=kernel_name(sampler.kernel),
            langevin_steps=tuple(sampler.steps_at(t) for t in order),
            restarts=sampler.restarts,
            step_scale=scales,
            step_sizes=tuple(
                float((schedule.level(t).step_variance * scale).sqrt())
                for t, scale in zip(order, scales, strict=True)
            ),
            acceptance=acceptance,
            expression=None if expression is None else str(expression),
        )


@dataclass(frozen=True)
class CDRLPipelineOutput:
    """The result of a call of `CDRLPipeline`, in the order that was asked.

    A notebook shows it as a grid with labels and energies. ``out[0]`` is ``out.images``, as in diffusers,
    and ``images, energies, *_ = out`` unpacks it.

    Attributes:
        images: a list of N pictures ("pil"), or values in [0, 1]: an array (N, H, W, C) ("np") or a
            tensor (N, C, H, W) ("pt"), float32, on the CPU.
        energies: (N,) nats at the lowest level, on the CPU; lower = likelier.
        seeds: N integers; None if N generators were given.
        labels: N names (None = not given), or N tuples of names for a model of several attributes;
            None for an unconditional model, or if concepts were composed.
        info: how they were drawn.
    """

    images: list[Image.Image] | np.ndarray | Tensor
    energies: Tensor
    seeds: list[int] | None
    labels: Names | None
    info: SamplingInfo

    def grid(self, columns: int | None = None, *, captions: bool = True) -> Image.Image:
        """One picture of all images, enlarged; points in the plane are a scatter plot.

        Args:
            columns: number of images in a row; by default the grid is nearly square.
            captions: write label and energy (nats) under each image.

        Raises:
            InputError: the images have neither 1 nor 3 channels.
        """
        texts = self._captions() if captions else ()
        columns = None if columns is None else positive("columns", columns)
        return showing.grid(self.images, texts, columns, self.energies)

    def to_tuple(self) -> tuple[Any, ...]:
        """The attributes, in their order."""
        return tuple(getattr(self, field.name) for field in fields(self))

    def __getitem__(self, key: int | str) -> Any:
        if not isinstance(key, str):
            return self.to_tuple()[key]
        if key not in (field.name for field in fields(self)):
            raise KeyError(key)
        return getattr(self, key)

    def _captions(self) -> list[str]:
        labels = self.labels or [None] * len(self.energies)
        return list(map(showing.caption, labels, self.energies.tolist()))

    def _shown(self) -> CDRLPipelineOutput:
        """The first images, as many as a notebook shows."""
        first = slice(showing.MOST_SHOWN)
        return replace(
            self,
            images=self.images[first],
            energies=self.energies[first],
            labels=None if self.labels is None else self.labels[first],
        )

    def _repr_png_(self) -> bytes | None:
        try:
            return showing.png(self._shown().grid())
        except InputError:  # a number of channels that pictures do not have
            return None

    def _repr_html_(self) -> str | None:
        part, count = self._shown(), len(self.energies)
        title = f"{count:,} images" + (
            f", the first {showing.MOST_SHOWN}" * (count > len(part.energies))
        )
        if self.info.expression is not None:
            title += f", {self.info.expression}"
        try:
            return showing.gallery(part.images, part._captions(), part.energies, title)
        except InputError:
            return None


@dataclass(frozen=True)
class KnownPixels:
    """Images in [0, 1] (N or 1, C, H, W) and what to paint in them; one stands for all.

    Args:
        images: the known images.
        masks: (N or 1, 1, H, W) bool, True where pixels are to be painted.
    """

    images: Tensor
    masks: Tensor

    def of(self, part: slice, device: torch.device) -> KnownPixels:
        """Select the pixels for some samples."""
        count = part.stop - part.start
        return KnownPixels(
            *(
                (each[part] if len(each) > 1 else each.expand(count, *each.shape[1:])).to(device)
                for each in (self.images, self.masks)
            )
        )

    def pinned(self, schedule: NoiseSchedule, random: RandomSource) -> PinnedPixels:
        """Add each level's noise."""
        return PinnedPixels.draw(2 * self.images - 1, self.masks, schedule, random)

    def kept(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) in [0, 1] with the known pixels put in place exactly."""
        return torch.where(self.masks, images, self.images)


def draw(
    model: CDRLModel,
    sampler: CooperativeSampler,
    condition: Condition,
    options: SamplingOptions,
    count: int,
    known: KnownPixels | None = None,
) -> CDRLPipelineOutput:
    """Draw images.

    Args:
        model: the networks.
        sampler: by `SamplingOptions.sampler`.
        condition: what the images shall show.
        options: the remaining options.
        count: N.
        known: pixels that are known, for inpainting.

    Raises:
        InputError: seeds or generators that are not valid, or pictures that PIL has no mode for.
        NumericalError: sampling left the finite numbers.
    """
    schedule, shape, as_pictures = model.schedule, model.image.shape, options.output_type == "pil"
    if as_pictures and model.image.channels not in MODES:
        raise InputError(
            f"pictures have 1 or 3 channels, but this model's images have {model.image.channels}; "
            "use output_type='np' or 'pt'"
        )
    device, processes = model.device, options.processes
    noise = _common_noise(options, count)
    draw_on = device if options.draw_on == "device" else torch.device("cpu")
    energies = torch.empty(count, dtype=torch.float32)
    acceptance = torch.empty(count, schedule.num_levels, dtype=torch.float32)
    pictures: list[Image.Image | None] = [None] * (count if as_pictures else 0)
    try:
        values = torch.empty(0 if as_pictures else count, *shape, dtype=torch.float32)
    except RuntimeError:  # torch's error of memory
        raise InputError(
            f"{count:,} images {shape} do not fit into memory; ask for fewer"
        ) from None
    starts = range(0, count, options.batch_size)
    parts = [slice(first, min(first + options.batch_size, count)) for first in starts]
    total = schedule.num_levels * len(parts)

    def draw_mine() -> list[_Part]:
        shown = options.progress if processes.main else False
        with progress_bar(shown, total=total, unit="level") as bar:
            for part in processes.mine(parts):
                random = noise.source(part, device, draw_on)
                energy, proposal = condition.bind(model, part, random)
                own = None if known is None else known.of(part, device)
                pinned = None if own is None else own.pinned(schedule, random)
                watcher = _Watcher(part.start, total, bar, options)
                output = sampler.sample(energy, proposal, random, shape, watcher, pinned)
                check_finite(output.samples, part.start, "in the last denoising step")
                check_finite(output.energies, part.start, "at level 0")
                energies[part], acceptance[part] = output.energies, output.acceptance
                unit = to_unit(output.samples) if own is None else own.kept(to_unit(output.samples))
                if as_pictures:
                    pictures[part] = to_pil(2 * unit - 1)
                else:
                    values[part] = unit
        mine = processes.mine(parts) if processes.count > 1 else ()
        return [
            _Part(p, pictures[p], values[p].numpy(), energies[p].numpy(), acceptance[p].numpy())
            for p in mine
        ]

    for found in processes.together(draw_mine):
        for drawn in found:
            part = drawn.rows
            pictures[part] = drawn.pictures
            values[part] = torch.from_numpy(drawn.values)
            energies[part] = torch.from_numpy(drawn.energies)
            acceptance[part] = torch.from_numpy(drawn.acceptance)
    arrays = to_numpy(values) if options.output_type == "np" else values
    return CDRLPipelineOutput(
        images=[picture for picture in pictures if picture is not None] if as_pictures else arrays,
        energies=energies,
        seeds=noise.seeds,
        labels=None if condition.labels is None else label_names(condition.labels, model.labels),
        info=SamplingInfo.of(sampler, acceptance, condition),
    )


class _Part(NamedTuple):
    """What one process sends to the others: a batch of pictures or of values."""

    rows: slice
    pictures: list[Image.Image | None]
    values: np.ndarray
    energies: np.ndarray
    acceptance: np.ndarray


def _common_noise(options: SamplingOptions, count: int) -> Noise:
    """The noise of N images; new seeds are the main process's."""
    if options.seeds is None and options.generator is None:
        seeds = options.processes.by_main(lambda: options.noise(count).seeds)
        return Noise.of(seeds, None, count)
    return options.noise(count)


@dataclass(frozen=True)
class _Watcher:
    """Called after each transition of a batch: stops at NaN, moves the bar, calls the user."""

    first: int
    total: int
    bar: tqdm[Any]
    options: SamplingOptions

    def __call__(self, end: LevelEnd) -> None:
        check_finite(end.refined, self.first, f"at transition {end.t}")
        self.bar.update(self.options.processes.advance(1, self.total - self.bar.n))
        if self.options.callback_on_level_end is not None:
            self.options.callback_on_level_end(end, self.first)


def check_finite(values: Tensor, first: int, where: str) -> None:
    """Raise `NumericalError` if values (B, ...) are not finite; images are counted from ``first``."""
    bad = (~values.reshape(len(values), -1).isfinite().all(1)).nonzero().flatten().tolist()
    if bad:
        raise NumericalError(
            f"sampling left the finite numbers {where}, images {listing(first + k for k in bad)}; "
            "expected finite values: fewer langevin_steps or a smaller step_scale may help"
        )
