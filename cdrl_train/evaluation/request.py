"""The request of a user of `cdrl-eval`, and its checks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cdrl_infer.arguments import check_seed, integer, number, positive
from cdrl_infer.errors import InputError, did_you_mean, listing
from cdrl_infer.model import Attribute, CDRLModel
from cdrl_infer.scoring.registry import SCORES
from cdrl_train.calibrate import MOST_USED
from cdrl_train.data.image_set import ImageSet, same_labels
from cdrl_train.data.sources import fit_of, load_images, without_held_out
from cdrl_train.evaluation import distances
from cdrl_train.evaluation.fidelity import FEWEST, check_torch_fidelity
from cdrl_train.evaluation.ood_metrics import sklearn_metrics
from cdrl_train.evaluation.registry import EXTRACTORS
from cdrl_train.evaluation.sampling import SEED_STRIDE, RealImages, Steps

METRICS = (*distances.METRICS, "ood", "accuracy", "stationarity", "likelihood")
ON_REQUEST = {
    "stationarity": "it takes minutes; add --metrics stationarity",
    "likelihood": "it needs the model's normalisers; add --metrics likelihood",
}


@dataclass(frozen=True)
class Request:
    """What to measure, and how. None stands for a default that depends on the other options.

    Args:
        source: the data, see `cdrl_train.data.load_images`.
        cache: a folder for features of real images.
        split: "train" or "test".
        model, revision, variant: see `CDRLPipeline.from_pretrained`.
        metrics: names in `METRICS`; None for all that can be measured and are not in `ON_REQUEST`.
        count: n, the number of samples of each repeat, and of real images to compare them with.
        repeats: the number of repeats.
        seed: the seed of the first sample, and of the choice of real images.
        langevin_steps: K.
        guidance_scale: the guidance scale of conditional samples.
        extractor: a name in `cdrl_train.evaluation.registry.EXTRACTORS`.
        weights: a file with the extractor's weights.
        classifier: a file, see `cdrl_train.evaluation.classifier`.
        outside: a text ``NAME=DATA`` for each set of outside images.
        score: a name in `cdrl_infer.scoring.SCORES`; None for the model's own.
        floor: also compare real images with other real images.
        chains: number of chains of `stationarity` from data, and from samples.
        moves: number of moves of each chain.
        batch_size: number of images at once.
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
    langevin_steps: Steps | None = None
    guidance_scale: float = 1.0
    extractor: str = "inception-v3-compat"
    weights: Path | None = None
    classifier: Path | None = None
    outside: tuple[str, ...] = ()
    score: str | None = None
    floor: bool = True
    chains: int = 16
    moves: int = 200
    batch_size: int = 64

    def chosen_metrics(self, holds_out: bool = False) -> tuple[tuple[str, ...], dict[str, str]]:
        """The metrics to measure, and the reasons for the metrics that are skipped.

        Args:
            holds_out: whether classes were left out when the model was trained; they are outside images.

        Raises:
            InputError: a value is invalid, a requested metric cannot be measured, or a package that it
                needs is missing.
        """
        positive("--repeats", self.repeats)
        positive("--batch-size", self.batch_size)
        positive("--moves", self.moves)
        if integer("--chains", self.chains) < 2:
            raise InputError(f"--chains must be at least 2, got {self.chains}")
        check_seed(self.seed)
        metrics, skipped = self._possible(holds_out)
        if {"kid", "is"} & set(metrics):
            check_torch_fidelity()
        if "ood" in metrics:
            if self.score is not None:
                SCORES.find(self.score, "--score")
            sklearn_metrics()
        return metrics, skipped

    def _possible(self, holds_out: bool) -> tuple[tuple[str, ...], dict[str, str]]:
        reasons = {}
        if not EXTRACTORS.find(self.extractor, "--extractor").logits:
            with_logits = listing(name for name, kind in EXTRACTORS.items() if kind.logits)
            reasons["is"] = f"{self.extractor} has no logits; use --extractor {with_logits}"
        if self.classifier is None:
            reasons["accuracy"] = "it needs a classifier; add --classifier FILE.pt2"
        if not self.outside and not holds_out:
            reasons["ood"] = "it needs outside images; add --outside NAME=DATA"
        if self.metrics is None:
            reasons |= ON_REQUEST
            return tuple(m for m in METRICS if m not in reasons), reasons
        for metric in self.metrics:
            if metric not in METRICS:
                raise InputError(
                    f"--metrics must be of {listing(METRICS)}, got {metric!r}"
                    f"{did_you_mean(metric, METRICS)}"
                )
            if metric in reasons:
                raise InputError(f"the metric {metric!r} cannot be measured: {reasons[metric]}")
        given = {"accuracy": ("--classifier", self.classifier), "ood": ("--outside", self.outside)}
        for metric, (option, value) in given.items():
            if value and metric not in self.metrics:
                raise InputError(f"{option} is for the metric {metric!r}: add it to --metrics")
        return tuple(m for m in METRICS if m in self.metrics), {}

    def check_model(self, model: CDRLModel, name: str) -> None:
        """Raise `InputError` if the model does not fit the guidance scale or the Langevin steps."""
        if number("--guidance-scale", self.guidance_scale) != 1 and not model.labels:
            raise InputError(f"--guidance-scale needs a model with labels, {name!r} has none")
        steps, levels = self.langevin_steps, model.schedule.num_levels
        if steps is None:
            return
        each = [steps] if isinstance(steps, int) else list(steps)
        if min(each) < 0 or (not isinstance(steps, int) and len(each) != levels):
            raise InputError(
                f"--langevin-steps must be at least 0, one number or {levels} (one per transition), "
                f"got {listing(each)}"
            )

    def real_images(self, model: CDRLModel, name: str) -> tuple[RealImages, ImageSet | None]:
        """The real images to compare with, and those of classes that were held out in training, if any.

        Raises:
            InputError: there are no images, there are too few, or they do not fit the model.
        """
        fit = fit_of(model)
        data = load_images(self.source, self.split, channels=model.image.channels, fit=fit)
        check_shape(model, name, data)
        data, held = without_held_out(data, model)
        most = min(MOST_USED if held is None else SEED_STRIDE, len(data))
        count = most if self.count is None else integer("-n", self.count)
        if "stationarity" in (self.metrics or ()) and self.chains > count:
            raise InputError(f"--chains must be at most n, {count:,}, got {self.chains:,}")
        if not FEWEST <= count <= len(data):
            raise InputError(
                f"-n must lie in {FEWEST} … {len(data):,} (the data have {len(data):,} images), got "
                f"{count:,}"
            )
        if count > SEED_STRIDE:
            raise InputError(f"-n must be at most {SEED_STRIDE:,} (a repeat has so many seeds)")
        check_seed(self.seed + (self.repeats - 1) * SEED_STRIDE + count - 1)
        return RealImages(data, self.split, self.seed, count), held

    def floor_images(self, real: RealImages, model: CDRLModel) -> RealImages | None:
        """The same number of images of the other split; None without a floor or with too few images."""
        if not self.floor or Path(self.source).is_dir():
            return None
        split = "train" if self.split == "test" else "test"
        try:
            data = load_images(self.source, split, channels=real.data.images.shape[1])
            data, _ = without_held_out(data, model)
        except InputError:
            return None
        same = data.images.shape[1:] == real.data.images.shape[1:]
        enough = len(data) >= real.count
        return RealImages(data, split, self.seed, real.count) if same and enough else None


def check_shape(model: CDRLModel, name: str, data: ImageSet) -> None:
    """Raise `InputError` unless the images of the data have the model's shape."""
    shape = tuple(data.images.shape[1:])
    if shape != model.image.shape:
        raise InputError(
            f"expected images of the shape {model.image.shape} (C, H, W) for {name!r}, got {shape}"
        )


def check_labels(ours: Sequence[Attribute], data: ImageSet) -> None:
    """Raise `InputError` unless the data have the model's classes, by name or by number."""
    if not ours:
        raise InputError("the metric 'accuracy' needs a model with labels; this model has none")
    if data.labels is None:
        raise InputError(
            "the metric 'accuracy' needs data with labels, to test the classifier; the data have none"
        )
    if not same_labels(ours, data):
        mine, others = (
            json.dumps([list(a.values) for a in attributes], ensure_ascii=False)
            for attributes in (ours, data.attributes)
        )
        raise InputError(
            f"the metric 'accuracy' needs data with the model's labels {mine}, got {others}"
        )
