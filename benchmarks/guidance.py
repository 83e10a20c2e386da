"""What guidance trades: accuracy of the asked class against diversity, for several scales.

``python benchmarks/guidance.py --data fashion_mnist.npz``; see benchmarks/README.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click
import numpy as np
import torch
from classifier import Recipe, load_or_train, share_recognised
from composition import per_cent
from kept import kept
from neighbours import NEIGHBOURS, PrecisionRecall, precision_recall
from numpy.typing import NDArray
from options import DATA, EXTRACTOR, MODEL, draws, writes
from quality import (
    SEED_STRIDE,
    TRAINING,
    Comparison,
    Features,
    SamplePools,
    Steps,
    check_same_kind,
    compare,
    judge_warning,
    model_digest,
    parse_steps,
    steps_name,
    window,
)
from report import check_target, plus_minus, table, write_json

from cdrl_infer.cli import command
from cdrl_infer.errors import InputError
from cdrl_infer.files import replaced_file
from cdrl_infer.images import make_grid, to_pil, viewing_scale
from cdrl_infer.pipeline import CDRLPipeline
from cdrl_infer.storage.folder import find_model
from cdrl_infer.version import __version__
from cdrl_train.data.sources import load_images
from cdrl_train.evaluation.efficientnet import CONVENTION, load_efficientnet
from cdrl_train.evaluation.sampling import pixels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PICTURE_COLUMNS = 10
Bytes = NDArray[np.uint8]


def guided_images(pools: SamplePools, scale: float, steps: Steps, repeat: int, count: int) -> Bytes:
    """(N, C, H, W): as `quality.SamplePools.images`, whose own they are at scale 1, with guidance."""
    if scale == 1:
        return pools.images(steps, repeat, count)
    labels = pools.labels(count).tolist()

    def draw(start: int, stop: int) -> Bytes:
        output = pools.pipe(
            class_labels=labels[start:stop],
            guidance_scale=scale,
            seeds=range(repeat * SEED_STRIDE + start, repeat * SEED_STRIDE + stop),
            langevin_steps=steps,
            batch_size=pools.batch_size,
            output_type="pt",
            progress=False,
        )
        return pixels(output)

    name = steps_name(steps).replace("K = ", "K").replace(",", "-")
    file = pools.cache / f"guided-{pools.digest}-g{scale:g}-{name}-repeat{repeat}.npy"
    title = f"guidance scale {scale:g}, repeat {repeat}" if pools.progress else None
    row = np.dtype((np.uint8, pools.pipe.model.image.shape))
    return kept(file, count, draw, row, 4 * pools.batch_size, title)


class Row(NamedTuple):
    """One scale, or real images (scale None); a value per repeat but for the share recognised."""

    scale: float | None
    recognised: float  # share of all images of all repeats
    judged: int  # how many those are
    frechet: Comparison
    shares: list[PrecisionRecall]

    @property
    def name(self) -> str:
        """What the table calls it."""
        return "real images" if self.scale is None else f"{self.scale:g}"

    def mean(self, share: str) -> float:
        """Of precision or recall over the repeats."""
        return math.fsum(getattr(s, share) for s in self.shares) / len(self.shares)


def sweep_table(rows: Sequence[Row]) -> str:
    """Shares in per cent."""
    body = []
    for row in rows:
        body.append(
            [
                row.name,
                per_cent(row.recognised, row.judged),
                plus_minus([100 * s.precision for s in row.shares]),
                plus_minus([100 * s.recall for s in row.shares]),
                plus_minus(row.frechet.distance),
                "0" if row.scale is None else plus_minus(row.frechet.excess),
            ]
        )
    header = ["guidance scale", "asked class recognised, %", "precision, %", "recall, %"]
    return table([*header, "Fréchet distance", "over the floor"], body)


def load_figure() -> type[Figure]:
    """Matplotlib's Figure.

    Raises:
        InputError: it is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError(
            f"{error}: --figure needs more packages: pip install 'cdrl[benchmark]'"
        ) from None
    return Figure


