"""How good the samples of a model are: recognised classes and Fréchet distances, for several K.

``python benchmarks/quality.py --data fashion_mnist.npz``; see benchmarks/README.md.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import click
import numpy as np
import torch
from classifier import Recipe, load_or_train, share_recognised
from frechet import frechet_distance
from numpy.typing import NDArray
from options import DATA, EXTRACTOR, MODEL, draws, writes
from report import check_target, grown, plus_minus, save_array, spread, table, write_json
from torch import Tensor
from tqdm import tqdm

from cdrl_infer.cli import command
from cdrl_infer.errors import InputError, listing
from cdrl_infer.pipeline import CDRLPipeline
from cdrl_infer.storage.folder import find_model
from cdrl_infer.version import __version__
from cdrl_train.data.image_set import ImageSet
from cdrl_train.data.sources import load_images
from cdrl_train.evaluation.efficientnet import CONVENTION, load_efficientnet
from cdrl_train.evaluation.sampling import (
    SEED_STRIDE,
    balanced_labels,
    model_digest,
    pixels,
    window,
)

TRAINING = "training images"
JUDGE_AT_LEAST = 0.91  # of real test images, on Fashion-MNIST
Steps = int | tuple[int, ...]


def steps_name(steps: Steps) -> str:
    """``K = 5``, or ``K = 0,5,5`` for one K per level, the noisiest first."""
    return f"K = {','.join(map(str, steps)) if isinstance(steps, tuple) else steps}"


def parse_steps(text: str, default: Steps) -> Steps:
    """``"5"``, ``"0,5,5"``, or ``"model"``: the model's default."""
    return default if text == "model" else command.parse_steps(text)


@dataclass(frozen=True)
class SamplePools:
    """Samples of a model, (N, C, H, W) uint8, the labels in turn; kept on disk and extended.

    The first n of a pool are a set of n balanced in the first attribute; the others go on with each
    round of it, so that all combinations occur.
    """

    pipe: CDRLPipeline
    digest: str
    num_classes: tuple[int, ...]
    cache: Path
    batch_size: int = 64
    progress: bool = False

    def labels(self, count: int) -> Tensor:
        """(N, A) indices."""
        return balanced_labels(self.num_classes, count)

    def images(self, steps: Steps, repeat: int, count: int) -> NDArray[np.uint8]:
        """The first ``count`` samples of a repeat.

        Raises:
            InputError: the model no longer draws what is on the disk.
        """

        def draw(start: int, stop: int) -> NDArray[np.uint8]:
            if start == stop:
                return np.empty((0, *self.pipe.model.image.shape), np.uint8)
            output = self.pipe(
                class_labels=self.labels(stop)[start:].tolist(),
                seeds=range(repeat * SEED_STRIDE + start, repeat * SEED_STRIDE + stop),
                langevin_steps=steps,
                batch_size=self.batch_size,
                output_type="pt",
                progress=False,
            )
            return pixels(output)

        name = "-".join(map(str, steps)) if isinstance(steps, tuple) else str(steps)
        file = self.cache / f"samples-{self.digest}-K{name}-repeat{repeat}.npy"
        if file.is_file():
            kept = np.load(file, allow_pickle=False)[:2].astype(float)
            if np.abs(draw(0, len(kept)) - kept).mean() > 0.5:
                raise InputError(
                    f"{file}: the cached samples are not those that this version draws; delete it"
                )
        title = f"{steps_name(steps)}, repeat {repeat}"
        with tqdm(total=count, desc=title, unit="image", disable=not self.progress) as bar:
            return grown(
                file, count, draw, 4 * self.batch_size, lambda rows: bar.update(rows - bar.n)
            )


class Extracts(Protocol):
    """Images (N, C, H, W) uint8 -> a row of numbers for each, such as `Extractor`."""

    @property
    def digest(self) -> str:
        """Of all that the numbers depend on but the images; names what is cached."""
        ...

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[Any]:
        """(N, ...)."""
        ...


@dataclass(frozen=True)
class Features:
    """Features of image sets, kept on disk in parts, each under the digest of its images."""

    extractor: Extracts
    cache: Path
    progress: bool = False

    def __call__(self, images: NDArray[np.uint8], name: str, part: int = 500) -> NDArray[Any]:
        """(N, C, H, W) uint8 -> (N, ...)."""
        rows = []
        title = f"features, {name}"
        with tqdm(total=len(images), desc=title, unit="image", disable=not self.progress) as bar:
            for start in range(0, len(images), part):
                some = np.ascontiguousarray(images[start : start + part])
                sha = hashlib.sha256(some).hexdigest()[:12]
                file = self.cache / f"features-{self.extractor.digest}-{sha}.npy"
                if not file.is_file():
                    save_array(file, self.extractor(some))
                rows.append(np.load(file, allow_pickle=False))
                bar.update(len(some))
        return np.concatenate(rows)


class Comparison(NamedTuple):
    """Fréchet distances of one kind of images to n test images, a value per repeat."""

    n: int
    images: str
    distance: list[float]
    excess: list[float]  # distance less that of as many training images to the same test images


def compare(
    test: NDArray[np.float32],
    train: NDArray[np.float32],
    samples: dict[str, list[NDArray[np.float32]]],
    sizes: Sequence[int],
) -> list[Comparison]:
    """Training images and each kind of samples against test images, at each n.

    Args:
        test: features of the test images, from the first on.
        train: of the training images, from the first on.
        samples: for each kind, a set per repeat.
        sizes: n.
    """
    repeats = len(next(iter(samples.values())))
    rows = []
    for n in sizes:
        reference = [test[window(n, r, len(test))] for r in range(repeats)]
        floor = [
            frechet_distance(train[window(n, r, len(train))], reference[r]) for r in range(repeats)
        ]
        rows.append(Comparison(n, TRAINING, floor, [0.0] * repeats))
        for kind, sets in samples.items():
            distance = [frechet_distance(sets[r][:n], reference[r]) for r in range(repeats)]
            excess = [d - f for d, f in zip(distance, floor, strict=True)]
            rows.append(Comparison(n, kind, distance, excess))
    return rows


