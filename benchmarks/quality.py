"""How good the samples of a model are: recognised classes and Fréchet distances, for several K.

``python benchmarks/quality.py --data fashion_mnist.npz``; see benchmarks/README.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
from classifier import Recipe
from numpy.typing import NDArray
from options import DATA, EXTRACTOR, MODEL, draws, writes
from report import check_target, per_cent, plus_minus, spread, table, write_json
from subject import MADE_WITH, SamplePools, Steps, Subject, steps_name

from cdrl_infer.cli import command
from cdrl_infer.errors import listing
from cdrl_train.evaluation.cache import FeatureCache
from cdrl_train.evaluation.classifier import Classifier
from cdrl_train.evaluation.extractors import Extractor, load_extractor
from cdrl_train.evaluation.fidelity import frechet
from cdrl_train.evaluation.sampling import window

TRAINING = "training images"
Rows = NDArray[np.float32]


class Comparison(NamedTuple):
    """Fréchet distances of one kind of images to n test images, one value per repeat."""

    n: int
    images: str
    distance: list[float]
    excess: list[float]  # distance less that of as many training images to the same test images


def compare(
    test: Rows, train: Rows, samples: dict[str, list[Rows]], sizes: Sequence[int]
) -> list[Comparison]:
    """Compare training images and each kind of samples with test images, for each n.

    Args:
        test: features of the test images, in order.
        train: features of the training images, in order.
        samples: features of the samples of each kind, one set per repeat.
        sizes: the values of n.
    """
    repeats = len(next(iter(samples.values())))
    rows = []
    for n in sizes:
        reference = [test[window(n, r, len(test))] for r in range(repeats)]
        floor = [frechet(train[window(n, r, len(train))], reference[r]) for r in range(repeats)]
        rows.append(Comparison(n, TRAINING, floor, [0.0] * repeats))
        for kind, sets in samples.items():
            distance = [frechet(sets[r][:n], reference[r]) for r in range(repeats)]
            excess = [d - f for d, f in zip(distance, floor, strict=True)]
            rows.append(Comparison(n, kind, distance, excess))
    return rows


def real_features(
    subject: Subject, cache: FeatureCache, extractor: Extractor, sizes: Sequence[int], repeats: int
) -> tuple[Rows, Rows]:
    """The features of test and training images that `compare` needs."""
    found = []
    for name, images in (("test images", subject.test.images), (TRAINING, subject.train.images)):
        last = max(window(n, r, len(images)).stop for n in sizes for r in range(repeats))
        found.append(cache.rows(extractor, images[:last].numpy(), f"features, {name}"))
    return found[0], found[1]


def accuracy_table(shares: dict[str, float], count: int, real: float, real_count: int) -> str:
    """Shares with their binomial standard errors, in per cent."""
    rows = [
        [kind, str(count), per_cent(share, count), f"{100 * (share - real):+.1f}"]
        for kind, share in shares.items()
    ]
    header = ["images", "n", "asked class recognised, %", "less that of real ones"]
    last = ["real test images", str(real_count), per_cent(real, real_count), ""]
    return table(header, [*rows, last])


def frechet_table(rows: Sequence[Comparison]) -> str:
    """Distances and their excess over the floor, with the change from K = 0."""
    base = {row.n: row.excess for row in rows if row.images == steps_name(0)}
    body = []
    for row in rows:
        change = ""
        if row.n in base and row.images not in (TRAINING, steps_name(0)):
            pairs = zip(row.excess, base[row.n], strict=True)
            change = plus_minus([100 * (mine / zero - 1) for mine, zero in pairs])
        over = "0" if row.images == TRAINING else plus_minus(row.excess)
        body.append([row.images, row.n, plus_minus(row.distance), over, change])
    header = ["images", "n", "Fréchet distance", "over the floor", "change from K = 0, %"]
    return table(header, body)


@click.command("quality.py", cls=command.OneLineErrors, context_settings={"show_default": True})
@MODEL
@DATA
@EXTRACTOR
@click.option("--n", "sizes", type=click.IntRange(2), multiple=True, default=(500, 5000))
@click.option(
    "--langevin-steps",
    "steps_texts",
    metavar="K|K,…,K|model",
    multiple=True,
    default=("0", "5", "15", "model"),
    help="K of all transitions or of each; model: its default.",
)
@click.option("--seeds", type=click.IntRange(1), default=3, help="Repeats.")
@click.option("--accuracy-samples", type=click.IntRange(1), default=2000)
@draws(
    "Folder for samples, features and the classifier; an interrupted run resumes from there.",
    "Device for sampling and features.",
)
@writes("quality.json")
def main(out: Path, **options: Any) -> None:
    """Accuracy of the asked class and Fréchet distance, for several numbers of Langevin steps."""
    check_target("--out", out)
    text, results = evaluate(**options)
    click.echo(text)
    write_json(out, results)


def evaluate(
    model: str | None,
    data: str,
    extractor_weights: Path | None,
    sizes: Sequence[int],
    steps_texts: Sequence[str],
    seeds: int,
    accuracy_samples: int,
    batch_size: int,
    device: str,
    cache: Path,
) -> tuple[str, dict[str, Any]]:
    """The text that the command prints, and the results that it writes."""
    subject = Subject.load(model, data, device)
    asked = list(dict.fromkeys(map(subject.steps, steps_texts)))
    for n in sizes:
        window(n, 0, min(len(subject.train), len(subject.test)))
    extractor = load_extractor("efficientnet-lite0", extractor_weights, subject.pipe.device)
    judge, real, warning = subject.judge(cache, Recipe())
    if warning:
        click.secho(warning, fg="red", bold=True, err=True)
    features = FeatureCache(cache)
    reference = real_features(subject, features, extractor, sizes, seeds)
    pools = SamplePools(subject.pipe, subject.digest, cache, batch_size, progress=True)
    shares, samples = _measured(
        pools, judge, features, extractor, asked, max(sizes), seeds, accuracy_samples
    )
    rows = compare(*reference, samples, sizes)
    accuracy = accuracy_table(shares, accuracy_samples, real, len(subject.test))
    text = _text(subject, extractor, seeds, accuracy, warning, frechet_table(rows))
    return text, {
        **subject.facts(default=steps_name(subject.steps("model"))),
        "accuracy": {
            "samples": accuracy_samples,
            "recognised": shares,
            "real_test_images": real,
            "warning": warning,
        },
        "frechet": {
            "features": extractor.convention,
            "weights": extractor.digest,
            "rows": [
                {
                    **row._asdict(),
                    "mean": spread(row.distance)[0],
                    "mean_excess": spread(row.excess)[0],
                }
                for row in rows
            ],
        },
    }


def _measured(
    pools: SamplePools,
    judge: Classifier,
    cache: FeatureCache,
    extractor: Extractor,
    asked: Sequence[Steps],
    largest: int,
    seeds: int,
    judged: int,
) -> tuple[dict[str, float], dict[str, list[Rows]]]:
    """For each K: the share of the first samples that the judge recognises, and features per repeat."""
    shares: dict[str, float] = {}
    samples: dict[str, list[Rows]] = {}
    for steps in asked:
        name = steps_name(steps)
        drawn = pools.images(steps, 0, max(largest, judged))
        shares[name] = judge.share_recognised(drawn[:judged], pools.labels(judged).numpy())
        sets = [drawn, *(pools.images(steps, r, largest) for r in range(1, seeds))]
        samples[name] = [
            cache.rows(extractor, images[:largest], f"features, {name}, repeat {r}")
            for r, images in enumerate(sets)
        ]
    return shares, samples


def _text(
    subject: Subject,
    extractor: Extractor,
    seeds: int,
    accuracy: str,
    warning: str | None,
    distances: str,
) -> str:
    return "\n".join(
        [
            f"{subject.title}, by default {steps_name(subject.steps('model'))}; {MADE_WITH}.",
            "",
            f"Samples of all labels ({listing(a.name for a in subject.test.attributes)}) in turn, "
            "recognised where every label is the one that was asked, judged by a classifier "
            f"trained on the {len(subject.train)} training images; ± binomial standard error.",
            "",
            accuracy,
            *(["", warning] if warning else []),
            "",
            f"Fréchet distance to n test images; ± standard deviation over {seeds} repeats (other "
            "seeds; other test and training images as far as there are). Floor: n training images.",
            f"Features: {extractor.convention}.",
            "",
            distances,
        ]
    )


if __name__ == "__main__":
    main()
