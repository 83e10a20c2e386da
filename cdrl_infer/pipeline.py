"""What the user asked -> energies, proposals and noise; the maths is in `cdrl_infer.sampler`."""

from __future__ import annotations

import math
import operator
import os
import random as entropy
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, SupportsIndex, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from cdrl_infer.checkpoint import Attribute, CDRLModel, find_model, load_model, save_model
from cdrl_infer.device import usable_device
from cdrl_infer.energies.neural import NeuralEnergy
from cdrl_infer.errors import InputError, NumericalError, did_you_mean, listing
from cdrl_infer.images import MODES, to_numpy, to_pil, to_unit
from cdrl_infer.kernels.langevin import Langevin
from cdrl_infer.proposals import InitializerProposal
from cdrl_infer.random import PerImageRandom
from cdrl_infer.sampler import CooperativeSampler, LevelEnd

OutputType = Literal["pil", "np", "pt"]
DrawOn = Literal["cpu", "device"]
Label = str | SupportsIndex | None
ImageLabel = Label | Sequence[Label]

MAX_SEED = 2**32 - 1  # all that PyTorch's CPU generator tells apart


@dataclass(frozen=True)
class CDRLPipelineOutput:
    """What a call of `CDRLPipeline` gives, in the order that was asked.

    Attributes:
        images: a list of N pictures ("pil"), or values in [0, 1]: an array (N, H, W, C) ("np") or a
            tensor (N, C, H, W) ("pt"), float32, on the CPU.
        energies: (N,) nats at the lowest level, on the CPU; lower = likelier.
        seeds: N integers; None where generators were given, one an image.
        labels: N names (None = not given), or N tuples of names for a model of several attributes;
            None for an unconditional model.
    """

    images: list[Image.Image] | np.ndarray | Tensor
    energies: Tensor
    seeds: list[int] | None
    labels: list[str | None] | list[tuple[str | None, ...]] | None


