"""How guidance trades diversity for accuracy of the requested class, at several scales.

``python benchmarks/guidance.py --data fashion_mnist.npz``; see benchmarks/README.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click
from classifier import Recipe
from options import DATA, EXTRACTOR, MODEL, draws, writes
from quality import Comparison, compare, real_features
from report import check_target, per_cent, plus_minus, save_picture, table, write_json
from subject import MADE_WITH, SamplePools, Subject, steps_name

from cdrl_infer.cli import command
from cdrl_infer.errors import InputError
from cdrl_infer.files import replaced_file
from cdrl_infer.optional import needed
from cdrl_train.evaluation.cache import FeatureCache
from cdrl_train.evaluation.extractors import Extractor, load_extractor
from cdrl_train.evaluation.fidelity import NEIGHBOURS, precision_recall
from cdrl_train.evaluation.sampling import window

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PICTURE_COLUMNS = 10


class Row(NamedTuple):
    """The results of one scale, or of real images (scale None), with values per repeat."""

    scale: float | None
    recognised: float  # share of all images of all repeats
    judged: int  # number of these
    frechet: Comparison
    precision: list[float]
    recall: list[float]

    @property
    def name(self) -> str:
        """The name in the table."""
        return "real images" if self.scale is None else f"{self.scale:g}"

    def per_cent(self) -> tuple[float, float, float]:
        """Share recognised, and means of precision and recall over the repeats."""
        precision, recall = (math.fsum(v) / len(v) for v in (self.precision, self.recall))
        return 100 * self.recognised, 100 * precision, 100 * recall


def sweep_table(rows: Sequence[Row]) -> str:
    """Shares in per cent."""
    body = [
        [
            row.name,
            per_cent(row.recognised, row.judged),
            plus_minus([100 * share for share in row.precision]),
            plus_minus([100 * share for share in row.recall]),
            plus_minus(row.frechet.distance),
            "0" if row.scale is None else plus_minus(row.frechet.excess),
        ]
        for row in rows
    ]
    header = ["guidance scale", "asked class recognised, %", "precision, %", "recall, %"]
    return table([*header, "Fréchet distance", "over the floor"], body)


def load_figure() -> type[Figure]:
    """Matplotlib's Figure.

    Raises:
        InputError: it is not installed.
    """
    with needed("matplotlib", "--figure needs", "benchmark"):
        from matplotlib.figure import Figure
    return Figure


def sweep_figure(rows: Sequence[Row]) -> Figure:
    """Plot accuracy against recall, and all results against the scale."""
    guided = [row for row in rows if row.scale is not None]
    (real,) = (row for row in rows if row.scale is None)
    scales = [row.scale for row in guided]
    names = ("asked class recognised", "precision", "recall")
    curves = list(zip(*(row.per_cent() for row in guided), strict=True))
    figure = load_figure()(figsize=(9, 3.8), dpi=150, layout="constrained")
    left, right = figure.subplots(1, 2)
    accuracy, _, recall = curves
    left.plot(recall, accuracy, "o-")
    left.margins(0.1)
    for x, y, scale in zip(recall, accuracy, scales, strict=True):
        left.annotate(f"{scale:g}", (x, y), xytext=(5, 5), textcoords="offset points")
    left.set(xlabel="recall, %", ylabel="asked class recognised, %")
    left.set_title("guidance scale beside each point", fontsize="medium")
    for k, (name, values, ceiling) in enumerate(zip(names, curves, real.per_cent(), strict=True)):
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
    "Folder for samples, features and the classifier; an interrupted run resumes from there.",
    "Device for sampling and features.",
)
@click.option(
    "--picture",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write a PNG with a row of samples per scale, from the same seeds.",
)
@click.option(
    "--figure", type=click.Path(dir_okay=False, path_type=Path), help="Write a PNG of the curves."
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
    """The text that the command prints, and the results that it writes."""
    if figure is not None:
        load_figure()
    if not all(map(math.isfinite, scales)):
        raise InputError(f"--guidance-scale must be finite numbers, got {list(scales)}")
    subject = Subject.load(model, data, device)
    train, test, steps = subject.train, subject.test, subject.steps(langevin_steps)
    window(n, 0, min(len(train), len(test)))
    extractor = load_extractor("efficientnet-lite0", extractor_weights, subject.pipe.device)
    judge, real, warning = subject.judge(cache, recipe)
    pools = SamplePools(subject.pipe, subject.digest, cache, batch_size, progress=True)
    features = FeatureCache(cache)
    test_rows, train_rows = real_features(subject, features, extractor, [n], seeds)

    asked, labels = sorted(set(scales)), pools.labels(n).numpy()
    drawn = {scale: [pools.images(steps, r, n, scale) for r in range(seeds)] for scale in asked}
    sets = {
        f"scale {scale:g}": [
            features.rows(extractor, images, f"features, scale {scale:g}, repeat {r}")
            for r, images in enumerate(repeats)
        ]
        for scale, repeats in drawn.items()
    }
    floor, *distances = compare(test_rows, train_rows, sets, [n])
    reference = [test_rows[window(n, r, len(test))] for r in range(seeds)]
    training = [train_rows[window(n, r, len(train))] for r in range(seeds)]

    def shares(generated: list[Any]) -> tuple[list[float], list[float]]:
        pairs = list(map(precision_recall, generated, reference))
        return [precision for precision, _ in pairs], [recall for _, recall in pairs]

    rows = []
    for scale, distance, generated in zip(asked, distances, sets.values(), strict=True):
        right = math.fsum(judge.share_recognised(images, labels) for images in drawn[scale])
        rows.append(Row(scale, right / seeds, n * seeds, distance, *shares(generated)))
    rows.append(Row(None, real, len(test), floor, *shares(training)))
    if picture is not None:
        save_picture(picture, [drawn[scale][0][:PICTURE_COLUMNS] for scale in asked])
    if figure is not None:
        with replaced_file(figure) as temporary:
            sweep_figure(rows).savefig(temporary, format="png")
    head = f"{subject.title}, {steps_name(steps)}; {MADE_WITH}."
    text = _text(head, subject, extractor, n, seeds, warning, sweep_table(rows))
    return text, {
        **subject.facts(steps=steps_name(steps)),
        "features": {"convention": extractor.convention, "weights": extractor.digest},
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
                "precision": row.precision,
                "recall": row.recall,
            }
            for row in rows
        ],
    }


def _text(
    head: str,
    subject: Subject,
    extractor: Extractor,
    n: int,
    seeds: int,
    warning: str | None,
    rows: str,
) -> str:
    return "\n".join(
        [
            head,
            "",
            f"Samples of all labels in turn, n = {n} in each of {seeds} repeats (other seeds, other test "
            "images as far as there are), the same seeds at every scale; scale 1 is plain conditional "
            "sampling. Recognised: every label is the one that was asked, judged by a classifier "
            f"trained on the {len(subject.train)} training images, ± binomial standard error over all "
            f"repeats; in the last row, of all {len(subject.test)} test images. The rest: n samples "
            "(last row: training images) to n test images, ± standard deviation over repeats.",
            "",
            f"Precision and recall: Kynkäänniemi et al. 2019, k = {NEIGHBOURS}, on the features of the "
            "Fréchet distance (not the VGG-16 of the paper).",
            f"Features: {extractor.convention}.",
            *(["", warning] if warning else []),
            "",
            rows,
        ]
    )


if __name__ == "__main__":
    main()
