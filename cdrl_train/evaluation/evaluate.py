"""What `cdrl-eval` measures: everything is checked first, then drawn, then compared."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cdrl_infer.arguments import check_seed, integer, number, positive
from cdrl_infer.errors import CheckpointError, InputError, did_you_mean, listing
from cdrl_infer.model import Attribute
from cdrl_infer.pipeline import CDRLPipeline
from cdrl_infer.scoring.reference import random_order
from cdrl_infer.storage import hub
from cdrl_infer.storage.card import render, with_figures
from cdrl_infer.storage.folder import CARD, bundled_models, load_model
from cdrl_infer.version import __version__
from cdrl_train.calibrate import MOST_USED
from cdrl_train.data.image_set import ImageSet
from cdrl_train.data.sources import data_name, load_images
from cdrl_train.evaluation.cache import FeatureCache, images_digest
from cdrl_train.evaluation.classifier import Classifier, load_classifier
from cdrl_train.evaluation.extractors import Extractor, has_logits, load_extractor
from cdrl_train.evaluation.fidelity import (
    FEWEST,
    SETTINGS,
    check_torch_fidelity,
    compare,
    kid_subset,
)
from cdrl_train.evaluation.ood_metrics import (
    METRICS as OOD_METRICS,
)
from cdrl_train.evaluation.ood_metrics import (
    resampled_separation,
    resamplings,
    separation,
    sklearn_metrics,
)
from cdrl_train.evaluation.outside import generator, read_outside
from cdrl_train.evaluation.report import (
    BINOMIAL,
    BOOTSTRAP,
    Figure,
    Report,
    binomial_error,
    over_repeats,
    slug,
)
from cdrl_train.evaluation.sampling import (
    SEED_STRIDE,
    balanced_labels,
    model_digest,
    pixels,
    window,
)
from cdrl_train.evaluation.together import Arrays, Processes

METRICS = ("fid", "kid", "is", "prc", "ood", "accuracy")
OF_FEATURES = METRICS[:4]
PART = 500  # real images whose features make one file of the cache
RESAMPLINGS = 1000
Bytes = NDArray[np.uint8]  # (N, C, H, W)


@dataclass(frozen=True)
class Request:
    """What the user asked; None is a default that depends on the rest.

    Args:
        source: of the data, as for `cdrl_train.data.load_images`.
        split: "train" or "test".
        model: as for `CDRLPipeline.from_pretrained`; so are revision and variant.
        metrics: of `METRICS`; None: all that can be taken.
        count: n, samples of each repeat and real images to compare them with.
        repeats: R.
        seed: of the first sample, and of the choice of real images.
        langevin_steps: K.
        guidance_scale: of conditional samples.
        extractor: in `cdrl_train.evaluation.extractors.LOADERS`.
        weights: a file of the extractor's.
        classifier: a file, see `cdrl_train.evaluation.classifier`.
        outside: ``NAME=DATA`` each.
        score: a name in `cdrl_infer.scoring.scores.SCORES`.
        cache: a folder for features of real images.
        floor: also compare real images with real ones.
        batch_size: images at a time.
    """

    source: str
    cache: Path
    split: str = "test"
    model: str | None = None
    revision: str | None = None
    variant: str | None = None
    metrics: tuple[str, ...] | None = None
    count: int | None = None
    repeats: int = 1
    seed: int = 0
    langevin_steps: int | Sequence[int] | None = None
    guidance_scale: float = 1.0
    extractor: str = "inception-v3-compat"
    weights: Path | None = None
    classifier: Path | None = None
    outside: tuple[str, ...] = ()
    score: str = "combined"
    floor: bool = True
    batch_size: int = 64


class Floor(NamedTuple):
    """Real images in the samples' place."""

    images: Tensor
    split: str