class CDRLPipeline:
    """Draw images from a trained model.

    ::

        pipe = CDRLPipeline.from_pretrained()
        out = pipe(num_images=4, class_labels=["Sneaker"] * 4, seeds=range(4))
        out.images[0].save("sneaker.png")

    Args:
        model: the networks and how to sample them. The pipeline takes the networks over: they are
            frozen, put in eval mode and in channels-last layout.
        name: what to call the model, in messages and metadata.
    """

    def __init__(self, model: CDRLModel, name: str = "custom") -> None:
        self.model = model
        self.name = name
        self.device = torch.device("cpu")
        for network in self._networks:
            network.eval().requires_grad_(False)
        self.to("cpu")

    @classmethod
    def from_pretrained(cls, model: str | os.PathLike[str] | None = None) -> CDRLPipeline:
        """Load a model: a bundled one by its name (None: "fashion-mnist"), or a folder.

        A bundled name goes before a folder of that name; write ``./name`` for the folder.

        Raises:
            CheckpointError, ConfigError: see `cdrl_infer.checkpoint.load_model`.
        """
        folder = find_model(model)
        return cls(load_model(folder), name=folder.resolve().name)

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write a folder for `from_pretrained`; see `cdrl_infer.checkpoint.save_model`."""
        save_model(self.model, folder)

    def to(self, device: torch.device | str) -> CDRLPipeline:
        """Move the networks; returns self.

        Raises:
            InputError: there is no such device here.
        """
        place = usable_device(device)
        for network in self._networks:
            network.to(device=place, memory_format=torch.channels_last)
        self.device = place
        return self

    @property
    def _networks(self) -> tuple[Any, Any]:
        return self.model.ebm, self.model.initializer

    def __call__(
        self,
        *,
        num_images: int | None = None,
        class_labels: ImageLabel | Iterable[ImageLabel] = None,
        seeds: SupportsIndex | Iterable[SupportsIndex] | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        langevin_steps: int | Sequence[int] | None = None,
        batch_size: int = 64,
        output_type: OutputType = "pil",
        callback_on_level_end: Callable[[LevelEnd, int], None] | None = None,
        progress: bool | None = None,
        draw_on: DrawOn = "cpu",
    ) -> CDRLPipelineOutput:
        """Draw images. All arguments are checked before any work is done.

        Args:
            num_images: N; by default as many as there are labels, seeds or generators, else 1.
            class_labels: one per image: a name, an index (0 = the first class) or None (not given),
                and for a model of several attributes a tuple of those. One name or index stands for
                all images; None is unconditional.
            seeds: one integer in 0 … 2³² - 1 per image, or one for the first of consecutive seeds;
                by default new ones. An image depends on its seed and label, and on the others of its
                batch by no more than rounding: one grey level at most.
            generator: in place of seeds: one from which N seeds are drawn, or N, one an image.
            langevin_steps: K, one for all levels or one per level (noisiest first); by default the
                model's. 0 leaves the initializer's proposals as they are.
            batch_size: images drawn at once; memory beyond what is returned grows with it, not
                with N.
            output_type: see `CDRLPipelineOutput`.
            callback_on_level_end: called after each level of each batch with a `LevelEnd` (to be
                read, not changed) and the number of the batch's first image.
            progress: a bar on stderr; by default only if that is a terminal.
            draw_on: where noise is drawn: "cpu" gives the same images on every device, "device" is
                quicker on an accelerator.

        Raises:
            InputError: an argument that is unknown, out of range or of the wrong length.
            NumericalError: sampling left the finite numbers.
        """
        _check_choice("output_type", output_type, get_args(OutputType))
        _check_choice("draw_on", draw_on, get_args(DrawOn))
        if output_type == "pil" and self.model.image.channels not in MODES:
            raise InputError(
                f"pictures have 1 or 3 channels, this model's images {self.model.image.channels}; "
                "use output_type='np' or 'pt'"
            )
        batch_size = _positive("batch_size", batch_size)
        sampler = self._sampler(langevin_steps)
        class_labels, seeds, generator = map(_as_list, (class_labels, seeds, generator))
        count = _count(num_images, class_labels=class_labels, seeds=seeds, generator=generator)
        labels = self._label_indices(class_labels, count)
        noise = _Noise.of(seeds, generator, count)
        noise_device = self.device if draw_on == "device" else torch.device("cpu")

        shape = self.model.image.shape
        energies = torch.empty(count)
        pictures: list[Image.Image] = []
        values = torch.empty(0 if output_type == "pil" else count, *shape)
        total = self.model.schedule.num_levels * math.ceil(count / batch_size)
        with tqdm(total=total, unit="level", disable=not _show(progress)) as bar:
            for first in range(0, count, batch_size):
                part = slice(first, min(first + batch_size, count))
                chosen = None if labels is None else labels[part].to(self.device)
                watcher = _Watcher(first, bar, callback_on_level_end)
                output = sampler.sample(
                    NeuralEnergy(self.model.ebm, chosen),
                    InitializerProposal(self.model.initializer, chosen),
                    noise.source(part, self.device, noise_device),
                    shape,
                    watcher,
                )
                _check_finite(output.samples, first, "in the last denoising step")
                energies[part] = output.energies
                if output_type == "pil":
                    pictures += to_pil(output.samples)
                else:
                    values[part] = to_unit(output.samples)
        arrays = to_numpy(values) if output_type == "np" else values
        return CDRLPipelineOutput(
            images=pictures if output_type == "pil" else arrays,
            energies=energies,
            seeds=noise.seeds,
            labels=self._names(labels),
        )

    def _sampler(self, langevin_steps: int | Sequence[int] | None) -> CooperativeSampler:
        defaults = self.model.sampler
        steps = _as_list(defaults.langevin_steps if langevin_steps is None else langevin_steps)
        if isinstance(steps, list):
            steps = [_integer("langevin_steps", k) for k in steps]
        else:
            steps = _integer("langevin_steps", steps)
        return CooperativeSampler(
            self.model.schedule,
            steps,
            Langevin(step_scale=defaults.step_scale),
            defaults.score_scale,
        )

    def _label_indices(self, asked: Any, count: int) -> Tensor | None:
        """(N, A) integers, 0 = not given; None for an unconditional model."""
        attributes = self.model.labels
        if not attributes:
            if any(label is not None for label in (asked if isinstance(asked, list) else [asked])):
                raise InputError(
                    f"the model {self.name!r} is unconditional, got class_labels; leave them out"
                )
            return None
        rows = asked if isinstance(asked, list) else [asked] * count
        table = torch.zeros(count, len(attributes), dtype=torch.int64)
        for k, row in enumerate(rows):
            given = _as_list(row)
            if given is None:
                continue
            entries = given if isinstance(given, list) else [given]
            if len(entries) != len(attributes):
                raise InputError(
                    f"expected {len(attributes)} labels for image {k} "
                    f"({listing(a.name for a in attributes)}), got {row!r}"
                )
            for j, (attribute, label) in enumerate(zip(attributes, entries, strict=True)):
                table[k, j] = _label_index(attribute, label)
        return table

    def _names(
        self, labels: Tensor | None
    ) -> list[str | None] | list[tuple[str | None, ...]] | None:
        if labels is None:
            return None
        names = [(None, *attribute.values) for attribute in self.model.labels]
        rows = [tuple(names[j][i] for j, i in enumerate(row)) for row in labels.tolist()]
        return [row[0] for row in rows] if len(names) == 1 else rows


@dataclass(frozen=True)
class _Noise:
    """Where each image's noise comes from: its own seed, or a generator of the caller's."""

    seeds: list[int] | None
    generators: list[torch.Generator]

    @classmethod
    def of(cls, seeds: Any, generator: Any, count: int) -> _Noise:
        """What the arguments ask for; new seeds where they ask for nothing."""
        if seeds is not None and generator is not None:
            raise InputError("expected seeds or generator, got both; leave one out")
        if isinstance(generator, list):
            if not all(isinstance(g, torch.Generator) for g in generator):
                raise InputError("generator must be a torch.Generator, or one an image in a list")
            if len({id(g) for g in generator}) < count:
                raise InputError(
                    "each image needs a generator of its own, got the same one twice; "
                    "pass it alone to have seeds drawn from it"
                )
            return cls(None, generator)
        if generator is not None:
            if not isinstance(generator, torch.Generator):
                raise InputError(f"generator must be a torch.Generator, got {generator!r}")
            drawn = torch.randint(2**32, (count,), generator=generator, device=generator.device)
            return cls(drawn.tolist(), [])
        if seeds is None:
            return cls(entropy.SystemRandom().sample(range(2**32), count), [])
        if not isinstance(seeds, list):
            base = _integer("seeds", seeds)
            seeds = [base + k for k in range(count)]
        seeds = [_integer("seeds", seed) for seed in seeds]
        for seed in seeds:
            if not 0 <= seed <= MAX_SEED:
                raise InputError(f"a seed must be an integer in 0 … 2**32 - 1, got {seed}")
        return cls(seeds, [])

    def source(self, part: slice, device: torch.device, draw_on: torch.device) -> PerImageRandom:
        """The streams of some of the images."""
        if self.seeds is None:
            return PerImageRandom(self.generators[part], device)
        return PerImageRandom.from_seeds(self.seeds[part], device, draw_on)


@dataclass(frozen=True)
class _Watcher:
    """After each level of a batch: stop at NaN, move the bar, call the user."""

    first: int
    bar: tqdm[Any]
    callback: Callable[[LevelEnd, int], None] | None

    def __call__(self, end: LevelEnd) -> None:
        _check_finite(end.refined, self.first, f"at level {end.t}")
        self.bar.update()
        if self.callback is not None:
            self.callback(end, self.first)


def _check_finite(images: Tensor, first: int, where: str) -> None:
    bad = (~images.isfinite().flatten(1).all(dim=1)).nonzero().flatten().tolist()
    if bad:
        raise NumericalError(
            f"sampling left the finite numbers {where}, images {listing(first + k for k in bad)}; "
            "expected finite values: fewer langevin_steps or a smaller step_scale may help"
        )


def _label_index(attribute: Attribute, label: Any) -> int:
    """0 for None, else 1 + the place of a name or index among the attribute's values."""
    if label is None:
        return 0
    if isinstance(label, str):
        if label not in attribute.values:
            raise InputError(
                f"unknown {attribute.name} {label!r}, expected one of {listing(attribute.values)}"
                f"{did_you_mean(label, attribute.values)}"
            )
        return 1 + attribute.values.index(label)
    index = _integer("class_labels", label)
    if not 0 <= index < len(attribute.values):
        raise InputError(
            f"a {attribute.name} index must lie in 0 … {len(attribute.values) - 1}, got {index}"
        )
    return 1 + index


