"""Scores, p-values, alarms and heat maps of images, for the pipeline, the detector and `cdrl-score`."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from cdrl_infer.arguments import (
    Progress,
    check_choice,
    check_seed,
    flag,
    integer,
    number,
    positive,
    progress_bar,
)
from cdrl_infer.device import (
    Precision,
    ResolvedPrecision,
    autocast_to,
    default_switches,
    resolved_precision,
)
from cdrl_infer.errors import ConfigError, InputError, NumericalError, listing
from cdrl_infer.images import each_image
from cdrl_infer.model import CDRLModel
from cdrl_infer.scoring.features import NoisedImages, draw_noise
from cdrl_infer.scoring.maps import heat_map
from cdrl_infer.scoring.reference import ReferenceStatistics
from cdrl_infer.scoring.registry import SCORES
from cdrl_infer.scoring.scores import FittedScore

ImageInput = Image.Image | str | os.PathLike[str] | np.ndarray | Tensor | Iterable[Any]
AT_HAND = (Image.Image, str, os.PathLike, np.ndarray, Tensor, list, tuple)  # can be read twice
CALIBRATE = "run `cdrl-eval --calibrate --model FOLDER --data DATA` or pipe.calibrate(images)"


@dataclass(frozen=True)
class ScoreOutput:
    """How odd the images are, in the order of the input; all tensors are on the CPU.

    Attributes:
        scores: (N,) float64, higher = more anomalous.
        score: the name of the score.
        seed: the seed of the noise.
        p_values: (N,) float64, the share of in-distribution images that score higher; None if the model
            has no calibration with this seed.
        anomalous: (N,) bool, whether the score is above the threshold; None without a threshold.
        threshold: the threshold for alarms; None if ``threshold_fpr`` was not given.
        maps: (N, H, W) float32, at least 0, high where an image is odd; None without ``return_map``.
    """

    scores: Tensor
    score: str
    seed: int
    p_values: Tensor | None = None
    anomalous: Tensor | None = None
    threshold: float | None = None
    maps: Tensor | None = None

    def _repr_html_(self) -> str:
        """A table for notebooks: a row per image."""
        from cdrl_infer.showing import table

        columns = {"image": [str(k) for k in range(len(self.scores))]}
        columns[self.score] = [f"{float(score):.4g}" for score in self.scores]
        if self.p_values is not None:
            columns["p-value"] = [f"{float(p):.3f}" for p in self.p_values]
        if self.anomalous is not None:
            columns["anomalous"] = ["yes" if odd else "no" for odd in self.anomalous.tolist()]
        return table([*columns], [*zip(*columns.values(), strict=True)], "higher = more anomalous")


class Plan(NamedTuple):
    """The checked arguments of a call, see `Scorer.plan`."""

    score: str
    t: int
    seed: int
    needs: ReferenceStatistics | None  # the calibration, if the fit or the p-values need it
    reference: ReferenceStatistics | None  # the calibration for p-values; None for another seed
    threshold: float | None
    noise: Tensor
    precision: ResolvedPrecision


class Scorer:
    """Scores images with a model.

    ::

        out = Scorer(model).score(images, threshold_fpr=0.05)
        out.p_values   # the share of in-distribution images that score higher
        out.anomalous  # an alarm; 5 % of in-distribution images raise one

    Args:
        model: the networks, in eval mode, on any device.
        name: the model's name in messages.
    """

    def __init__(self, model: CDRLModel, name: str = "custom") -> None:
        self.model = model
        self.name = name

    def score(self, images: ImageInput, score: str | None = None, **options: Any) -> ScoreOutput:
        """Score all images; higher = more anomalous. See `stream` for the arguments and other errors.

        Raises:
            InputError: there are no images.
        """
        parts = list(self.stream(images, score, **options))
        if not parts:
            raise InputError("expected at least one image, got none")

        def joined(name: str) -> Any:
            values = [getattr(part, name) for part in parts]
            return None if values[0] is None else torch.cat(values)

        return ScoreOutput(
            scores=joined("scores"),
            score=parts[0].score,
            seed=parts[0].seed,
            p_values=joined("p_values"),
            anomalous=joined("anomalous"),
            threshold=parts[0].threshold,
            maps=joined("maps"),
        )

    @default_switches()
    def stream(
        self,
        images: ImageInput,
        score: str | None = None,
        *,
        level: int | None = None,
        seed: int | None = None,
        threshold_fpr: float | None = None,
        return_map: bool = False,
        resize: bool = False,
        grey: bool = False,
        precision: Precision = "float32",
        batch_size: int = 64,
        progress: Progress = None,
    ) -> Iterator[ScoreOutput]:
        """Score images batch by batch; memory does not grow with their number.

        A score depends on the image and the seed. The other images of its batch change its rounding only.
        docs/scoring.md explains the scores and their quality. The call checks all arguments; the iterator
        does the work.

        Args:
            images: pictures, paths, arrays or tensors, or a list, a generator, a data set or a
                ``DataLoader`` of these, which is read batch by batch; see
                `cdrl_infer.images.each_image`.
            score: a name in `cdrl_infer.scoring.SCORES`; None: the model's own, see `default_score`.
            level: the transition t = 1 (least noise, the default) … T, for "energy" and "score-norm".
            seed: the seed of the noise, which is the same for all images; by default the seed of the
                model's calibration, else 0.
            threshold_fpr: also mark anomalous images, with a threshold that marks this share of
                in-distribution images.
            return_map: also compute heat maps; this costs more.
            resize: resize pictures to the model's size; otherwise another size is an error.
            grey: for a model of grey images, convert coloured images to grey; otherwise they are an
                error.
            precision: "bfloat16" computes convolutions in bfloat16, also with a calibration in float32;
                scores differ a little, see docs/scoring.md. "auto": the faster of the two on the device.
            batch_size: number of images to score at once.
            progress: show a bar on stderr; by default only if stderr is a terminal. A dict has options of
                ``tqdm``.

        Raises:
            InputError: an argument is invalid, `each_image` refuses an image, or the score or the
                threshold needs a calibration and the model has none.
            ConfigError: the score or the p-values need a calibration, and it belongs to other weights.
            NumericalError: a score is not finite.
        """
        plan = self.plan(
            score, level=level, seed=seed, threshold_fpr=threshold_fpr, precision=precision
        )
        batch_size = positive("batch_size", batch_size)
        resize, return_map = flag("resize", resize), flag("return_map", return_map)
        total, shape = None, self.model.image.shape
        if isinstance(images, AT_HAND):  # refuse bad images before any work
            total = sum(1 for _ in each_image(images, shape, resize=resize, grey=grey))
        pictures = each_image(images, shape, resize=resize, grey=grey)
        bar = progress_bar(progress, total=total, unit="image")
        return self._batches(plan, pictures, batch_size, return_map, bar)

    def plan(
        self,
        score: str | None = None,
        *,
        level: int | None = None,
        seed: int | None = None,
        threshold_fpr: float | None = None,
        precision: Precision = "float32",
    ) -> Plan:
        """Check the arguments of `stream`, for `scored`; see there for their meaning and errors."""
        score = default_score(self.model) if score is None else score
        check_choice("score", score, tuple(SCORES))
        check_choice("precision", precision, get_args(Precision))
        rule, statistics = SCORES[score], self.model.statistics
        fitted = isinstance(rule, FittedScore)
        if fitted and statistics is None:
            free = [name for name, r in SCORES.items() if not isinstance(r, FittedScore)]
            raise InputError(
                f"the score {score!r} needs a calibrated model, and {self.name!r} is not calibrated; "
                f"{CALIBRATE}, or choose {listing(free)}"
            )
        t, num_levels = (
            1 if level is None else integer("level", level),
            self.model.schedule.num_levels,
        )
        if t != 1 and not rule.levelled:
            raise InputError(
                f"the score {score!r} takes no level, got level={t}; leave the level out"
            )
        if not 1 <= t <= num_levels:
            raise InputError(f"level must lie in 1 … {num_levels}, got {t}")
        calibrated_seed = 0 if statistics is None else statistics.seed
        seed = calibrated_seed if seed is None else check_seed(seed)
        reference = statistics if seed == calibrated_seed else None
        threshold = None
        if threshold_fpr is not None:
            fpr = number("threshold_fpr", threshold_fpr)
            if reference is None:
                mend = CALIBRATE if statistics is None else "leave the seed out"
                raise InputError(
                    f"threshold_fpr needs a calibration with seed {seed}, and {self.name!r} has none; "
                    f"{mend}"
                )
            threshold = reference.threshold(score, fpr, t)
        noise = draw_noise(self.model.schedule, self.model.image.shape, seed)
        needs = statistics if fitted else reference
        if needs is not None:
            self._check_weights(needs)
        own = resolved_precision(precision, self.device)
        return Plan(score, t, seed, needs, reference, threshold, noise, own)

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return self.model.device

    def _batches(
        self,
        plan: Plan,
        pictures: Iterator[Tensor],
        batch_size: int,
        return_map: bool,
        bar: tqdm[Any],
    ) -> Iterator[ScoreOutput]:
        done = 0
        with bar:
            while part := list(islice(pictures, batch_size)):
                yield self.scored(plan, part, done, return_map)
                done += len(part)
                bar.update(len(part))

    @default_switches()
    def scored(
        self, plan: Plan, part: Sequence[Tensor], first: int = 0, return_map: bool = False
    ) -> ScoreOutput:
        """Score one batch.

        Args:
            plan: by `plan`.
            part: B images (C, H, W) in [0, 1].
            first: the number of the first of them, for messages.
            return_map: also compute heat maps.

        Raises:
            NumericalError: a score is not finite.
        """
        batch = torch.stack(list(part))
        fit = None if plan.needs is None else plan.needs.fit
        with autocast_to(plan.precision, self.device):
            values = SCORES[plan.score](NoisedImages.of(self.model, batch, plan.noise), plan.t, fit)
            _check_finite(values, first, plan.score)
            maps = heat_map(self.model, batch, plan.seed) if return_map else None
        reference = plan.reference
        return ScoreOutput(
            scores=values,
            score=plan.score,
            seed=plan.seed,
            p_values=None if reference is None else reference.p_values(plan.score, values, plan.t),
            anomalous=None if plan.threshold is None else values > plan.threshold,
            threshold=plan.threshold,
            maps=maps,
        )

    def _check_weights(self, statistics: ReferenceStatistics) -> None:
        try:
            statistics.check_weights(self.model)
        except ConfigError as error:
            raise ConfigError(f"{self.name!r}: {error}; calibrate again: {CALIBRATE}") from None


def default_score(model: CDRLModel) -> str:
    """The score of a model unless a user names one: that of its calibration, or of its energy's class.

    The latter is "combined" for most, and "energy" for the energies of MPDR, which learn to be anomaly
    scores.

    Raises:
        ConfigError: the calibration's score is not registered.
    """
    own = None if model.statistics is None else model.statistics.score
    if own is not None:
        if own not in SCORES:
            raise ConfigError(
                f"the model was calibrated for the score {own!r}, which is not known here: import the "
                f"module that registers it, or name one of {listing(SCORES)}"
            )
        return own
    name: str = model.networks["ebm"].default_score
    return name


def _check_finite(scores: Tensor, first: int, name: str) -> None:
    bad: Sequence[int] = (~scores.isfinite()).nonzero().flatten().tolist()
    if bad:
        raise NumericalError(
            f"the score {name!r} of images {listing(first + k for k in bad)} is not finite; check the "
            "model"
        )
