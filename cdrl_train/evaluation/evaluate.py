"""An evaluation: it checks everything first, then draws samples, then compares them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cdrl_infer.errors import InputError, listing, shown
from cdrl_infer.pipeline import CDRLPipeline
from cdrl_infer.processes import Arrays, Processes
from cdrl_infer.storage import hub
from cdrl_infer.storage.folder import load_model
from cdrl_infer.version import __version__
from cdrl_train.data.image_set import ImageSet
from cdrl_train.data.sources import data_name, held_out
from cdrl_train.evaluation.accuracy import Accuracy
from cdrl_train.evaluation.cache import FeatureCache, images_digest
from cdrl_train.evaluation.classifier import load_classifier
from cdrl_train.evaluation.distances import METRICS as OF_FEATURES
from cdrl_train.evaluation.distances import Distances
from cdrl_train.evaluation.extractors import load_extractor
from cdrl_train.evaluation.likelihood import Likelihood
from cdrl_train.evaluation.outside import Separation, read_outside
from cdrl_train.evaluation.report import Report, Result, slug
from cdrl_train.evaluation.request import Request, check_labels
from cdrl_train.evaluation.sampling import RealImages, Samples, model_digest
from cdrl_train.evaluation.stationarity import Stationarity


@dataclass(frozen=True)
class Evaluation:
    """A checked request, with everything that it needs.

    Args:
        request: the request.
        digest: the digest of the model.
        skipped: the reasons for metrics that are not measured, by metric.
        samples: draws the samples.
        reference: the real images.
        distances: measures FID, KID, inception score, precision and recall; None if not requested.
        accuracy: measures the accuracy of the labels; None if not requested.
        separation: measures the separation from outside images; None if not requested.
        stationarity: runs the chains; None if not requested.
        likelihood: measures bits per dimension; None if not requested.
    """

    request: Request
    digest: str
    skipped: dict[str, str]
    samples: Samples
    reference: RealImages
    distances: Distances | None
    accuracy: Accuracy | None
    separation: Separation | None
    stationarity: Stationarity | None
    likelihood: Likelihood | None

    @property
    def pipe(self) -> CDRLPipeline:
        """The model."""
        return self.samples.pipe

    @classmethod
    def prepare(cls, request: Request, device: torch.device) -> Evaluation:
        """Check everything and load what the request needs, without drawing samples.

        Raises:
            InputError: the request is invalid.
            CheckpointError: the model cannot be read.
        """
        found = hub.find(request.model, revision=request.revision, variant=request.variant)
        model = load_model(found.folder, variant=request.variant)
        metrics, skipped = request.chosen_metrics(bool(held_out(model)))
        pipe = CDRLPipeline(model, name=found.name).to(device)
        request.check_model(model, pipe.name)
        reference, held = request.real_images(model, pipe.name)
        samples = Samples(
            pipe,
            request.seed,
            request.langevin_steps,
            request.guidance_scale,
            request.batch_size,
        )
        accuracy = _accuracy(request, samples, reference) if "accuracy" in metrics else None
        separation = _separation(request, pipe, reference, held) if "ood" in metrics else None
        stationarity = (
            _stationarity(request, pipe, reference) if "stationarity" in metrics else None
        )
        likelihood = None
        if "likelihood" in metrics:
            place, size = _place(request), request.batch_size
            likelihood = Likelihood.prepare(pipe, reference, place, size, request.repeats)
        wanted = [metric for metric in metrics if metric in OF_FEATURES]
        cache = FeatureCache(request.cache)
        distances = None
        if wanted:
            distances = Distances(
                load_extractor(request.extractor, request.weights, device),
                wanted,
                cache,
                reference,
                request.floor_images(reference, model),
                data_name(request.source),
            )
        return cls(
            request=request,
            digest=model_digest(found.folder),
            skipped=skipped,
            samples=samples,
            reference=reference,
            distances=distances,
            accuracy=accuracy,
            separation=separation,
            stationarity=stationarity,
            likelihood=likelihood,
        )

    def run(self, processes: Processes) -> Report:
        """Draw samples, compare them with the real images, and report the results."""
        results: list[Result] = []
        if self._needs_samples:
            drawn = [self.draw(processes, r) for r in range(self.request.repeats)]
            if self.distances is not None:
                results += self.distances.results(processes, [part["rows"] for part in drawn])
            if self.accuracy is not None:
                shown: list[Any] = [part["shown"] for part in drawn]
                results += self.accuracy.results(processes, shown)
        if self.separation is not None:
            results += self.separation.results(processes)
        if self.stationarity is not None:
            results += self.stationarity.results(processes)
        if self.likelihood is not None:
            results += self.likelihood.results(processes)
        return self._report(results, processes.count)

    @property
    def _needs_samples(self) -> bool:
        return self.distances is not None or self.accuracy is not None

    def draw(self, processes: Processes, repeat: int) -> Arrays:
        """Draw the samples of a repeat: "rows" of the extractor, and "shown", the classifier's labels."""

        def part(start: int, stop: int) -> Arrays:
            images = self.samples.draw(repeat, start, stop)
            found: Arrays = {}
            if self.distances is not None:
                found["rows"] = self.distances.extractor(images)
            if self.accuracy is not None:
                found["shown"] = self.accuracy.classifier(images)
            return found

        title = f"samples, repeat {repeat + 1} of {self.request.repeats}"
        return processes.each_batch(self.reference.count, self.request.batch_size, part, title)

    def _report(self, results: Sequence[Result], processes: int) -> Report:
        request = self.request
        data, place = data_name(request.source), _place(request)
        images = (self.reference.images(repeat) for repeat in range(request.repeats))
        references = [images_digest(some)[:12] for some in images]
        conditions: dict[str, str] = {}
        settings: dict[str, Any] = {
            "n": self.reference.count,
            "repeats": request.repeats,
            "seed": request.seed,
            "reference_digests": references,
            "processes": processes,
            "device": self.pipe.device.type,
        }
        if self._needs_samples:
            conditions["samples"] = self._samples_in_words()
            conditions["reference"] = self._reference_in_words(place, references)
            settings |= self._sample_settings()
        for part in (
            self.distances,
            self.accuracy,
            self.separation,
            self.stationarity,
            self.likelihood,
        ):
            if part is not None:
                conditions |= part.conditions()
                settings |= part.settings()
        split = {} if place == data else {"split": request.split}
        return Report(
            model={
                "name": shown(self.pipe.name),
                "digest": f"weights {self.digest}",
                "cdrl": f"cdrl {__version__}",
                "torch": f"torch {torch.__version__}",
            },
            results=tuple(results),
            conditions=conditions,
            settings=settings,
            skipped=self.skipped,
            dataset={"type": slug(data), "name": data, **split},
            variant=self._variant(),
            detail="" if self.stationarity is None else self.stationarity.detail(),
        )

    @property
    def _steps(self) -> int | list[int]:
        """The requested Langevin steps, or the model's."""
        default = self.pipe.model.sampler.langevin_steps
        steps = default if self.samples.langevin_steps is None else self.samples.langevin_steps
        return steps if isinstance(steps, int) else list(steps)

    @property
    def _steps_text(self) -> str:
        steps = self._steps
        return str(steps) if isinstance(steps, int) else ",".join(map(str, steps))

    def _seeds(self) -> list[range]:
        count = self.reference.count
        return [self.samples.seeds(repeat, count) for repeat in range(self.request.repeats)]

    def _samples_in_words(self) -> str:
        request = self.request
        labels = listing(attribute.name for attribute in self.pipe.model.labels)
        seeds = listing((f"{s[0]} … {s[-1]}" for s in self._seeds()), limit=4)
        return (
            f"n = {self.reference.count:,}, {request.repeats} repeat{'s' * (request.repeats > 1)}, "
            f"seeds {seeds}; K = {self._steps_text}, guidance {request.guidance_scale:g}; "
            + (f"labels ({labels}) in turn" if labels else "no labels")
        )

    def _sample_settings(self) -> dict[str, Any]:
        return {
            "seeds": [[s[0], s[-1]] for s in self._seeds()],
            "langevin_steps": self._steps,
            "guidance_scale": self.request.guidance_scale,
            "batch_size": self.request.batch_size,
        }

    def _reference_in_words(self, place: str, digests: Sequence[str]) -> str:
        repeats = self.request.repeats
        each = f"; {len(set(digests))} sets for {repeats} repeats" if repeats > 1 else ""
        return (
            f"{self.reference.count:,} of the {len(self.reference.data):,} images of {place}, chosen "
            f"by seed {self.request.seed}{each} ({listing(digests, limit=4)})"
        )

    def _variant(self) -> str:
        """The differences from the model's defaults, for the names in a card."""
        default = self.pipe.model.sampler.langevin_steps
        usual = self._steps == (default if isinstance(default, int) else list(default))
        variant = "" if usual else f", K = {self._steps_text}"
        guidance = self.request.guidance_scale
        return variant + ("" if guidance == 1 else f", guidance {guidance:g}")