@dataclass(frozen=True)
class Evaluation:
    """A request that has been checked, with all that it needs."""

    request: Request
    pipe: CDRLPipeline
    digest: str
    metrics: tuple[str, ...]
    skipped: dict[str, str]
    count: int
    data: ImageSet
    order: Tensor
    floor: Floor | None
    extractor: Extractor | None
    classifier: Classifier | None
    outside: dict[str, Bytes]
    cache: FeatureCache

    @classmethod
    def prepare(cls, request: Request, device: torch.device) -> Evaluation:
        """Check everything and load what is needed; nothing is drawn yet.

        Raises:
            InputError, CheckpointError: what cannot be done, or is not there.
        """
        metrics, skipped = _chosen(request)
        repeats = positive("--repeats", request.repeats)
        positive("--batch-size", request.batch_size)
        check_seed(request.seed)
        if any(metric in OF_FEATURES for metric in metrics):
            check_torch_fidelity()
        if "ood" in metrics:
            sklearn_metrics()
        found = hub.find(request.model, revision=request.revision, variant=request.variant)
        model = load_model(found.folder, variant=request.variant)
        pipe = CDRLPipeline(model, name=found.name).to(device)
        if number("--guidance-scale", request.guidance_scale) != 1 and not model.labels:
            raise InputError(f"--guidance-scale needs a model with labels, {pipe.name!r} has none")
        _check_steps(request.langevin_steps, model.schedule.num_levels)
        data = load_images(request.source, request.split)
        if tuple(data.images.shape[1:]) != model.image.shape:
            raise InputError(
                f"expected data of images {model.image.shape} (C, H, W) as {pipe.name!r} has, got "
                f"{tuple(data.images.shape[1:])}"
            )
        count = min(MOST_USED, len(data)) if request.count is None else integer("-n", request.count)
        if not FEWEST <= count <= len(data):
            raise InputError(
                f"-n must lie in {FEWEST} … {len(data):,}, all images there are to compare with, got "
                f"{count:,}"
            )
        check_seed(request.seed + (repeats - 1) * SEED_STRIDE + count - 1)
        if count > SEED_STRIDE:
            raise InputError(f"-n must be at most {SEED_STRIDE:,}, the seeds of a repeat")
        classifier = None
        if "accuracy" in metrics:
            _check_labels(model.labels, data)
            sizes = [len(attribute.values) for attribute in model.labels]
            assert request.classifier is not None  # `_chosen` has looked
            classifier = load_classifier(request.classifier, model.image.shape, sizes)
        outside = read_outside(request.outside, model.image.shape, count, request.seed)
        if "ood" in metrics:
            pipe.score(data.images[:1], request.score, progress=False)  # refuses what it cannot do
        extractor = floor = None
        if any(metric in OF_FEATURES for metric in metrics):
            extractor = load_extractor(request.extractor, request.weights, device)
            floor = _floor(request, data, count) if request.floor else None
        return cls(
            request=request,
            pipe=pipe,
            digest=model_digest(found.folder),
            metrics=metrics,
            skipped=skipped,
            count=count,
            data=data,
            order=random_order(len(data), request.seed),
            floor=floor,
            extractor=extractor,
            classifier=classifier,
            outside=outside,
            cache=FeatureCache(request.cache),
        )

    def run(self, processes: Processes) -> Report:
        """Draw, compare, and say all that it depends on."""
        figures: list[Figure] = []
        if self.extractor is not None or self.classifier is not None:
            samples = [self._samples(processes, r) for r in range(self.request.repeats)]
            if self.extractor is not None:
                figures += self._of_features(processes, [part["rows"] for part in samples])
            if self.classifier is not None:
                figures += self._accuracy(processes, [part["shown"] for part in samples])
        if "ood" in self.metrics:
            figures += self._ood(processes)
        return self._report(figures, processes.count)

    def _seeds(self, repeat: int) -> range:
        first = self.request.seed + repeat * SEED_STRIDE
        return range(first, first + self.count)

    def _labels(self) -> list[list[int]] | None:
        sizes = [len(attribute.values) for attribute in self.pipe.model.labels]
        return balanced_labels(sizes, self.count).tolist() if sizes else None

    def _samples(self, processes: Processes, repeat: int) -> Arrays:
        """Rows of the extractor, and what the classifier sees, of all samples of a repeat."""
        labels, seeds = self._labels(), self._seeds(repeat)

        def draw(start: int, stop: int) -> Arrays:
            output = self.pipe(
                num_images=stop - start,
                class_labels=None if labels is None else labels[start:stop],
                guidance_scale=self.request.guidance_scale,
                seeds=seeds[start:stop],
                langevin_steps=self.request.langevin_steps,
                batch_size=self.request.batch_size,
                output_type="pt",
                progress=False,
            )
            images = pixels(output)
            found: Arrays = {}
            if self.extractor is not None:
                found["rows"] = self.extractor(images)
            if self.classifier is not None:
                found["shown"] = self.classifier(images)
            return found

        title = f"samples, repeat {repeat + 1} of {self.request.repeats}"
        return processes.each_batch(self.count, self.request.batch_size, draw, title)

    def _real(self, images: Tensor, order: Tensor, repeat: int) -> Bytes:
        """The real images of a repeat."""
        chosen: Bytes = images[order[window(self.count, repeat, len(order))]].numpy()
        return chosen

    def _rows(self, processes: Processes, images: Bytes, title: str) -> NDArray[Any]:
        """Rows of the extractor of real images."""
        extractor = self.extractor
        assert extractor is not None

        def extract(start: int, stop: int) -> Arrays:
            return {"rows": self.cache(extractor, images[start:stop])}

        return processes.each_batch(len(images), PART, extract, title)["rows"]

    def _of_features(self, processes: Processes, samples: Sequence[NDArray[Any]]) -> list[Figure]:
        """FID, KID, IS, precision and recall, each repeat against its own real images."""
        assert self.extractor is not None
        wanted = [metric for metric in self.metrics if metric in OF_FEATURES]
        found: list[dict[str, float]] = []
        floors: list[dict[str, float]] = []
        for repeat, rows in enumerate(samples):
            real = self._real(self.data.images, self.order, repeat)
            reference = self._rows(processes, real, f"reference, repeat {repeat + 1}")
            found.append(compare(rows, reference, self.extractor, wanted))
            if self.floor is not None:
                order = random_order(len(self.floor.images), self.request.seed)
                others = self._real(self.floor.images, order, repeat)
                other = self._rows(processes, others, f"floor, repeat {repeat + 1}")
                floors.append(compare(other, reference, self.extractor, wanted))
        figures = []
        for key in found[0]:
            values = tuple(one[key] for one in found)
            error, error_is = over_repeats(values)
            name, metric = _named(key, self.extractor)
            settings = dict(SETTINGS["prc" if key in ("precision", "recall") else key])
            if key == "kid":
                settings["subset_size"] = kid_subset(self.count)
            figures.append(
                Figure(
                    metric,
                    name,
                    values,
                    error,
                    error_is,
                    floor=tuple(one[key] for one in floors),
                    n=self.count,
                    by=self.extractor.title,
                    of=("samples", "reference", "extractor"),
                    floor_name=f"{self.floor.split} images" if self.floor else "",
                    args=settings,
                )
            )
        return figures

    def _accuracy(self, processes: Processes, shown: Sequence[NDArray[Any]]) -> list[Figure]:
        """Shares of samples that show what was asked, of all and of each class."""
        classifier, labels = self.classifier, self._labels()
        assert classifier is not None and labels is not None and self.data.labels is not None
        real = self._real(self.data.images, self.order, 0)
        truth = self.data.labels[self.order[window(self.count, 0, len(self.order))]].numpy()

        def look(start: int, stop: int) -> Arrays:
            return {"shown": classifier(real[start:stop])}

        seen = processes.each_batch(
            self.count, self.request.batch_size, look, "the classifier on real images"
        )["shown"]
        asked = np.array(labels)

        def figure(name: str, values: Sequence[Any], floor: Any, in_card: bool) -> Figure:
            n, right = sum(map(len, values)), int(sum(value.sum() for value in values))
            return Figure(
                "class-accuracy",
                name,
                tuple(100 * float(np.mean(value)) for value in values),
                100 * binomial_error(right, n),
                BINOMIAL,
                floor=(100 * float(np.mean(floor)),) if len(floor) else (),
                n=n,
                by=f"classifier {classifier.digest}",
                of=("samples", "reference", "classifier"),
                floor_name=f"real images ({len(floor):,})" if len(floor) else "",
                in_card=in_card,
            )

        rights = [(one == asked).all(1) for one in shown]
        figures = [
            figure("accuracy, %", rights, (seen == truth).all(1), in_card=True),
        ]
        for j, attribute in enumerate(self.pipe.model.labels):
            for k, value in enumerate(attribute.values):
                mine, theirs = asked[:, j] == k, truth[:, j] == k
                if mine.any():
                    parts = [one[mine, j] == k for one in shown]
                    name = f"  {attribute.name} {value}"
                    figures.append(figure(name, parts, seen[theirs, j] == k, in_card=False))
        return figures

    def _ood(self, processes: Processes) -> list[Figure]:
        """AUROC, AUPR and FPR95 for each set, with the spread of bootstrap resamplings."""

        def scored(images: Bytes, title: str) -> NDArray[np.float64]:
            def score(start: int, stop: int) -> Arrays:
                part = torch.from_numpy(images[start:stop])
                found = self.pipe.score(
                    part, self.request.score, batch_size=stop - start, progress=False
                )
                return {"scores": found.scores.numpy()}

            rows = processes.each_batch(len(images), self.request.batch_size, score, title)
            return rows["scores"].astype(np.float64)

        inside = scored(self._real(self.data.images, self.order, 0), f"{self.request.score}, data")
        figures = []
        for name, images in self.outside.items():
            outside = scored(images, f"{self.request.score}, {name}")
            values = separation(inside, outside)
            rng = generator(self.request.seed, name)
            draws = [resamplings(len(one), RESAMPLINGS, rng) for one in (inside, outside)]
            errors = resampled_separation(inside, outside, *draws).std(0, ddof=1)
            for metric, value, error in zip(OOD_METRICS, values, errors, strict=True):
                figures.append(
                    Figure(
                        f"ood-{metric.lower()}",
                        f"{metric} against {name}",
                        (float(value),),
                        float(error),
                        BOOTSTRAP.format(RESAMPLINGS),
                        n=self.count,
                        by=self.request.score,
                        of=("score", "outside"),
                        args={"outside_images": len(outside)},
                    )
                )
        return figures

    def _report(self, figures: Sequence[Figure], processes: int) -> Report:
        """The figures and everything that they depend on."""
        request, model = self.request, self.pipe.model
        data = data_name(request.source)
        place = data if Path(request.source).is_dir() else f"{data}, {request.split}"
        chosen = request.langevin_steps
        default = model.sampler.langevin_steps
        steps = default if chosen is None else chosen
        steps_text = str(steps) if isinstance(steps, int) else ",".join(map(str, steps))
        guidance = f"{request.guidance_scale:g}"
        references = [
            images_digest(self._real(self.data.images, self.order, r))[:12]
            for r in range(request.repeats)
        ]
        conditions: dict[str, str] = {}
        settings: dict[str, Any] = {
            "n": self.count,
            "repeats": request.repeats,
            "seed": request.seed,
            "reference_digests": references,
            "processes": processes,
            "device": self.pipe.device.type,
        }
        if self.extractor is not None or self.classifier is not None:
            seeds = [self._seeds(r) for r in range(request.repeats)]
            shown = listing((f"{s[0]} … {s[-1]}" for s in seeds), limit=4)
            labels = listing(attribute.name for attribute in model.labels)
            conditions["samples"] = (
                f"n = {self.count:,}, {request.repeats} repeat{'s' * (request.repeats > 1)}, seeds "
                f"{shown}; K = {steps_text}, guidance {guidance}; "
                + (f"labels ({labels}) in turn" if labels else "no labels")
            )
            settings |= {
                "seeds": [[s[0], s[-1]] for s in seeds],
                "langevin_steps": steps if isinstance(steps, int) else list(steps),
                "guidance_scale": request.guidance_scale,
                "batch_size": request.batch_size,
            }
        if self.extractor is not None or self.classifier is not None:
            others = len(set(references))
            each = f"; {others} sets for {request.repeats} repeats" if request.repeats > 1 else ""
            conditions["reference"] = (
                f"{self.count:,} of the {len(self.data):,} images of {place}, chosen by seed "
                f"{request.seed}{each} ({listing(references, limit=4)})"
            )
        if self.floor is not None:
            conditions["floor"] = (
                f"{self.count:,} of the {len(self.floor.images):,} images of {data}, "
                f"{self.floor.split}, in place of the samples"
            )
        if self.extractor is not None:
            conditions["extractor"] = (
                f"{self.extractor.name}, weights {self.extractor.digest}: {self.extractor.convention}"
            )
            settings["extractor"] = {
                "name": self.extractor.name,
                "digest": self.extractor.digest,
                "convention": self.extractor.convention,
            }
        if self.classifier is not None and request.classifier is not None:
            conditions["classifier"] = f"{request.classifier.name}, {self.classifier.digest}"
            settings["classifier"] = self.classifier.digest
        if "ood" in self.metrics:
            statistics = model.statistics
            conditions["score"] = (
                f"{request.score} (higher = more anomalous), seed of the noise "
                f"{0 if statistics is None else statistics.seed}, "
                + ("not calibrated" if statistics is None else f"calibrated on {statistics.data}")
                + f"; inside: {self.count:,} images of {place}, chosen by seed {request.seed}"
            )
            conditions["outside"] = "; ".join(
                f"{name}: {len(images):,} images, {images_digest(images)[:12]}"
                for name, images in self.outside.items()
            )
            settings["score"] = request.score
        variant = "" if chosen is None or steps == default else f", K = {steps_text}"
        variant += "" if request.guidance_scale == 1 else f", guidance {guidance}"
        return Report(
            model={
                "name": self.pipe.name,
                "digest": f"weights {self.digest}",
                "cdrl": f"cdrl {__version__}",
                "torch": f"torch {torch.__version__}",
            },
            figures=tuple(figures),
            conditions=conditions,
            settings=settings,
            skipped=self.skipped,
            dataset={"type": slug(data), "name": data}
            | ({} if place == data else {"split": request.split}),
            variant=variant,
        )


