"""How well scores separate images of the data from other images, compared with baselines.

``python benchmarks/ood.py --data fashion_mnist.npz``; see benchmarks/README.md.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
import torch
from classifier import Recipe
from numpy.typing import NDArray
from ood_autoencoder import (
    AutoencoderRecipe,
    Trained,
    autoencoder_label,
    count_values,
    load_or_train_autoencoder,
    training_minutes,
)
from ood_baselines import PYTORCH_OOD, Detector, PixelGaussian, judge_detectors
from ood_beside import second_model
from ood_report import (
    WANTED_ON,
    Row,
    aims,
    baselines_in_words,
    details_table,
    measure,
    metric_table,
    overview_table,
    row_as_json,
    summary_table,
)
from ood_scores import (
    ALARM,
    HeatMaps,
    ModelScores,
    false_alarms,
    model_detectors,
    reference_statistics,
    statistics_digest,
    stored_ones,
)
from ood_sets import OutSet, generator, inside_and_sets, pasted
from options import DATA, MODEL, OUTSIDE, draws, writes
from report import check_target, table, write_json
from subject import MADE_WITH, Subject

from cdrl_infer.cli import command
from cdrl_infer.errors import InputError
from cdrl_infer.files import replaced_file
from cdrl_train.calibrate import choose
from cdrl_train.data.sources import data_name
from cdrl_train.evaluation.cache import FeatureCache
from cdrl_train.evaluation.ood_metrics import (
    CONVENTION,
    METRICS,
    Interval,
    interval,
    pixel_auroc,
    resamplings,
    sklearn_metrics,
)
from cdrl_train.evaluation.outside import name_and_source

DEFAULT = "combined"
HEAT, ERROR = "heat map", "autoencoder's error map"


@click.command("ood.py", cls=command.OneLineErrors, context_settings={"show_default": True})
@MODEL
@DATA
@OUTSIDE
@click.option(
    "--beside",
    metavar="NAME=FOLDER",
    multiple=True,
    help="A second model of the data: its score, and both models together. Repeatable.",
)
@click.option("--n", "count", type=click.IntRange(20), default=2000, help="Images of each set.")
@click.option(
    "--seed",
    type=click.IntRange(0, 2**32 - 1),
    default=0,
    help="Seed of the derived sets and of the scores' noise.",
)
@click.option("--bootstrap", type=click.IntRange(20), default=1000, help="Bootstrap resamplings.")
@click.option(
    "--reference-images",
    type=click.IntRange(2),
    help="Training images to fit the scores to. [5000, or all if fewer]",
)
@click.option(
    "--autoencoder-minutes",
    type=click.FloatRange(0, min_open=True),
    help="Training time of the autoencoder. [the model's, by its config]",
)
@click.option("--map-images", type=click.IntRange(2), default=500, help="Images for the heat maps.")
@draws("Folder for scores, autoencoder and classifier; an interrupted run resumes from there.")
@writes("ood.json")
@click.option(
    "--markdown",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("ood.md"),
    help="Write the printed text and all metrics with intervals to a file.",
)
def main(out: Path, markdown: Path, **options: Any) -> None:
    """AUROC, AUPR and FPR95 of every score and of baselines, on many kinds of odd images."""
    check_target("--out", out)
    check_target("--markdown", markdown)
    text, more, results = evaluate(**options)
    click.echo(text)
    write_json(out, results)
    with replaced_file(markdown) as temporary:
        temporary.write_text(f"{text}\n\n{more}\n", encoding="utf-8")


def evaluate(
    model: str | None,
    data: str,
    sources: Sequence[str],
    beside: Sequence[str],
    count: int,
    seed: int,
    bootstrap: int,
    reference_images: int | None,
    autoencoder_minutes: float | None,
    map_images: int,
    batch_size: int,
    device: str,
    cache: Path,
    recipe: Recipe = Recipe(),  # noqa: B008 - a frozen dataclass
) -> tuple[str, str, dict[str, Any]]:
    """The text that the command prints, the additional text that it writes, and the JSON."""
    sklearn_metrics()  # checked now rather than after hours of work
    subject = Subject.load(model, data, device, labels=False)
    named = [name_and_source(text, "--beside must be NAME=FOLDER") for text in beside]
    others = {name: Subject.load(f, data, device, labels=False) for name, f in named}
    pipe, train, test = subject.pipe, subject.train, subject.test
    own_minutes = training_minutes(pipe.model.training)
    minutes = autoencoder_minutes or own_minutes
    if minutes is None:
        raise InputError(
            "--autoencoder-minutes is needed: the model's config does not tell its training time"
        )
    inside, base, sets = inside_and_sets(test.images, sources, count, seed)
    usual = choose(train.images, reference_images, seed)
    features = FeatureCache(cache)

    def fitted(one: Subject) -> ModelScores:
        found = reference_statistics(
            one.pipe, usual, data_name(data), seed, batch_size, cache, one.digest
        )
        digest = f"{one.digest}-{statistics_digest(found)}"
        return ModelScores(one.pipe, found, digest, batch_size)

    scores = fitted(subject)
    statistics, reference = scores.statistics, statistics_digest(scores.statistics)
    values = count_values(*pipe.model.networks.values())
    trained = load_or_train_autoencoder(
        cache, train, AutoencoderRecipe(values, 60 * minutes), progress=True
    )
    judge, real, _ = (
        subject.judge(cache, recipe) if train.labels is not None else (None, None, None)
    )
    gaussian = PixelGaussian.fit(train.images)
    for name, images in (("test images", inside), *((s.name, s.images) for s in sets)):
        features.rows(scores, images, f"scores, {name}")
    detectors = [
        *model_detectors(scores, features),
        *(
            detector
            for name, other in others.items()
            for detector in second_model(name, scores, DEFAULT, fitted(other), features)
        ),
        Detector("pixel Gaussian", "unsupervised", gaussian.distance),
        Detector("PCA residual", "unsupervised", gaussian.residual),
        Detector("autoencoder", "unsupervised", lambda x: features.rows(trained, x)),
        *(judge_detectors(judge, train, features) if judge else []),
    ]
    rows = list(measure(detectors, inside, sets, bootstrap, seed))
    default = next(row for row in rows if row.detector.name == DEFAULT)
    best = max(
        (row for row in rows if row.detector.kind == "unsupervised"),
        key=lambda row: row.mean(sets).value,
    )
    heat = HeatMaps(pipe, f"{subject.digest}-{seed}", seed, batch_size)
    patched, masks = (each[:map_images] for each in pasted(base, generator(seed, "patched")))
    maps = {
        HEAT: features.rows(heat, patched, "heat maps"),
        ERROR: trained.error_maps(torch.from_numpy(patched)).numpy(),
    }
    found = Found(
        rows,
        default,
        best,
        aims(default, best, sets),
        false_alarms(features.rows(scores, inside), statistics),
        map_results(maps, masks, bootstrap, seed),
    )
    stored = stored_ones(pipe.model.statistics, statistics)
    baselines = baselines_in_words(
        len(train),
        gaussian.components,
        autoencoder_label(trained, values, own_minutes),
        real,
        any(row.detector.name.startswith(PYTORCH_OOD) for row in rows),
    )
    head = (
        f"{subject.title}; reference statistics {reference} of {statistics.count} training images, seed "
        f"{seed} ({stored}); {MADE_WITH}."
    )
    text = _text(head, baselines, found, sets, count, seed, bootstrap, len(masks))
    more = "\n\n".join(metric_table(k, rows, sets) for k in range(len(METRICS)))
    return (
        text,
        more,
        {
            **subject.facts(values=values),
            "beside": {name: other.digest for name, other in others.items()},
            "statistics": {"digest": reference, "images": statistics.count, "stored": stored},
            "n": count,
            "seed": seed,
            "bootstrap": bootstrap,
            "autoencoder": {**_autoencoder_as_json(trained), "model_minutes": own_minutes},
            "classifier": real,
            **_as_json(found, sets),
        },
    )


class Found(NamedTuple):
    """The results of the benchmark."""

    rows: list[Row]
    default: Row  # the default score
    best: Row  # the best unsupervised detector
    aims: list[tuple[str, bool]]
    alarms: dict[str, tuple[float, float]]  # share of test images and its error, by score
    pixels: dict[str, Interval]  # pixel AUROC, by map


def map_results(
    maps: dict[str, NDArray[Any]], masks: NDArray[np.bool_], bootstrap: int, seed: int
) -> dict[str, Interval]:
    """Mean pixel AUROC of each map, and the difference of the first two, for the same resamplings."""
    values = {name: pixel_auroc(each, masks) for name, each in maps.items()}
    values[f"{HEAT} less {ERROR}"] = values[HEAT] - values[ERROR]
    draws = resamplings(len(masks), bootstrap, generator(seed, "maps")) / len(masks)
    return {name: interval(float(v.mean()), draws @ v) for name, v in values.items()}


def _text(
    head: str,
    baselines: str,
    found: Found,
    sets: Sequence[OutSet],
    count: int,
    seed: int,
    bootstrap: int,
    patched: int,
) -> str:
    missing = [name for name in WANTED_ON if name not in (s.name for s in sets)]
    return "\n".join(
        [
            head,
            "",
            f"n = {count}: the first test images against as many others, made (seed {seed}) of the test "
            "images after them or drawn from other sets; + marks additional sets. Brackets: 95 % of "
            f"{bootstrap} bootstrap resamplings of the images, the same for all detectors; nothing is "
            "trained or fitted anew.",
            *(["", f"Not given: {', '.join(missing)} (--outside)."] if missing else []),
            "",
            f"{CONVENTION}. Higher = more anomalous throughout.",
            "",
            baselines,
            "",
            overview_table(found.rows, sets),
            "",
            summary_table(found.rows, sets, found.default),
            "",
            details_table(found.default, found.best, sets, count),
            "",
            f"Aims of the score {DEFAULT}:",
            "",
            *(f"* {'reached' if yes else 'NOT REACHED'}: {aim}" for aim, yes in found.aims),
            "",
            f"Test images with p < {ALARM:g} (expected: {100 * ALARM:g} %); ± standard error, of that "
            "many images and reference scores:",
            "",
            table(
                ["score", "false alarms, %"],
                [
                    [name, f"{100 * share:.1f} ± {100 * error:.1f}"]
                    for name, (share, error) in found.alarms.items()
                ],
            ),
            "",
            f"Pixels of a pasted patch against the image's others, mean over {patched} images:",
            "",
            table(["map", "pixel AUROC"], list(found.pixels.items())),
        ]
    )


def _as_json(found: Found, sets: Sequence[OutSet]) -> dict[str, Any]:
    return {
        "sets": [
            {
                "name": s.name,
                "additional": not s.named,
                "n": len(s.images),
                "sha256": hashlib.sha256(s.images.tobytes()).hexdigest()[:16],
            }
            for s in sets
        ],
        "detectors": [row_as_json(row, sets) for row in found.rows],
        "best_unsupervised": found.best.detector.name,
        "aims": [{"aim": aim, "reached": yes} for aim, yes in found.aims],
        "false_alarms": {
            name: {"share": share, "error": error} for name, (share, error) in found.alarms.items()
        },
        "pixel_auroc": {name: each._asdict() for name, each in found.pixels.items()},
    }


def _autoencoder_as_json(trained: Trained) -> dict[str, Any]:
    return {
        "values": count_values(trained.network),
        "minutes": trained.seconds / 60,
        "images": trained.images,
        "threads": trained.threads,
    }


if __name__ == "__main__":
    main()