def judge_warning(real: float) -> str | None:
    """What to say of a judge that knows too few of the real test images, a share of 0 … 1."""
    if real >= JUDGE_AT_LEAST:
        return None
    return (
        f"WARNING: the judge recognises {100 * real:.2f} % of the real test images, fewer than "
        f"{100 * JUDGE_AT_LEAST:.0f} %: shares of recognised samples say little."
    )


def accuracy_table(shares: dict[str, float], count: int, real: float, real_count: int) -> str:
    """Shares with their binomial standard errors, in per cent."""

    def row(kind: str, share: float, n: int, difference: str) -> list[str]:
        error = math.sqrt(share * (1 - share) / n)
        return [kind, str(n), f"{100 * share:.1f} ± {100 * error:.1f}", difference]

    rows = [
        row(kind, share, count, f"{100 * (share - real):+.1f}") for kind, share in shares.items()
    ]
    header = ["images", "n", "asked class recognised, %", "less that of real ones"]
    return table(header, [*rows, row("real test images", real, real_count, "")])


def frechet_table(rows: Sequence[Comparison]) -> str:
    """Distances and what is over the floor, with the change from K = 0."""
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


def check_same_kind(pipe: CDRLPipeline, data: ImageSet) -> None:
    """InputError unless the model has the labels of the data, and its images' shape."""
    attributes = pipe.model.labels
    if not attributes or attributes != data.attributes:
        raise InputError(
            f"expected a model of the labels of the data, {[a.values for a in data.attributes]}, "
            f"got {[a.values for a in attributes]}"
        )
    check_same_shape(pipe, data)


def check_same_shape(pipe: CDRLPipeline, data: ImageSet) -> None:
    """InputError unless the model has images as the data's."""
    if data.images.shape[1:] != pipe.model.image.shape:
        raise InputError(
            f"expected a model of images {tuple(data.images.shape[1:])} as in the data, "
            f"got {pipe.model.image.shape}"
        )


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
    help="K of all levels or of each; model: its default.",
)
@click.option("--seeds", type=click.IntRange(1), default=3, help="Repeats.")
@click.option("--accuracy-samples", type=click.IntRange(1), default=2000)
@draws(
    "Samples, features and the classifier; an interrupted run goes on from there.",
    "Of sampling and features.",
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
    """What the command prints and writes."""
    folder = find_model(model)
    pipe = CDRLPipeline.from_pretrained(folder).to(device)
    train, test = load_images(data, "train"), load_images(data, "test")
    check_same_kind(pipe, test)
    default = pipe.model.sampler.langevin_steps
    asked = list(dict.fromkeys(parse_steps(text, default) for text in steps_texts))
    for n in sizes:
        window(n, 0, min(len(train), len(test)))
    cache.mkdir(parents=True, exist_ok=True)
    extractor = load_efficientnet(extractor_weights, pipe.device)

    judge, real = load_or_train(cache, train, test, Recipe(), progress=True)
    warning = judge_warning(real)
    if warning:
        click.secho(warning, fg="red", bold=True, err=True)
    digest = model_digest(folder)
    pools = SamplePools(pipe, digest, test.num_classes, cache, batch_size, progress=True)
    features = Features(extractor, cache, progress=True)
    last = {
        name: max(window(n, r, len(images)).stop for n in sizes for r in range(seeds))
        for name, images in (("train", train), ("test", test))
    }
    test_features = features(test.images[: last["test"]].numpy(), "test images")
    train_features = features(train.images[: last["train"]].numpy(), TRAINING)
    shares: dict[str, float] = {}
    samples: dict[str, list[NDArray[np.float32]]] = {}
    for steps in asked:
        name, largest = steps_name(steps), max(sizes)
        drawn = pools.images(steps, 0, max(largest, accuracy_samples))
        shares[name] = share_recognised(
            judge, drawn[:accuracy_samples], pools.labels(accuracy_samples)
        )
        sets = [drawn, *(pools.images(steps, r, largest) for r in range(1, seeds))]
        samples[name] = [features(s[:largest], f"{name}, repeat {r}") for r, s in enumerate(sets)]
    rows = compare(test_features, train_features, samples, sizes)

    by_default = steps_name(default)
    text = "\n".join(
        [
            f"Model {pipe.name} ({digest}), by default {by_default}; cdrl {__version__}, "
            f"torch {torch.__version__}.",
            "",
            f"Samples of all labels ({listing(a.name for a in test.attributes)}) in turn, recognised "
            "where every label is the one that was asked, judged by a classifier "
            f"trained on the {len(train)} training images; ± binomial standard error.",
            "",
            accuracy_table(shares, accuracy_samples, real, len(test)),
            *(["", warning] if warning else []),
            "",
            f"Fréchet distance to n test images; ± standard deviation over {seeds} repeats (other "
            "seeds; other test and training images as far as there are). Floor: n training images.",
            f"Features: {CONVENTION}.",
            "",
            frechet_table(rows),
        ]
    )
    return text, {
        "model": {"name": pipe.name, "digest": digest, "default": by_default},
        "versions": {"cdrl": __version__, "torch": torch.__version__},
        "data": {"train": train.fingerprint(), "test": test.fingerprint()},
        "accuracy": {
            "samples": accuracy_samples,
            "recognised": shares,
            "real_test_images": real,
            "warning": warning,
        },
        "frechet": {
            "features": CONVENTION,
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


if __name__ == "__main__":
    main()