def _chosen(request: Request) -> tuple[tuple[str, ...], dict[str, str]]:
    """The metrics to take, and why others are not; those asked by name must be possible."""
    reasons = {}
    if not has_logits(request.extractor):
        reasons["is"] = f"{request.extractor} has no logits; --extractor inception-v3-compat has"
    if request.classifier is None:
        reasons["accuracy"] = "no classifier; --classifier FILE.pt2 gives one"
    if not request.outside:
        reasons["ood"] = "nothing to tell the data from; --outside NAME=DATA gives a set"
    if request.metrics is None:
        return tuple(m for m in METRICS if m not in reasons), reasons
    for metric in request.metrics:
        if metric not in METRICS:
            raise InputError(
                f"--metrics must be of {listing(METRICS)}, got {metric!r}"
                f"{did_you_mean(metric, METRICS)}"
            )
        if metric in reasons:
            raise InputError(f"the metric {metric!r} cannot be taken: {reasons[metric]}")
    wanted = [
        ("accuracy", "--classifier", request.classifier is not None),
        ("ood", "--outside", bool(request.outside)),
    ]
    for metric, option, given in wanted:
        if given and metric not in request.metrics:
            raise InputError(f"{option} is for the metric {metric!r}: add it to --metrics")
    return tuple(m for m in METRICS if m in request.metrics), {}