def _place(request: Request) -> str:
    """The name of the real images in reports."""
    data = data_name(request.source)
    return data if Path(request.source).is_dir() else f"{data}, {request.split}"


def _accuracy(request: Request, samples: Samples, reference: RealImages) -> Accuracy:
    model = samples.pipe.model
    check_labels(model.labels, reference.data)
    sizes = [len(attribute.values) for attribute in model.labels]
    asked = samples.labels(reference.count)
    assert request.classifier is not None  # `Request.chosen_metrics` has checked both
    assert asked is not None
    classifier = load_classifier(request.classifier, model.image.shape, sizes)
    name = shown(request.classifier.name)
    return Accuracy(classifier, name, model.labels, asked, reference, request.batch_size)


def _stationarity(request: Request, pipe: CDRLPipeline, reference: RealImages) -> Stationarity:
    return Stationarity(
        pipe,
        reference,
        _place(request),
        request.langevin_steps,
        request.chains,
        request.moves,
    )


def _separation(
    request: Request, pipe: CDRLPipeline, reference: RealImages, held: ImageSet | None
) -> Separation:
    shape, count = pipe.model.image.shape, reference.count
    outside = read_outside(request.outside, shape, count, request.seed)
    if held is not None and len(held):
        outside[f"held-out {listing(held_out(pipe.model))}"] = held.images.numpy()
    if not outside:
        raise InputError(
            f"the metric 'ood' needs outside images: {data_name(request.source)} has no images of the "
            f"held-out classes {listing(held_out(pipe.model))}; add --outside NAME=DATA"
        )
    first = pipe.score(reference.data.images[:1], request.score, progress=False)  # or it raises
    place = _place(request)
    return Separation(pipe, first.score, reference, place, outside, request.batch_size)
