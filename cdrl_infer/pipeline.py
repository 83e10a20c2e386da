"""What the user asked -> energies, proposals and noise; the maths is in `cdrl_infer.sampler`."""

from __future__ import annotations

import math
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, SupportsIndex, TypedDict, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from cdrl_infer.arguments import (
    ImageLabel,
    Noise,
    as_list,
    check_choice,
    count_images,
    integer,
    label_index,
    number,
    positive,
)
from cdrl_infer.conditions.conditions import Composed, Conditioning, Guided, Labelled
from cdrl_infer.conditions.expressions import Concept, Expression, find_concept, parse
from cdrl_infer.device import usable_device
from cdrl_infer.energies.pinned import PinnedPixels
from cdrl_infer.errors import InputError, NumericalError, listing
from cdrl_infer.images import (
    MODES,
    read_images,
    read_masks,
    to_numpy,
    to_pil,
    to_unit,
)
from cdrl_infer.kernels.base import Kernel
from cdrl_infer.kernels.hmc import HMC, MALA
from cdrl_infer.kernels.langevin import Langevin
from cdrl_infer.model import CDRLModel
from cdrl_infer.sampler import Adaptation, CooperativeSampler, LevelEnd
from cdrl_infer.scoring.scorer import ImageInput, ScoreOutput, Scorer
from cdrl_infer.storage import hub
from cdrl_infer.storage.folder import load_model, save_model

if TYPE_CHECKING:
    from typing_extensions import Unpack

OutputType = Literal["pil", "np", "pt"]
DrawOn = Literal["cpu", "device"]
Sampler = Literal["langevin", "mala", "hmc"]

LEAPFROG_STEPS = 5
COMPOSED_RESTARTS = 1


@dataclass(frozen=True)
class SamplingInfo:
    """How images were drawn; what is per level is in the order of the levels, t = T … 1.

    Attributes:
        sampler: the transition kernel.
        langevin_steps: K of each level.
        restarts: R of each level.
        step_scale: what multiplied the schedule's step variance, each level.
        step_sizes: the s that came of it, in units of y: the noise of one Langevin step.
        acceptance: (N, T) the mean acceptance probability of each image's steps, on the CPU; 1 for
            "langevin", which accepts everything, NaN at a level of no steps.
        expression: of concepts, written out; None where none was asked.
    """

    sampler: Sampler
    langevin_steps: tuple[int, ...]
    restarts: int
    step_scale: tuple[float, ...]
    step_sizes: tuple[float, ...]
    acceptance: Tensor
    expression: str | None


@dataclass(frozen=True)
class CDRLPipelineOutput:
    """What a call of `CDRLPipeline` gives, in the order that was asked.

    Attributes:
        images: a list of N pictures ("pil"), or values in [0, 1]: an array (N, H, W, C) ("np") or a
            tensor (N, C, H, W) ("pt"), float32, on the CPU.
        energies: (N,) nats at the lowest level, on the CPU; lower = likelier.
        seeds: N integers; None where generators were given, one an image.
        labels: N names (None = not given), or N tuples of names for a model of several attributes;
            None for an unconditional model, or where concepts were composed.
        info: how they were drawn.
    """

    images: list[Image.Image] | np.ndarray | Tensor
    energies: Tensor
    seeds: list[int] | None
    labels: list[str | None] | list[tuple[str | None, ...]] | None
    info: SamplingInfo


