"""Anomaly scores beside an autoencoder and pytorch-ood: how good, and at what cost."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import click
from classifier import Recipe
from ood_autoencoder import AutoencoderRecipe, count_values, load_or_train_autoencoder
from ood_baselines import (
    PYTORCH_OOD,
    ClassifierOutputs,
    Detector,
    classifier_detectors,
    pytorch_ood_detectors,
)
from ood_report import Row, measure
from ood_scores import reference_statistics
from ood_sets import Bytes, OutSet, inside_and_sets
from options import DATA, MODEL, OUTSIDE, draws, writes
from report import check_target, table, write_json
from subject import MADE_WITH, Subject
from torch import Tensor, from_numpy
from turns import in_turns

from cdrl_infer.cli.command import OneLineErrors
from cdrl_infer.device import Precision
from cdrl_infer.scoring.scorer import Scorer
from cdrl_train.calibrate import choose
from cdrl_train.data.image_set import ImageSet
from cdrl_train.data.sources import data_name
from cdrl_train.evaluation.ood_metrics import Floats

OURS: tuple[tuple[str, Precision], ...] = (
    ("combined", "float32"),
    ("combined-half", "float32"),
    ("combined-energy", "float32"),
    ("combined", "bfloat16"),
    ("combined-half", "bfloat16"),
    ("combined-energy", "bfloat16"),
)
VIM = f"{PYTORCH_OOD}ViM"


class Wanted(NamedTuple):
    """What is compared on what.

    Args:
        sources: other sets, ``NAME=SOURCE``.
        count: images of each set.
        reference_images: training images that the scores are fitted to.
        minutes: training time of each autoencoder.
        scales: parameters of the autoencoders, in units of the model's.
        timed: images at once for the clock.
        rounds: of the clock.
    """

    sources: Sequence[str]
    count: int
    reference_images: int
    minutes: float
    scales: Sequence[float]
    timed: int
    rounds: int


@click.command("anomalies", cls=OneLineErrors, context_settings={"show_default": True})
@MODEL
@DATA
@OUTSIDE
@click.option("--n", "count", type=click.IntRange(20), default=300, help="Images of each set.")
@click.option("--reference-images", type=click.IntRange(144), default=1500, help="To fit to.")
@click.option(
    "--autoencoder-minutes",
    "minutes",
    type=click.FloatRange(0, min_open=True),
    default=5.0,
    help="Training time of each autoencoder.",
)
@click.option(
    "--autoencoder-scale",
    "scales",
    type=click.FloatRange(0, min_open=True),
    multiple=True,
    default=(1.0, 10.0),
    help="Its parameters over those of the model. Repeatable.",
)
@click.option("--timed", type=click.IntRange(1), default=64, help="Images at once for the clock.")
@click.option("--rounds", type=click.IntRange(1), default=5, help="Of the clock, in turns.")
@draws("Folder for statistics, autoencoders and classifier.", on=None)
@writes("anomalies.json")
def main(
    model: str | None, data: str, batch_size: int, cache: Path, out: Path, **wanted: Any
) -> None:
    """AUROC and milliseconds an image of scores, and of detectors without an energy."""
    check_target("--out", out)
    text, results = evaluate(
        Subject.load(model, data, "cpu", labels=False), data, Wanted(**wanted), batch_size, cache
    )
    click.echo(text)
    write_json(out, results)


def evaluate(
    subject: Subject,
    data: str,
    wanted: Wanted,
    batch_size: int,
    cache: Path,
    recipe: Recipe = Recipe(),  # noqa: B008 - a frozen dataclass
) -> tuple[str, dict[str, Any]]:
    """The table, and the JSON."""
    cache.mkdir(parents=True, exist_ok=True)
    inside, _, sets = inside_and_sets(subject.test.images, wanted.sources, wanted.count, 0)
    usual = choose(subject.train.images, wanted.reference_images, 0)
    detectors = [
        *own_detectors(subject, usual, data_name(data), batch_size, cache),
        *autoencoders(subject, wanted.scales, wanted.minutes, cache),
        *with_labels(subject, cache, recipe),
    ]
    rows = list(measure(detectors, inside, sets, 300, 0))
    few = subject.test.images[-wanted.timed :].numpy()
    work: dict[str, Callable[[], Floats]] = {d.name: partial(d.score, few) for d in detectors}
    took = in_turns(work, wanted.rounds, lambda line: click.echo(line, err=True))
    spent = {name: [1000 * one.seconds / len(few) for one in each] for name, each in took.items()}
    return _report(subject, rows, sets, spent, wanted._replace(timed=len(few)))


def own_detectors(
    subject: Subject, usual: Tensor, name: str, batch_size: int, cache: Path
) -> list[Detector]:
    """`OURS`, with statistics in float32 of these images (N, C, H, W)."""
    pipe = subject.pipe
    found = reference_statistics(pipe, usual, name, 0, batch_size, cache, subject.digest)
    scorer = Scorer(replace(pipe.model, statistics=found), pipe.name)

    def detector(score: str, precision: Precision) -> Detector:
        def scores(images: Bytes) -> Floats:
            return scorer.score(
                from_numpy(images),
                score,
                precision=precision,
                batch_size=batch_size,
                progress=False,
            ).scores.numpy()

        return Detector(f"{score}, {precision}", "score", scores)

    return [detector(*each) for each in OURS]


def autoencoders(
    subject: Subject, scales: Sequence[float], minutes: float, cache: Path
) -> list[Detector]:
    """The error of autoencoders of several sizes, each trained for the same time."""
    values = count_values(*subject.pipe.model.networks.values())
    found = []
    for scale in scales:
        recipe = AutoencoderRecipe(round(scale * values), 60 * minutes)
        trained = load_or_train_autoencoder(cache, subject.train, recipe, progress=True)
        found.append(Detector(f"autoencoder, {scale:g} x the size", "unsupervised", trained))
    return found


def with_labels(subject: Subject, cache: Path, recipe: Recipe) -> list[Detector]:
    """The energy of the judge's logits, and pytorch-ood's ViM if it is installed; [] without labels."""
    train: ImageSet = subject.train
    if train.labels is None:
        return []
    judge, _, _ = subject.judge(cache, recipe)
    outputs = ClassifierOutputs(judge)
    found = classifier_detectors(outputs, outputs)
    if train.labels.shape[1] == 1:
        found += pytorch_ood_detectors(outputs, outputs, train.images, train.labels[:, 0])
    return [d for d in found if d.name in ("classifier energy", VIM)]


def _median(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} - {max(values):.2f})"


def _report(
    subject: Subject,
    rows: Sequence[Row],
    sets: Sequence[OutSet],
    spent: dict[str, list[float]],
    wanted: Wanted,
) -> tuple[str, dict[str, Any]]:
    worst = [row.worst() for row in rows]
    cells = [
        [
            row.detector.name,
            _median(spent[row.detector.name]),
            row.mean(sets),
            row.mean(sets, additional=True),
            f"{row.results[k][0].value:.3f} ({sets[k].name})",
        ]
        for row, k in zip(rows, worst, strict=True)
    ]
    text = "\n".join(
        [
            f"{subject.title}; {MADE_WITH}.",
            "",
            f"AUROC of {wanted.count} images a set, 95 % of 300 bootstrap resamplings; scores fitted "
            f"to {wanted.reference_images} training images, autoencoders {wanted.minutes:g} min. "
            f"Milliseconds of one core: {wanted.timed} images at once, median of {wanted.rounds} rounds "
            "in turns (min - max).",
            "",
            table(["detector", "ms an image", "mean", "mean of all sets", "worst"], cells),
        ]
    )
    return text, {
        **subject.facts(),
        "wanted": wanted._asdict(),
        "milliseconds": spent,
        "median": {name: statistics.median(values) for name, values in spent.items()},
        "auroc": {
            row.detector.name: {s.name: row.results[k][0].value for k, s in enumerate(sets)}
            for row in rows
        },
    }
