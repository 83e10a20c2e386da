"""Draw images with a model, and judge images; the sampling algorithm is in `cdrl_infer.sampler`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from cdrl_infer.arguments import (
    Progress,
    as_list,
    flag,
    number,
    positive,
    progress_bar,
)
from cdrl_infer.conditions.conditions import Composed, Condition, on_concepts, on_labels
from cdrl_infer.conditions.expressions import Concept, Expression
from cdrl_infer.conditions.labels import ImageLabel
from cdrl_infer.conditions.parser import find_concept
from cdrl_infer.device import default_switches
from cdrl_infer.drawing import CDRLPipelineOutput, KnownPixels, draw
from cdrl_infer.errors import InputError, quoted
from cdrl_infer.evaluating import evaluate
from cdrl_infer.habits import options_of, refuse_unknown
from cdrl_infer.images import read_images, read_masks
from cdrl_infer.kernels.base import Kernel
from cdrl_infer.likelihood.density import LikelihoodOutput, log_likelihood
from cdrl_infer.likelihood.normalisers import concept_offsets
from cdrl_infer.loading import LoadedModel
from cdrl_infer.options import SamplingOptions
from cdrl_infer.sampler import Adaptation
from cdrl_infer.scoring.calibration import calibrate
from cdrl_infer.scoring.scorer import ImageInput, ScoreOutput, Scorer

Labels = ImageLabel | Iterable[ImageLabel]


class CDRLPipeline(LoadedModel):
    """Draw images from a trained model, score images, and read their energies.

    ::

        pipe = CDRLPipeline.from_pretrained()
        out = pipe(num_images=4, class_labels="Sneaker", seeds=0)
        out.images[0].save("sneaker.png")
        out.grid()  # all of them, with labels and energies
        pipe.energy(out.images, labels=out.labels)  # nats; lower is likelier

    Loading, saving and moving to a device are in `cdrl_infer.loading.LoadedModel`.

    Args:
        model: its networks are frozen and put in eval mode and channels-last layout.
        name: the model's name in messages and metadata.
    """

    @default_switches()
    def __call__(
        self,
        *,
        class_labels: Labels = None,
        guidance_scale: float = 1.0,
        **options: Any,
    ) -> CDRLPipelineOutput:
        """Draw images. All arguments are checked before any work is done.

        Args:
            class_labels: one per image: a name (in any case), an index (0 = the first class) or None
                (not given), or for a model of several attributes a tuple of those. One of these, or a
                list of one, stands for all images: ``[None]`` is unconditional. By default the classes
                in turn, or for a model of several attributes none, as in `cdrl-sample`.
            guidance_scale: classifier-free guidance, ``(1 - g) E(y|∅) + g E(y|c)``: 1 is plain
                conditional sampling, more is nearer to the label and less diverse. The paper's w is
                g - 1. Anything but 1 costs twice as much.
            options: the options of `cdrl_infer.options.SamplingOptions`, such as num_images and seeds.
                What diffusers calls otherwise is refused, with our name.

        Raises:
            InputError: an argument that is unknown, out of range or of the wrong length.
            NumericalError: sampling left the finite numbers.
        """
        chosen = self._options(options, "class_labels", "guidance_scale")
        class_labels = as_list(class_labels)
        count = chosen.count(class_labels=class_labels)
        condition = on_labels(class_labels, guidance_scale, self.model.labels, count)
        return draw(self.model, chosen.sampler(self.model), condition, chosen, count)

    def concept(self, name: str) -> Concept:
        """A concept to compose with: one value of one attribute of the model.

        Args:
            name: the name of the value; ``attribute:value`` if several attributes have it.

        Raises:
            InputError: the model has no such concept, or is unconditional.
        """
        if not isinstance(name, str):
            raise InputError(f"expected the name of a concept, got {quoted(name)}")
        if not self.model.labels:
            raise InputError(
                f"the model {self.name!r} is unconditional and knows no concepts, got {name!r}"
            )
        return find_concept(name, {a.name: a.values for a in self.model.labels})

    @default_switches()
    def compose(
        self,
        expression: str | Expression,
        *,
        guidance_scale: float = 1.0,
        normalised: bool = False,
        **options: Any,
    ) -> CDRLPipelineOutput:
        """Draw images of several concepts at once, such as ``"red & (dress | coat) & ~dark"``.

        Costs one network evaluation for each concept named and one for none of them. For the operators'
        meaning and assumptions see docs/control.md.

        Args:
            expression: a text (``&``, ``|``, ``~``, brackets, ``^`` and a weight), or expressions of
                `concept` joined by the same operators (``**`` and a weight).
            guidance_scale: a weight of the whole, as ``(expression)^g``: more is nearer to the expression
                and less diverse.
            normalised: OR weighs its sides as densities, by the normalisers of the concepts (``cdrl-eval
                --normalise --per-class``), and does not assume that they are equal.
            options: as for a call of the pipeline. But restarts is 1 by default: no network was trained
                on a composed energy, so one way down follows it less well (measured in docs/control.md).

        Raises:
            InputError: also, the expression cannot be read, names an unknown concept or cancels out; the
                message names the character.
            NumericalError: sampling left the finite numbers.
        """
        chosen = self._options(options, "guidance_scale", "normalised")
        condition = on_concepts(expression, guidance_scale, self.concept)
        if flag("normalised", normalised):
            offsets = concept_offsets(self.model, condition.expression.concepts, self.name)
            condition = Composed(condition.expression, offsets)
        sampler = chosen.sampler(self.model, restarts=1)
        return draw(self.model, sampler, condition, chosen, chosen.count())

    @default_switches()
    def inpaint(
        self,
        image: ImageInput,
        mask: ImageInput,
        *,
        class_labels: Labels = None,
        guidance_scale: float = 1.0,
        expression: str | Expression | None = None,
        resize: bool = False,
        grey: bool = False,
        **options: Any,
    ) -> CDRLPipelineOutput:
        """Repaint a part of an image; all other pixels of the result are exactly the image's.

        At every level the known pixels are those of the given image with that level's noise, and only
        the others move. Each seed gives another result.

        Args:
            image: a picture or its path, an array or a tensor of uint8 or values in [0, 1], or a list
                of N of these; see `cdrl_infer.images.each_image`. One image stands for all N samples.
            mask: what to paint: a picture or its path (white = paint, or on a transparent layer what is
                opaque), an array or tensor (H, W) or (N, H, W) of bool or 0 and 1 (1 = paint), or a
                list of N; see `cdrl_infer.images.read_masks`.
            class_labels: as for a call of the pipeline, but by default none.
            guidance_scale: as for a call of the pipeline.
            expression: in place of labels, concepts as in `compose`, with the same guidance_scale.
            resize: fit pictures of another size, of any shape, to the model's: images by Lanczos
                filtering, masks by the nearest pixel. Without it they are refused.
            grey: for a model of grey images, take the brightness of coloured ones. Without it they
                are refused.
            options: as for a call of the pipeline.

        Raises:
            InputError: also, image or mask have another size or type, or the mask is empty.
            NumericalError: sampling left the finite numbers.
        """
        others = ("class_labels", "guidance_scale", "expression", "resize", "grey")
        chosen = self._options(options, *others)
        if expression is not None and class_labels is not None:
            raise InputError("expected class_labels or an expression, got both; leave one out")
        shape = self.model.image.shape
        known = KnownPixels(
            read_images(image, shape, resize=resize, grey=grey),
            read_masks(mask, shape, resize=resize),
        )
        class_labels = as_list(class_labels)
        count = chosen.count(
            class_labels=class_labels, images=list(known.images), masks=list(known.masks)
        )
        condition: Condition
        if expression is None:
            condition = on_labels(
                class_labels, guidance_scale, self.model.labels, count, in_turn=False
            )
        else:
            condition = on_concepts(expression, guidance_scale, self.concept)
        return draw(self.model, chosen.sampler(self.model), condition, chosen, count, known)

    def score(self, images: ImageInput, score: str | None = None, **options: Any) -> ScoreOutput:
        """How odd images are for this model: one number each, higher = more anomalous.

        ::

            out = pipe.score(images, threshold_fpr=0.05)
            out.p_values   # the share of in-distribution images that score higher
            out.anomalous  # an alarm; 5 % of in-distribution images raise one

        Args:
            images: pictures, paths, arrays or tensors as for `inpaint`; or a data set or anything else
                that gives such images one by one, which is read batch by batch.
            score: a name in `cdrl_infer.scoring.SCORES`; None: the model's own, see
                `cdrl_infer.scoring.scorer.default_score`.
            options: level, seed, threshold_fpr, return_map, resize, grey, batch_size and progress; see
                `cdrl_infer.scoring.scorer.Scorer.stream`, also for the errors.
        """
        options = {"progress": self._progress, **options}
        return Scorer(self.model, self.name).score(images, score, **options)

    def calibrate(
        self,
        good: ImageInput,
        *,
        data: str = "images",
        seed: int = 0,
        score: str | None = None,
        resize: bool = False,
        grey: bool = False,
        batch_size: int = 64,
        progress: Progress = None,
    ) -> CDRLPipeline:
        """Measure in-distribution images, so that scores have p-values; returns self.

        ::

            pipe.calibrate(good).score(others, threshold_fpr=0.05).anomalous
            pipe.save_pretrained("calibrated")  # stores the calibration too

        Args:
            good: at least 12 images per level, as for `score`; best are images that the model was not
                trained on. They replace an earlier calibration.
            data: the name of their set.
            seed: the seed of the noise and of the two halves, see `cdrl_infer.scoring.reference`.
            score: the model's own score from now on, which `score` takes unless it is told another; None:
                the one that it has.
            resize: as for `score`.
            grey: as for `score`.
            batch_size: number of images at once.
            progress: as for a call of the pipeline.

        Raises:
            InputError: an argument is not valid, or the images are too few or too similar.
            NumericalError: a feature is not finite.
        """
        self.model.statistics = calibrate(
            self.model,
            good,
            data=data,
            seed=seed,
            score=score,
            resize=resize,
            grey=grey,
            batch_size=batch_size,
            progress=self._bar(progress),
        )
        return self

    def energy(self, images: ImageInput, *, labels: Labels = None, **options: Any) -> Tensor:
        """``E(y | c)`` of images in nats, (N,) float32 on the CPU; lower = likelier.

        Energies of one level differ by log-probabilities, ``E(a) - E(b) = log p(b) - log p(a)``. Those of
        two levels cannot be compared, since each level has a constant of its own.

        Args:
            images: clean images, as for `score`, which get the noise of the level; or with
                ``noised=True`` noised images.
            labels: as class_labels in a call of the pipeline, such as ``out.labels``; by default none
                are given.
            options: level, the transition t = 1 (least noise, the default) … T as in `score` and
                `LevelEnd`; noised: images are a tensor or an array (N, C, H, W) x_{t-1}, such as
                ``LevelEnd.refined``; seed of the noise, 0 by default, which is the same for all images;
                resize, grey, batch_size and progress as for `score`.

        Raises:
            InputError: an argument is not valid.
            NumericalError: an energy is not finite.
        """
        return self.energy_and_gradient(images, labels=labels, **options)[0]

    def energy_and_gradient(
        self, images: ImageInput, *, labels: Labels = None, **options: Any
    ) -> tuple[Tensor, Tensor]:
        """The energies of images and their gradient in the values that were given.

        Args:
            images: as for `energy`.
            labels: as for `energy`.
            options: as for `energy`.

        Returns:
            (N,) nats and (N, C, H, W), nats per unit of pixels in [0, 1], or with ``noised=True`` of
            x_{t-1}. Small steps against the gradient lead to likelier images.
        """
        names = ("labels", *options_of(evaluate))
        refuse_unknown(options, names, {"class_labels": "use labels=", "t": "use level="})
        options["progress"] = self._bar(options.get("progress"))
        return evaluate(self.model, images, as_list(labels), **options)

    def log_likelihood(
        self, images: ImageInput, *, labels: Labels = None, **options: Any
    ) -> LikelihoodOutput:
        """The log-likelihood of images in nats and bits per dimension, with its error and a verdict.

        It needs the model's normalisers, which ``cdrl-eval --normalise`` computes once; see
        docs/likelihood.md.

        Args:
            images: pictures, paths, arrays or tensors as for `inpaint`.
            labels: one per image, as class_labels of a call of the pipeline; None: the density of all.
            options: density, draws, seed, resize, grey, batch_size and progress; see
                `cdrl_infer.likelihood.density.log_likelihood`, also for the errors.
        """
        names = ("labels", *options_of(log_likelihood))
        refuse_unknown(options, names, {"class_labels": "use labels="})
        options["progress"] = self._bar(options.get("progress"))
        return log_likelihood(self.model, self.name, images, labels, **options)

    @default_switches()
    def adapt_step_scale(
        self,
        kernel: str | Kernel[Any] = "mala",
        *,
        target_acceptance: float | None = None,
        num_images: int = 16,
        class_labels: Labels = None,
        guidance_scale: float = 1.0,
        seed: int = 0,
        langevin_steps: int | Sequence[int] | None = None,
        steps: int = 60,
        progress: Progress = None,
    ) -> Adaptation:
        """A warm-up before sampling with a kernel such as "mala": step scales that accept as wanted.

        ::

            found = pipe.adapt_step_scale("mala", langevin_steps=50)
            pipe(kernel="mala", step_scale=found.step_scale, langevin_steps=50)

        Args:
            kernel: one that can reject a move, "mala", "hmc" or an object.
            target_acceptance: in (0, 1); by default the kernel's own, the best in many dimensions.
            num_images: number of chains.
            class_labels: as for a call of the pipeline.
            guidance_scale: as for a call of the pipeline.
            seed: of the first chain; the same seed finds the same scales.
            langevin_steps: of the chains to come, as for a call of the pipeline.
            steps: made per transition while adapting.
            progress: as for a call of the pipeline.

        Returns:
            Step scales and acceptances, one per transition, noisiest first.

        Raises:
            InputError: an argument that is not valid, or a kernel that never rejects.
            NumericalError: the chains left the finite numbers.
        """
        options = SamplingOptions(
            num_images=num_images, seeds=seed, langevin_steps=langevin_steps, kernel=kernel
        )
        sampler, class_labels = options.sampler(self.model), as_list(class_labels)
        count = options.count(class_labels=class_labels)
        everyone = slice(0, count)
        random = options.noise(count).source(everyone, self.device, torch.device("cpu"))
        condition = on_labels(class_labels, guidance_scale, self.model.labels, count)
        target = target_acceptance
        levels = range(1, 1 + self.model.schedule.num_levels)
        total = positive("steps", steps) * sum(sampler.steps_at(t) > 0 for t in levels)
        with progress_bar(self._bar(progress), total=total, desc="adapting", unit="step") as bar:
            return sampler.adapt(
                *condition.bind(self.model, everyone, random),
                random,
                self.model.image.shape,
                target=None if target is None else number("target_acceptance", target),
                steps=steps,
                after_step=bar.update,
            )

    def _options(self, given: dict[str, Any], *others: str) -> SamplingOptions:
        return SamplingOptions.of({"progress": self._progress, **given}, *others)

    def _bar(self, progress: Progress) -> Progress:
        """The bar that a call asked for, else that of `set_progress_bar_config`."""
        return self._progress if progress is None else progress