class SamplingOptions(TypedDict, total=False):
    """The options that all ways of drawing share; see `CDRLPipeline.__call__`."""

    num_images: int | None
    seeds: SupportsIndex | Iterable[SupportsIndex] | None
    generator: torch.Generator | Sequence[torch.Generator] | None
    langevin_steps: int | Sequence[int] | None
    sampler: Sampler
    step_scale: float | Sequence[float] | None
    leapfrog_steps: int
    restarts: int
    batch_size: int
    output_type: OutputType
    callback_on_level_end: Callable[[LevelEnd, int], None] | None
    progress: bool | None
    draw_on: DrawOn


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
    def from_pretrained(
        cls,
        model: str | os.PathLike[str] | None = None,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
        variant: str | None = None,
        subfolder: str | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> CDRLPipeline:
        """Load a model: bundled (by name; None: "fashion-mnist"), a folder, or from the Hub.

        A bundled name goes before a folder of that name, a folder before a repository; write
        ``./name`` for the folder.

        Args:
            model: the name of a bundled model, a folder, or a repository ``"user/model"``.
            revision: branch, tag or commit of a repository; so are the next three for those alone.
            token: to read private ones with; by default the one of ``hf auth login``.
            cache_dir: where downloads are kept; by default in ``HF_HOME``.
            local_files_only: look up no more than that cache.
            variant: which weights, as ``"fp16"`` for ``model.fp16.safetensors``.
            subfolder: where in the folder or repository the model lies.
            dtype: of the networks, float32 alone: in fewer bits the small steps along the energy's
                gradient are lost in rounding. A variant of fewer bits is loaded as float32.
            device: where to put the networks; by default the CPU.

        Raises:
            CheckpointError, ConfigError: see `cdrl_infer.storage.folder.load_model`.
            NetworkError: the Hub could not be reached and the cache does not hold the model.
            InputError: an argument that cannot be right.
        """
        if dtype not in (None, torch.float32):
            raise InputError(
                f"dtype must be torch.float32, in which energies are computed, got {dtype}; "
                "for a smaller download choose a variant"
            )
        place = usable_device("cpu" if device is None else device)
        found = hub.find(
            model,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            variant=variant,
            subfolder=subfolder,
        )
        return cls(load_model(found.folder, variant=variant), name=found.name).to(place)

    def save_pretrained(
        self, folder: str | os.PathLike[str], *, variant: str | None = None
    ) -> None:
        """Write a folder for `from_pretrained`; see `cdrl_infer.storage.folder.save_model`."""
        save_model(self.model, folder, variant=variant)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        commit_message: str | None = None,
        variant: str | None = None,
        overwrite_card: bool = False,
    ) -> str:
        """Upload the model to ``user/model`` in one commit; returns the commit's address.

        See `cdrl_infer.storage.hub.push` for the arguments and errors.
        """
        hub.check_push(repo_id, revision=revision, create_pr=create_pr)
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "model"
            self.save_pretrained(folder, variant=variant)
            pushed = hub.push(
                folder,
                repo_id,
                private=private,
                token=token,
                revision=revision,
                create_pr=create_pr,
                commit_message=commit_message,
                overwrite_card=overwrite_card,
            )
        return pushed.url

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
    def _networks(self) -> tuple[Any, ...]:
        return tuple(self.model.networks.values())

    def __call__(
        self,
        *,
        num_images: int | None = None,
        class_labels: ImageLabel | Iterable[ImageLabel] = None,
        guidance_scale: float = 1.0,
        seeds: SupportsIndex | Iterable[SupportsIndex] | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        langevin_steps: int | Sequence[int] | None = None,
        sampler: Sampler = "langevin",
        step_scale: float | Sequence[float] | None = None,
        leapfrog_steps: int = LEAPFROG_STEPS,
        restarts: int = 0,
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
            guidance_scale: classifier-free guidance, ``(1 - g) E(y|∅) + g E(y|c)``: 1 is plain
                conditional sampling, more is nearer to the label and less diverse. The paper's w is
                g - 1. Anything but 1 costs twice as much.
            seeds: one integer in 0 … 2³² - 1 per image, or one for the first of consecutive seeds;
                by default new ones. An image depends on its seed and label, and on the others of its
                batch by no more than rounding: one grey level at most ("mala" and "hmc": rounding
                can tip a decision, so almost always).
            generator: in place of seeds: one from which N seeds are drawn, or N, one an image.
            langevin_steps: K, steps of the kernel, one for all levels or one per level (noisiest
                first); by default the model's. 0 leaves the initializer's proposals as they are.
            sampler: the transition kernel: "langevin" (the paper's, not adjusted), "mala" or "hmc"
                (exact at each level, for more steps; find their step_scale by `adapt_step_scale`).
            step_scale: multiplies the schedule's step variance, one for all levels or one per level;
                by default the model's.
            leapfrog_steps: of each step of "hmc".
            restarts: times each level is noised again and redone, at as many times the cost: nearer to
                the energy where images are inpainted or concepts composed; see docs/control.md.
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
        class_labels = as_list(class_labels)
        return self._draw(
            lambda count: self._labelled(class_labels, guidance_scale, count),
            {"class_labels": class_labels},
            None,
            num_images=num_images,
            seeds=seeds,
            generator=generator,
            langevin_steps=langevin_steps,
            sampler=sampler,
            step_scale=step_scale,
            leapfrog_steps=leapfrog_steps,
            restarts=restarts,
            batch_size=batch_size,
            output_type=output_type,
            callback_on_level_end=callback_on_level_end,
            progress=progress,
            draw_on=draw_on,
        )

    def concept(self, name: str) -> Concept:
        """A concept to compose with: one value of one attribute of the model.

        Args:
            name: of the value; ``attribute:value`` where several attributes have it.

        Raises:
            InputError: no such concept, or the model is unconditional.
        """
        if not isinstance(name, str):
            raise InputError(f"expected the name of a concept, got {name!r}")
        if not self.model.labels:
            raise InputError(
                f"the model {self.name!r} is unconditional, it knows no concepts; got {name!r}"
            )
        return find_concept(name, {a.name: a.values for a in self.model.labels})

    def compose(
        self,
        expression: str | Expression,
        *,
        guidance_scale: float = 1.0,
        **options: Unpack[SamplingOptions],
    ) -> CDRLPipelineOutput:
        """Draw images of several concepts at once, such as ``"red & (dress | coat) & ~dark"``.

        Costs one network evaluation for each concept named and one for none of them. What the
        operators mean, and what they assume, is in docs/control.md.

        Args:
            expression: a text (``&``, ``|``, ``~``, brackets, ``^`` and a weight), or expressions of
                `concept` joined by the same operators (``**`` and a weight).
            guidance_scale: a weight of the whole, as ``(expression)^g``: more is nearer to what is said
                and less diverse.
            options: as for a call of the pipeline; but restarts is 1 by default, for the composed energy
                is none that the way down was made for (docs/control.md has it measured).

        Raises:
            InputError: also where the expression cannot be read, names an unknown concept, or
                cancels out; with the character where it is.
            NumericalError: sampling left the finite numbers.
        """
        asked = self._composed(expression, guidance_scale)
        chosen: SamplingOptions = {"restarts": COMPOSED_RESTARTS, **options}
        return self._draw(lambda count: asked, {}, None, **chosen)

    def inpaint(
        self,
        image: ImageInput,
        mask: ImageInput,
        *,
        class_labels: ImageLabel | Iterable[ImageLabel] = None,
        guidance_scale: float = 1.0,
        expression: str | Expression | None = None,
        resize: bool = False,
        **options: Unpack[SamplingOptions],
    ) -> CDRLPipelineOutput:
        """Paint a part of an image anew; all other pixels of the result are exactly the image's.

        At every level the known pixels are those of the known image with that level's noise, and
        only the others move. Each seed gives another filling.

        Args:
            image: a picture, an array (H, W), (H, W, C) or (N, H, W, C), a tensor (C, H, W) or
                (N, C, H, W), uint8 or values in [0, 1]; or a list of N of these. One image stands
                for all N samples.
            mask: what to paint: a picture (white = paint), an array or tensor (H, W) or (N, H, W) of
                bool or 0 and 1 (1 = paint), or a list of N.
            class_labels: as for a call of the pipeline.
            guidance_scale: as for a call of the pipeline.
            expression: in place of labels, concepts as in `compose`, with the same guidance_scale.
            resize: fit pictures of another size to the model's, whatever their shape: images by
                Lanczos filtering, masks by the nearest pixel. Without it they are refused.
            options: as for a call of the pipeline.

        Raises:
            InputError: also where image or mask have another size or type, or the mask is empty.
            NumericalError: sampling left the finite numbers.
        """
        known = read_images(image, self.model.image.shape, resize=resize)
        hole = read_masks(mask, self.model.image.shape, resize=resize)
        if expression is not None and class_labels is not None:
            raise InputError("expected class_labels or an expression, got both; leave one out")
        composed = None if expression is None else self._composed(expression, guidance_scale)
        class_labels = as_list(class_labels)
        given = {
            "class_labels": class_labels,
            "images": list(known) if len(known) > 1 else None,
            "masks": list(hole) if len(hole) > 1 else None,
        }
        return self._draw(
            lambda count: composed or self._labelled(class_labels, guidance_scale, count),
            given,
            _Inpainting(known, hole),
            **options,
        )

    def score(self, images: ImageInput, score: str = "combined", **options: Any) -> ScoreOutput:
        """How odd images are for this model: one number each, higher = more anomalous.

        ::

            out = pipe.score(images, threshold_fpr=0.05)
            out.p_values   # the share of in-distribution images that score higher
            out.anomalous  # an alarm; 5 % of in-distribution images raise one

        Args:
            images: pictures, arrays or tensors as for `inpaint`; or anything that gives such images one
                by one, which is read batch by batch.
            score: a name in `cdrl_infer.scoring.SCORES`.
            options: level, seed, threshold_fpr, return_map, resize, batch_size and progress; see
                `cdrl_infer.scoring.scorer.Scorer.stream`, also for the errors.
        """
        return Scorer(self.model, self.name).score(images, score, **options)

    def adapt_step_scale(
        self,
        sampler: Sampler = "mala",
        *,
        target_acceptance: float | None = None,
        num_images: int = 16,
        class_labels: ImageLabel | Iterable[ImageLabel] = None,
        guidance_scale: float = 1.0,
        seed: int = 0,
        langevin_steps: int | Sequence[int] | None = None,
        leapfrog_steps: int = LEAPFROG_STEPS,
        steps: int = 60,
    ) -> Adaptation:
        """A warm-up before sampling with "mala" or "hmc": step scales that accept as much as wanted.

        ::

            found = pipe.adapt_step_scale("mala", langevin_steps=50)
            pipe(sampler="mala", step_scale=found.step_scale, langevin_steps=50)

        Args:
            sampler: "mala" or "hmc".
            target_acceptance: in (0, 1); by default what is best in many dimensions, see
                `cdrl_infer.kernels.hmc`.
            num_images: chains that are run.
            class_labels: as for a call of the pipeline.
            guidance_scale: as for a call of the pipeline.
            seed: of the first chain; the same seed finds the same scales.
            langevin_steps: of the chains to come, as for a call of the pipeline.
            leapfrog_steps: of each step of "hmc".
            steps: made per level while adapting.

        Returns:
            Step scales and acceptances, one per level, noisiest first.

        Raises:
            InputError: see above.
            NumericalError: the chains left the finite numbers.
        """
        chain = self._chain(langevin_steps, self._kernel(sampler, leapfrog_steps), None)
        class_labels = as_list(class_labels)
        count = count_images(num_images, class_labels=class_labels)
        random = Noise.of(seed, None, count).source(
            slice(0, count), self.device, torch.device("cpu")
        )
        asked = self._labelled(class_labels, guidance_scale, count)
        energy, proposal = asked.bind(self.model, slice(0, count), random)
        return chain.adapt(
            energy,
            proposal,
            random,
            self.model.image.shape,
            target=None
            if target_acceptance is None
            else number("target_acceptance", target_acceptance),
            steps=positive("steps", steps),
        )

    def _draw(
        self,
        conditioning: Callable[[int], Conditioning],
        given: dict[str, Any],
        inpainting: _Inpainting | None,
        *,
        num_images: int | None = None,
        seeds: Any = None,
        generator: Any = None,
        langevin_steps: int | Sequence[int] | None = None,
        sampler: Sampler = "langevin",
        step_scale: float | Sequence[float] | None = None,
        leapfrog_steps: int = LEAPFROG_STEPS,
        restarts: int = 0,
        batch_size: int = 64,
        output_type: OutputType = "pil",
        callback_on_level_end: Callable[[LevelEnd, int], None] | None = None,
        progress: bool | None = None,
        draw_on: DrawOn = "cpu",
    ) -> CDRLPipelineOutput:
        """What all ways of drawing share.

        Args:
            conditioning: what N images are asked to show.
            given: further arguments that may have one entry per image.
            inpainting: what is known of the images.
        """
        check_choice("output_type", output_type, get_args(OutputType))
        check_choice("draw_on", draw_on, get_args(DrawOn))
        if output_type == "pil" and self.model.image.channels not in MODES:
            raise InputError(
                f"pictures have 1 or 3 channels, this model's images {self.model.image.channels}; "
                "use output_type='np' or 'pt'"
            )
        batch_size = positive("batch_size", batch_size)
        kernel = self._kernel(sampler, leapfrog_steps)
        chain = self._chain(langevin_steps, kernel, step_scale, integer("restarts", restarts))
        seeds, generator = as_list(seeds), as_list(generator)
        count = count_images(num_images, **given, seeds=seeds, generator=generator)
        asked = conditioning(count)
        noise = Noise.of(seeds, generator, count)
        noise_device = self.device if draw_on == "device" else torch.device("cpu")

        schedule, shape = self.model.schedule, self.model.image.shape
        energies = torch.empty(count)
        acceptance = torch.empty(count, schedule.num_levels)
        pictures: list[Image.Image] = []
        values = torch.empty(0 if output_type == "pil" else count, *shape)
        total = schedule.num_levels * math.ceil(count / batch_size)
        with tqdm(total=total, unit="level", disable=not _show(progress)) as bar:
            for first in range(0, count, batch_size):
                part = slice(first, min(first + batch_size, count))
                random = noise.source(part, self.device, noise_device)
                energy, proposal = asked.bind(self.model, part, random)
                known = None if inpainting is None else inpainting.of(part, self.device)
                pinned = known and PinnedPixels.draw(
                    2 * known.image - 1, known.hole, schedule, random
                )
                output = chain.sample(
                    energy,
                    proposal,
                    random,
                    shape,
                    _Watcher(first, bar, callback_on_level_end),
                    pinned,
                )
                _check_finite(output.samples, first, "in the last denoising step")
                energies[part], acceptance[part] = output.energies, output.acceptance
                unit = to_unit(output.samples)
                if known is not None:
                    unit = torch.where(known.hole, unit, known.image)
                if output_type == "pil":
                    pictures += to_pil(2 * unit - 1)
                else:
                    values[part] = unit
        arrays = to_numpy(values) if output_type == "np" else values
        levels = [schedule.level(t) for t in range(schedule.num_levels, 0, -1)]
        scales = [chain.scale_at(int(level.t)) for level in levels]
        return CDRLPipelineOutput(
            images=pictures if output_type == "pil" else arrays,
            energies=energies,
            seeds=noise.seeds,
            labels=self._names(asked.labels) if isinstance(asked, Labelled) else None,
            info=SamplingInfo(
                sampler=sampler,
                langevin_steps=tuple(chain.steps_at(int(level.t)) for level in levels),
                restarts=chain.restarts,
                step_scale=tuple(scales),
                step_sizes=tuple(
                    float((level.step_variance * scale).sqrt())
                    for scale, level in zip(scales, levels, strict=True)
                ),
                acceptance=acceptance,
                expression=str(asked.expression) if isinstance(asked, Composed) else None,
            ),
        )

    def _kernel(self, sampler: Sampler, leapfrog_steps: int) -> Kernel[Any]:
        check_choice("sampler", sampler, get_args(Sampler))
        if sampler == "hmc":
            return HMC(positive("leapfrog_steps", leapfrog_steps))
        return MALA() if sampler == "mala" else Langevin()

    def _chain(
        self,
        langevin_steps: int | Sequence[int] | None,
        kernel: Kernel[Any],
        step_scale: float | Sequence[float] | None,
        restarts: int = 0,
    ) -> CooperativeSampler:
        defaults = self.model.sampler
        given = as_list(defaults.step_scale if step_scale is None else step_scale)
        scale: float | tuple[float, ...] = (
            tuple(number("step_scale", s) for s in given)
            if isinstance(given, list)
            else number("step_scale", given)
        )
        steps = as_list(defaults.langevin_steps if langevin_steps is None else langevin_steps)
        if isinstance(steps, list):
            steps = [integer("langevin_steps", k) for k in steps]
        else:
            steps = integer("langevin_steps", steps)
        return CooperativeSampler(
            self.model.schedule, steps, kernel, scale, defaults.score_scale, restarts
        )

    def _labelled(self, class_labels: Any, guidance_scale: float, count: int) -> Labelled:
        scale = number("guidance_scale", guidance_scale)
        labels = self._label_indices(class_labels, count)
        if scale == 1:
            return Labelled(labels)
        if labels is None or not bool(labels.any()):
            raise InputError(
                f"guidance_scale {scale:g} needs class_labels to guide to; give some, or leave it at 1"
            )
        return Guided(labels, scale)

    def _composed(self, expression: str | Expression, guidance_scale: float) -> Composed:
        scale = number("guidance_scale", guidance_scale)
        if scale <= 0:
            raise InputError(
                f"guidance_scale of an expression must be positive, got {scale:g}; write ~ for NOT"
            )
        if isinstance(expression, str):
            expression = parse(expression, self.concept)
        elif not isinstance(expression, Expression):
            raise InputError(
                f"expected a text or an expression of pipe.concept(...), got {expression!r}"
            )
        for concept in expression.concepts:
            if self.concept(concept.name) != concept:
                raise InputError(f"the concept {concept.name!r} is of another model")
        return Composed(expression if scale == 1 else expression**scale)

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
            given = as_list(row)
            if given is None:
                continue
            entries = given if isinstance(given, list) else [given]
            if len(entries) != len(attributes):
                raise InputError(
                    f"expected {len(attributes)} labels for image {k} "
                    f"({listing(a.name for a in attributes)}), got {row!r}"
                )
            for j, (attribute, label) in enumerate(zip(attributes, entries, strict=True)):
                table[k, j] = label_index(attribute, label)
        return table

    def _names(
        self, labels: Tensor | None
    ) -> list[str | None] | list[tuple[str | None, ...]] | None:
        if labels is None:
            return None
        names = [(None, *attribute.values) for attribute in self.model.labels]
        rows = [tuple(names[j][i] for j, i in enumerate(row)) for row in labels.tolist()]
        return [row[0] for row in rows] if len(names) == 1 else rows


class _Known(NamedTuple):
    """What is known of a batch of images."""

    image: Tensor  # (B, C, H, W) in [0, 1]
    hole: Tensor  # (B, 1, H, W) bool


@dataclass(frozen=True)
class _Inpainting:
    """Images in [0, 1] (N or 1, C, H, W) and holes (N or 1, 1, H, W); one stands for all."""

    images: Tensor
    holes: Tensor

    def of(self, part: slice, device: torch.device) -> _Known:
        """Those of some of the samples."""
        image, hole = (
            (each[part] if len(each) > 1 else each.expand(part.stop - part.start, *each.shape[1:]))
            for each in (self.images, self.holes)
        )
        return _Known(image.to(device), hole.to(device))


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


def _show(progress: bool | None) -> bool:
    if progress is not None:
        return progress
    return sys.stderr is not None and sys.stderr.isatty()