def _count(num_images: Any, **arguments: Any) -> int:
    """How many images the arguments ask for; those that are lists must agree."""
    lengths = {name: len(value) for name, value in arguments.items() if isinstance(value, list)}
    if num_images is not None:
        count = _positive("num_images", num_images)
    else:
        count = _positive("the number of images", next(iter(lengths.values()), 1))
    for name, length in lengths.items():
        if length != count:
            raise InputError(f"expected {count} {name}, one per image, got {length}")
    return count


def _integer(name: str, value: Any) -> int:
    if not isinstance(value, bool):
        try:
            return operator.index(value)
        except TypeError:
            pass
    raise InputError(f"{name} must be an integer, got {value!r}")


def _positive(name: str, value: Any) -> int:
    number = _integer(name, value)
    if number < 1:
        raise InputError(f"{name} must be at least 1, got {number}")
    return number


def _check_choice(name: str, value: object, options: tuple[str, ...]) -> None:
    if value not in options:
        raise InputError(
            f"{name} must be one of {listing(options)}, got {value!r}"
            f"{did_you_mean(str(value), options)}"
        )


def _as_list(value: Any) -> Any:
    """Lists, ranges, tuples, arrays … as a list; None, texts and single things as they are."""
    if value is None or isinstance(value, str):
        return value
    try:
        return list(value)
    except TypeError:
        return value


def _show(progress: bool | None) -> bool:
    if progress is not None:
        return progress
    return sys.stderr is not None and sys.stderr.isatty()