def sweep_figure(rows: Sequence[Row]) -> Figure:
    """Accuracy against recall, and everything against the scale."""
    guided = [row for row in rows if row.scale is not None]
    (real,) = (row for row in rows if row.scale is None)
    scales = [row.scale for row in guided]
    curves = {
        "asked class recognised": [100 * row.recognised for row in guided],
        "precision": [100 * row.mean("precision") for row in guided],
        "recall": [100 * row.mean("recall") for row in guided],
    }
    ceilings = [100 * real.recognised, 100 * real.mean("precision"), 100 * real.mean("recall")]
    figure = load_figure()(figsize=(9, 3.8), dpi=150, layout="constrained")
    left, right = figure.subplots(1, 2)
    accuracy, recall = curves["asked class recognised"], curves["recall"]
    left.plot(recall, accuracy, "o-")
    left.margins(0.1)
    for x, y, scale in zip(recall, accuracy, scales, strict=True):
        left.annotate(f"{scale:g}", (x, y), xytext=(5, 5), textcoords="offset points")
    left.set(xlabel="recall, %", ylabel="asked class recognised, %")
    left.set_title("guidance scale beside each point", fontsize="medium")
    for k, ((name, values), ceiling) in enumerate(zip(curves.items(), ceilings, strict=True)):
        right.plot(scales, values, "o-", color=f"C{k}", label=name)
        right.axhline(ceiling, linestyle=":", linewidth=1, color=f"C{k}")
    right.set(xlabel="guidance scale", ylabel="%")
    right.set_title("dotted: real images", fontsize="medium")
    right.legend()
    return figure


@click.command("guidance.py", cls=command.OneLineErrors, context_settings={"show_default": True})
@MODEL
@DATA
@EXTRACTOR
@click.option(
    "--guidance-scale",
    "scales",
    type=float,
    multiple=True,
    default=(1.0, 1.5, 2.0, 3.0, 5.0),
)
@click.option(
    "--n", type=click.IntRange(NEIGHBOURS + 1), default=500, help="Samples and test images."
)
@click.option("--langevin-steps", default="model", metavar="K|K,…,K|model")
@click.option("--seeds", type=click.IntRange(1), default=3, help="Repeats.")
@draws(
    "Samples, features and the classifier; an interrupted run goes on from there.",
    "Of sampling and features.",
)
@click.option(
    "--picture",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Also draw a row of samples per scale, of the same seeds, PNG.",
)
@click.option(
    "--figure", type=click.Path(dir_okay=False, path_type=Path), help="Also draw the curves, PNG."
)
@writes("guidance.json")
def main(out: Path, picture: Path | None, figure: Path | None, **options: Any) -> None:
    """Accuracy, Fréchet distance, precision and recall, for several guidance scales."""
    for option, file in (("--out", out), ("--picture", picture), ("--figure", figure)):
        check_target(option, file)
    text, results = evaluate(picture=picture, figure=figure, **options)
    click.echo(text)
    write_json(out, results)