def _check_steps(steps: int | Sequence[int] | None, num_levels: int) -> None:
    if steps is None:
        return
    each = [steps] if isinstance(steps, int) else list(steps)
    if min(each) < 0 or (not isinstance(steps, int) and len(each) != num_levels):
        raise InputError(
            f"--langevin-steps must be at least 0, one number or {num_levels} (one per level), got "
            f"{listing(each)}"
        )


def _check_labels(ours: Sequence[Attribute], data: ImageSet) -> None:
    """InputError unless the classes of model and data are the same ones, or numbered."""
    if not ours:
        raise InputError("the metric 'accuracy' needs a model with labels, this one has none")
    if data.labels is None:
        raise InputError(
            "the metric 'accuracy' needs data with labels, to say what the classifier is worth; "
            "these have none"
        )
    numbered = [tuple(map(str, range(len(a.values)))) for a in data.attributes]
    same = len(ours) == len(data.attributes) and all(
        tuple(a.values) in (tuple(b.values), numbers)
        or (tuple(b.values) == numbers and len(a.values) == len(numbers))
        for a, b, numbers in zip(ours, data.attributes, numbered, strict=True)
    )
    if not same:
        raise InputError(
            f"the metric 'accuracy' needs data with the model's labels "
            f"{json.dumps([list(a.values) for a in ours], ensure_ascii=False)}, got "
            f"{json.dumps([list(a.values) for a in data.attributes], ensure_ascii=False)}"
        )


