"""Load a model, draw images with it, score images; the sampling algorithm is in `cdrl_infer.sampler`."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from cdrl_infer.arguments import as_list, number, positive
from cdrl_infer.conditions.conditions import Condition, on_concepts, on_labels
from cdrl_infer.conditions.expressions import Concept, Expression
from cdrl_infer.conditions.labels import ImageLabel
from cdrl_infer.conditions.parser import find_concept
from cdrl_infer.device import default_switches, usable_device
from cdrl_infer.drawing import CDRLPipelineOutput, KnownPixels, draw
from cdrl_infer.errors import InputError, quoted
from cdrl_infer.images import read_images, read_masks
from cdrl_infer.kernels.base import Kernel
from cdrl_infer.model import CDRLModel
from cdrl_infer.options import SamplingOptions
from cdrl_infer.sampler import Adaptation
from cdrl_infer.scoring.scorer import ImageInput, ScoreOutput, Scorer
from cdrl_infer.storage import hub
from cdrl_infer.storage.folder import load_model, save_model


class CDRLPipeline:
    """Draw images from a trained model.

    ::

        pipe = CDRLPipeline.from_pretrained()
        out = pipe(num_images=4, class_labels=["Sneaker"] * 4, seeds=range(4))
        out.images[0].save("sneaker.png")

    Args:
        model: its networks are frozen and put in eval mode and channels-last layout.
        name: the model's name in messages and metadata.
    """

    @default_switches()
    def __init__(self, model: CDRLModel, name: str = "custom") -> None:
        self.model = model
        self.name = name
        self.device = torch.device("cpu")
        for network in self.model.networks.values():
            if any(tensor.is_inference() for tensor in network.parameters()):  # made in such a mode
                own = {name: tensor.clone() for name, tensor in network.state_dict().items()}
                network.load_state_dict(own, assign=True)
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

        A bundled model goes before a folder of the same name, and a folder before a repository; write
        ``./name`` for the folder.

        Args:
            model: the name of a bundled model, a folder, or a repository ``"user/model"``.
            revision: branch, tag or commit of a repository. The next three are for repositories too.
            token: gives access to private repositories; by default that of ``hf auth login``.
            cache_dir: where downloads are kept; by default in ``HF_HOME``.
            local_files_only: use the cache and no network.
            variant: which weights, such as ``"fp16"`` for ``model.fp16.safetensors``.
            subfolder: the place of the model in the folder or repository.
            dtype: of the networks; only float32 is accepted, since with fewer bits the small steps along
                the energy's gradient are lost in rounding. A variant of fewer bits loads as float32.
            device: where to put the networks; by default the CPU.

        Raises:
            CheckpointError, ConfigError: see `cdrl_infer.storage.folder.load_model`.
            NetworkError: the Hub could not be reached and the cache does not hold the model.
            InputError: an argument that is not valid.
        """
        if dtype is not None and dtype is not torch.float32:
            raise InputError(
                f"dtype must be torch.float32, in which energies are computed, got {quoted(dtype)}; "
                "for a smaller download choose a variant"
            )
        place = usable_device("cpu" if device is None else device)
        texts = {"revision": revision, "variant": variant, "subfolder": subfolder}
        for name, text in {"model": model, "cache_dir": cache_dir, **texts}.items():
            kinds = (str,) if name in texts else (str, os.PathLike)
            if text is not None and not isinstance(text, kinds):
                raise InputError(f"{name} must be a text, got {quoted(text)}")
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

    @default_switches()
    def to(self, device: torch.device | str) -> CDRLPipeline:
        """Move the networks and return self; `InputError` if there is no such device here."""
        place = usable_device(device)
        for network in self.model.networks.values():
            network.to(device=place, memory_format=torch.channels_last)
        self.device = place
        return self

    @default_switches()
    def __call__(
        self,
        *,
        class_labels: ImageLabel | Iterable[ImageLabel] = None,
        guidance_scale: float = 1.0,
        **options: Any,
    ) -> CDRLPipelineOutput:
        """Draw images. All arguments are checked before any work is done.

        Args:
            class_labels: one per image: a name, an index (0 = the first class) or None (not given),
                or for a model of several attributes a tuple of those. One name or index stands for
                all images; None is unconditional.
            guidance_scale: classifier-free guidance, ``(1 - g) E(y|∅) + g E(y|c)``: 1 is plain
                conditional sampling, more is nearer to the label and less diverse. The paper's w is
                g - 1. Anything but 1 costs twice as much.
            options: the options of `cdrl_infer.options.SamplingOptions`, such as num_images and seeds.

        Raises:
            InputError: an argument that is unknown, out of range or of the wrong length.
            NumericalError: sampling left the finite numbers.
        """
        chosen = SamplingOptions.of(options, "class_labels", "guidance_scale")
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
        self, expression: str | Expression, *, guidance_scale: float = 1.0, **options: Any
    ) -> CDRLPipelineOutput:
        """Draw images of several concepts at once, such as ``"red & (dress | coat) & ~dark"``.

        Costs one network evaluation for each concept named and one for none of them. For the operators'
        meaning and assumptions see docs/control.md.

        Args:
            expression: a text (``&``, ``|``, ``~``, brackets, ``^`` and a weight), or expressions of
                `concept` joined by the same operators (``**`` and a weight).
            guidance_scale: a weight of the whole, as ``(expression)^g``: more is nearer to the expression
                and less diverse.
            options: as for a call of the pipeline. But restarts is 1 by default: no network was trained
                on a composed energy, so one way down follows it less well (measured in docs/control.md).

        Raises:
            InputError: also, the expression cannot be read, names an unknown concept or cancels out; the
                message names the character.
            NumericalError: sampling left the finite numbers.
        """
        chosen = SamplingOptions.of(options, "guidance_scale")
        condition = on_concepts(expression, guidance_scale, self.concept)
        sampler = chosen.sampler(self.model, restarts=1)
        return draw(self.model, sampler, condition, chosen, chosen.count())

    @default_switches()
    def inpaint(
        self,
        image: ImageInput,
        mask: ImageInput,
        *,
        class_labels: ImageLabel | Iterable[ImageLabel] = None,
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
            class_labels: as for a call of the pipeline.
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
        chosen = SamplingOptions.of(options, *others)
        if expression is not None and class_labels is not None:
            raise InputError("expected class_labels or an expression, got both; leave one out")
        shape = self.model.image.shape
        known = KnownPixels(
            read_images(image, shape, resize=resize, grey=grey),
            read_masks(mask, shape, resize=resize),
        )
        class_labels = as_list(class_labels)
        count = chosen.count(
            class_labels=class_labels,
            images=list(known.images) if len(known.images) > 1 else None,
            masks=list(known.masks) if len(known.masks) > 1 else None,
        )
        condition: Condition
        if expression is None:
            condition = on_labels(class_labels, guidance_scale, self.model.labels, count)
        else:
            condition = on_concepts(expression, guidance_scale, self.concept)
        return draw(self.model, chosen.sampler(self.model), condition, chosen, count, known)

    def score(self, images: ImageInput, score: str = "combined", **options: Any) -> ScoreOutput:
        """How odd images are for this model: one number each, higher = more anomalous.

        ::

            out = pipe.score(images, threshold_fpr=0.05)
            out.p_values   # the share of in-distribution images that score higher
            out.anomalous  # an alarm; 5 % of in-distribution images raise one

        Args:
            images: pictures, paths, arrays or tensors as for `inpaint`; or a data set or anything else
                that gives such images one by one, which is read batch by batch.
            score: a name in `cdrl_infer.scoring.SCORES`.
            options: level, seed, threshold_fpr, return_map, resize, grey, batch_size and progress; see
                `cdrl_infer.scoring.scorer.Scorer.stream`, also for the errors.
        """
        return Scorer(self.model, self.name).score(images, score, **options)

    @default_switches()
    def adapt_step_scale(
        self,
        kernel: str | Kernel[Any] = "mala",
        *,
        target_acceptance: float | None = None,
        num_images: int = 16,
        class_labels: ImageLabel | Iterable[ImageLabel] = None,
        guidance_scale: float = 1.0,
        seed: int = 0,
        langevin_steps: int | Sequence[int] | None = None,
        steps: int = 60,
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
        return sampler.adapt(
            *condition.bind(self.model, everyone, random),
            random,
            self.model.image.shape,
            target=None if target is None else number("target_acceptance", target),
            steps=positive("steps", steps),
        )