def evaluate(
    model: str | None,
    data: str,
    extractor_weights: Path | None,
    scales: Sequence[float],
    n: int,
    langevin_steps: str,
    seeds: int,
    batch_size: int,
    device: str,
    cache: Path,
    picture: Path | None = None,
    figure: Path | None = None,
    recipe: Recipe = Recipe(),  # noqa: B008 - a frozen dataclass
) -> tuple[str, dict[str, Any]]:
    """What the command prints and writes."""
    if figure is not None:
        load_figure()
    if not all(map(math.isfinite, scales)):
        raise InputError(f"--guidance-scale must be finite numbers, got {list(scales)}")
    folder = find_model(model)
    pipe = CDRLPipeline.from_pretrained(folder).to(device)
    train, test = load_images(data, "train"), load_images(data, "test")
    check_same_kind(pipe, test)
    steps = parse_steps(langevin_steps, pipe.model.sampler.langevin_steps)
    window(n, 0, min(len(train), len(test)))
    cache.mkdir(parents=True, exist_ok=True)
    extractor = load_efficientnet(extractor_weights, pipe.device)
    judge, real = load_or_train(cache, train, test, recipe, progress=True)
    warning = judge_warning(real)

    digest = model_digest(folder)
    pools = SamplePools(pipe, digest, test.num_classes, cache, batch_size, progress=True)
    features = Features(extractor, cache, progress=True)
    last = {
        name: max(window(n, r, len(images)).stop for r in range(seeds))
        for name, images in (("train", train), ("test", test))
    }
    test_features = features(test.images[: last["test"]].numpy(), "test images")
    train_features = features(train.images[: last["train"]].numpy(), TRAINING)
    reference = [test_features[window(n, r, len(test))] for r in range(seeds)]
    recognised: list[float] = []
    sets: dict[str, list[NDArray[np.float32]]] = {}
    lines: list[Bytes] = []
    asked = sorted(set(scales))
    labels = pools.labels(n)
    for scale in asked:
        drawn = [guided_images(pools, scale, steps, r, n) for r in range(seeds)]
        right = [share_recognised(judge, images, labels) for images in drawn]
        recognised.append(math.fsum(right) / seeds)
        name = f"scale {scale:g}"
        sets[name] = [features(images, f"{name}, repeat {r}") for r, images in enumerate(drawn)]
        lines += list(drawn[0][:PICTURE_COLUMNS])
    floor, *distances = compare(test_features, train_features, sets, [n])
    training = [train_features[window(n, r, len(train))] for r in range(seeds)]
    rows = [
        Row(scale, share, n * seeds, distance, list(map(precision_recall, reference, generated)))
        for scale, share, distance, generated in zip(
            asked, recognised, distances, sets.values(), strict=True
        )
    ]
    rows.append(Row(None, real, len(test), floor, list(map(precision_recall, reference, training))))
    if picture is not None:
        pictures = to_pil(torch.from_numpy(np.stack(lines)) / 127.5 - 1)
        grid = make_grid(pictures, len(lines) // len(asked), upscale=viewing_scale(pictures[0]))
        with replaced_file(picture) as temporary:
            grid.save(temporary, format="PNG")
    if figure is not None:
        with replaced_file(figure) as temporary:
            sweep_figure(rows).savefig(temporary, format="png")

    text = "\n".join(
        [
            f"Model {pipe.name} ({digest}), {steps_name(steps)}; cdrl {__version__}, "
            f"torch {torch.__version__}.",
            "",
            f"Samples of all labels in turn, n = {n} in each of {seeds} repeats (other seeds, other test "
            "images as far as there are), the same seeds at every scale; scale 1 is plain conditional "
            "sampling. Recognised: every label is the one that was asked, judged by a classifier "
            f"trained on the {len(train)} training images, ± binomial standard error over all repeats; "
            f"in the last row, of all {len(test)} test images. The rest: n samples (last row: training "
            "images) to n test images, ± standard deviation over repeats.",
            "",
            f"Precision and recall: Kynkäänniemi et al. 2019, k = {NEIGHBOURS}, on the features of the "
            "Fréchet distance (not the VGG-16 of the paper).",
            f"Features: {CONVENTION}.",
            *(["", warning] if warning else []),
            "",
            sweep_table(rows),
        ]
    )
    return text, {
        "model": {"name": pipe.name, "digest": digest, "steps": steps_name(steps)},
        "versions": {"cdrl": __version__, "torch": torch.__version__},
        "data": {"train": train.fingerprint(), "test": test.fingerprint()},
        "features": {"convention": CONVENTION, "weights": extractor.digest},
        "n": n,
        "neighbours": NEIGHBOURS,
        "warning": warning,
        "rows": [
            {
                "scale": row.scale,
                "images": row.name,
                "recognised": row.recognised,
                "recognised_of": row.judged,
                "frechet": row.frechet.distance,
                "frechet_excess": row.frechet.excess,
                "precision": [s.precision for s in row.shares],
                "recall": [s.recall for s in row.shares],
            }
            for row in rows
        ],
    }


if __name__ == "__main__":
    main()