def _floor(request: Request, data: ImageSet, count: int) -> Floor | None:
    """The other split, where there is one and it is large enough."""
    if Path(request.source).is_dir():
        return None
    split = "train" if request.split == "test" else "test"
    try:
        images = load_images(request.source, split).images
    except InputError:
        return None
    if images.shape[1:] != data.images.shape[1:] or len(images) < count:
        return None
    return Floor(images, split)


def _named(key: str, extractor: Extractor) -> tuple[str, str]:
    """A figure's name and type: FID, KID and IS are of Inception, others must not be taken for them."""
    inception = extractor.name == "inception-v3-compat"
    names: dict[str, tuple[str, str]] = {
        "fid": ("FID", "fid") if inception else ("Fréchet distance", f"frechet-{extractor.name}"),
        "kid": ("KID", "kid") if inception else ("kernel distance", f"kernel-{extractor.name}"),
        "is": ("inception score", "inception-score"),
        "precision": ("precision", "precision"),
        "recall": ("recall", "recall"),
    }
    return names[key]


def card_file(model: str | None) -> Path:
    """The card in a folder of the user's.

    Raises:
        InputError: a bundled model, or one of the Hub.
    """
    if model is None or model in bundled_models() or not Path(model).is_dir():
        raise InputError(
            "--update-card writes into the folder of a model of yours, got "
            f"{model or 'the bundled model'!r}; pipe.save_pretrained(FOLDER) makes a copy"
        )
    return Path(model) / CARD


def updated_card(pipe: CDRLPipeline, file: Path, report: Report | None = None) -> bytes:
    """The card with the figures of a report in it; a new one where there is none.

    Args:
        pipe: of the model.
        file: the card.
        report: None adds nothing, and still says what cannot be done.

    Raises:
        CheckpointError: a card that cannot be read or edited.
    """
    try:
        text = file.read_bytes().decode("utf-8") if file.exists() else ""
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{file}: cannot be read as UTF-8 ({error})") from error
    text = text or render(pipe.model, pipe.name, facts={}, text="")
    entries, dataset = ([], None) if report is None else (report.card_entries(), report.dataset)
    try:
        changed = with_figures(text, entries, dataset=dataset, model=pipe.name)
    except CheckpointError as error:
        raise CheckpointError(f"{file}: {error}") from error
    return changed.encode()
