"""Compare training recipes at equal compute: the same network and the same number of operations.

``python benchmarks/recipes.py --data fashion_mnist.npz``; see benchmarks/README.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
import torch
from classifier import Recipe, judge_warning, load_or_train
from numpy.typing import NDArray
from options import DATA, EXTRACTOR, draws, writes
from report import check_target, plus_minus, table, write_json
from subject import MADE_WITH, VERSIONS, SamplePools

from cdrl_infer.cli import command
from cdrl_infer.errors import InputError
from cdrl_infer.files import replaced_file
from cdrl_infer.model import ImageShape
from cdrl_infer.pipeline import CDRLPipeline
from cdrl_infer.storage.folder import save_model
from cdrl_train.config import TrainConfig
from cdrl_train.cost import count
from cdrl_train.data.image_set import ImageSet
from cdrl_train.data.sources import load_images
from cdrl_train.data.stream import BatchStream
from cdrl_train.engine.loop import Callbacks, Loop
from cdrl_train.engine.saving import resume
from cdrl_train.engine.trainer import Trainer
from cdrl_train.evaluation.cache import FeatureCache
from cdrl_train.evaluation.classifier import Classifier
from cdrl_train.evaluation.extractors import Extractor, load_extractor
from cdrl_train.evaluation.fidelity import frechet
from cdrl_train.evaluation.sampling import model_digest, window
from cdrl_train.export import to_model
from cdrl_train.presets import preset

TERA = 1e12
RECIPES = (
    "fashion-mnist",
    "fashion-mnist+no-warm-start",
    "fashion-mnist+no-warm-start+no-score-matching",
    "fashion-mnist+drl",
)
HEADER = (
    "recipe",
    "TFLOP",
    "images",
    "recognised, %",
    "Fréchet distance",
)


class Plan(NamedTuple):
    """A recipe with the numbers of steps that give the wanted cost."""

    config: TrainConfig
    step_flops: tuple[int, ...]  # operations of a step, by phase

    def flops(self, step: int) -> int:
        """The operations of the first ``step`` steps."""
        total = 0
        for phase, flops in zip(self.config.phases, self.step_flops, strict=True):
            done = min(step, phase.steps)
            total, step = total + done * flops, step - done
        return total


class Point(NamedTuple):
    """A checkpoint of a run, and the quality of its samples."""

    step: int
    flops: int
    images: int
    hours: float  # in steps, on as many cores as there were
    recognised: float  # share of the samples, 0 … 1
    distance: list[float]  # a value per repeat


def plan(text: str, data: ImageSet, flops: float, common: Sequence[str]) -> Plan:
    """The plan of ``"PRESET[+VARIATION][,KEY=VALUE…]"``, with phases scaled to the cost ``flops``.

    Args:
        text: the recipe.
        data: images to train on.
        flops: operations of the whole run; the proportions of the phases stay those of the preset.
        common: ``KEY=VALUE`` for all recipes; the recipe's own assignments come later.

    Raises:
        InputError: ``flops`` is less than the cost of one step of each phase.
    """
    name, *own = text.split(",")
    config = preset(name).override([*common, *own])
    cost = count(config, ImageShape(*data.images.shape[1:]), data.num_classes)
    share = flops / cost.flops(config)
    phases = []
    for phase in config.phases:
        steps = round(share * phase.steps)
        if phase.steps and not steps:
            raise InputError(f"{text}: {flops / TERA:g} TFLOP are less than a step of each phase")
        warmup = min(phase.lr_warmup_steps, steps // 10)
        phases.append(replace(phase, steps=steps, lr_warmup_steps=warmup))
    each = tuple(0 if work is None else work.flops for work in cost.phases)
    return Plan(replace(config, phases=tuple(phases)), each)


def train(planned: Plan, data: ImageSet, folder: Path, points: int, device: str) -> list[Path]:
    """Train, or continue the run in the folder; returns the models of the checkpoints in order."""
    config = planned.config
    total = config.total_steps
    every = -(-total // points)
    config = replace(config, sample_every=every, checkpoint_every=total, keep_checkpoints=1)
    stored = folder / "config.json"
    if stored.is_file():
        if TrainConfig.read(stored) != config:
            raise InputError(f"{folder} holds a run with other options: choose another --runs")
    else:
        folder.mkdir(parents=True, exist_ok=True)
        config.write(stored)
    trainer = Trainer(config, BatchStream(data, config.data, config.seed, device), folder)
    resume(trainer)

    def keep(run: Trainer) -> None:
        save_model(to_model(run), folder / f"model-{run.step:08d}")

    def tell(line: dict[str, Any]) -> None:
        click.echo(
            f"{folder.name}: step {line['step']} of {total}, {line['hours']:.2f} h", err=True
        )

    Loop(trainer, Callbacks(on_sample=keep, on_log=tell)).run()
    return sorted(folder.glob("model-????????"))


class Judge(NamedTuple):
    """Measures the quality of samples."""

    classifier: Classifier
    extractor: Extractor
    features: FeatureCache
    test: ImageSet
    num_samples: int
    repeats: int
    cache: Path
    batch_size: int

    def __call__(self, planned: Plan, folder: Path, device: str) -> Point:
        """Draw class-conditional samples with the model's default options, and measure them."""
        pipe = CDRLPipeline.from_pretrained(folder).to(device)
        pools = SamplePools(pipe, model_digest(folder), self.cache, self.batch_size)
        steps = pipe.model.sampler.langevin_steps
        sets = [pools.images(steps, r, self.num_samples) for r in range(self.repeats)]
        labels = pools.labels(self.num_samples).numpy()
        shares = [self.classifier.share_recognised(drawn, labels) for drawn in sets]
        distances = []
        for r, drawn in enumerate(sets):
            reference = self.test.images[window(self.num_samples, r, len(self.test))].numpy()
            rows = [self.features.rows(self.extractor, images) for images in (drawn, reference)]
            distances.append(frechet(*rows))
        record = pipe.model.training
        step = int(record["steps"])
        return Point(
            step,
            planned.flops(step),
            int(record["images"]),
            float(record["hours"]),
            float(np.mean(shares)),
            distances,
        )


def results_table(points: dict[str, list[Point]], *, last: bool) -> str:
    """One row per point, or only the last point of each recipe."""
    rows = [
        [
            name,
            f"{point.flops / TERA:.1f}",
            f"{point.images:,}",
            f"{100 * point.recognised:.1f}",
            plus_minus(point.distance),
        ]
        for name, row in points.items()
        for point in (row[-1:] if last else row)
    ]
    return table(HEADER, rows)


def draw_curves(points: dict[str, list[Point]], floor: float, real: float, file: Path) -> None:
    """Plot the Fréchet distance and the recognised share against the number of operations."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for name, row in points.items():
        x = [point.flops / TERA for point in row]
        left.plot(
            x, [np.mean(point.distance) for point in row], marker="o", label=name.partition(",")[0]
        )
        right.plot(x, [100 * point.recognised for point in row], marker="o", label=name)
    left.axhline(floor, color="grey", linestyle=":", label="training images")
    right.axhline(100 * real, color="grey", linestyle=":", label="real test images")
    left.set(xlabel="TFLOP", ylabel="Fréchet distance", yscale="log")
    right.set(xlabel="TFLOP", ylabel="recognised, %", ylim=(0, 100))
    left.legend(fontsize=8)
    with replaced_file(file) as new:
        figure.savefig(new, format="png", dpi=110)
    pyplot.close(figure)


@click.command("recipes.py", cls=command.OneLineErrors, context_settings={"show_default": True})
@DATA
@EXTRACTOR
@click.option(
    "--recipe",
    "recipes",
    multiple=True,
    default=RECIPES,
    metavar="PRESET[+VARIATION][,KEY=VALUE…]",
    help="Repeatable.",
)
@click.option("--set", "common", multiple=True, metavar="KEY=VALUE", help="An option of them all.")
@click.option("--tflop", type=click.FloatRange(0, min_open=True), default=500.0, help="Of a run.")
@click.option("--points", type=click.IntRange(1), default=4, help="Measured on the way.")
@click.option(
    "--n", "num_samples", type=click.IntRange(2), default=500, help="Samples of a repeat."
)
@click.option("--seeds", type=click.IntRange(1), default=3, help="Repeats.")
@click.option(
    "--runs",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("runs/recipes"),
    help="A folder for each recipe; an interrupted run continues from there.",
)
@click.option(
    "--figure",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Draw the curves.",
)
@draws("Samples, features and the classifier.", "Of training and sampling.")
@writes("recipes.json")
def main(out: Path, figure: Path | None, **options: Any) -> None:
    """Train each recipe for as many operations and compare what comes out."""
    check_target("--out", out)
    check_target("--figure", figure)
    points, text, results = evaluate(**options)
    click.echo(text)
    write_json(out, results)
    if figure is not None:
        draw_curves(points, results["floor"], results["real_test_images"], figure)


def evaluate(
    data: str,
    extractor_weights: Path | None,
    recipes: Sequence[str],
    common: Sequence[str],
    tflop: float,
    points: int,
    num_samples: int,
    seeds: int,
    runs: Path,
    batch_size: int,
    device: str,
    cache: Path,
) -> tuple[dict[str, list[Point]], str, dict[str, Any]]:
    """The plot, the text and the results of the command."""
    training, test = load_images(data, "train"), load_images(data, "test")
    window(num_samples, 0, min(len(training), len(test)))
    plans = {recipe: plan(recipe, training, tflop * TERA, common) for recipe in recipes}
    extractor = load_extractor("efficientnet-lite0", extractor_weights, torch.device(device))
    classifier, real = load_or_train(cache, training, test, Recipe(), progress=True)
    features = FeatureCache(cache)
    judge = Judge(classifier, extractor, features, test, num_samples, seeds, cache, batch_size)
    measured = {
        recipe: [
            judge(planned, folder, device)
            for folder in train(planned, training, runs / recipe, points, device)
        ]
        for recipe, planned in plans.items()
    }

    def some(images: ImageSet, repeat: int) -> NDArray[np.float32]:
        chosen = images.images[window(num_samples, repeat, len(images))].numpy()
        return features.rows(extractor, chosen)

    floors = [frechet(some(training, r), some(test, r)) for r in range(seeds)]
    warning = judge_warning(real)
    text = "\n".join(
        [
            f"{MADE_WITH}, {torch.get_num_threads()} threads; "
            f"{tflop:g} TFLOP a run by the package's counter; for all: {' '.join(common) or '-'}.",
            f"Recognised: of {seeds} x {num_samples} samples of all classes in turn, as the model "
            f"draws them by default; of real test images {100 * real:.1f} %.",
            f"Fréchet distance of {num_samples} samples to as many test images, ± standard deviation "
            f"over {seeds} repeats of one training; training images: {plus_minus(floors)}.",
            f"Features: {extractor.convention}.",
            *([warning] if warning else []),
            "",
            results_table(measured, last=True),
            "",
            "On the way:",
            "",
            results_table(measured, last=False),
        ]
    )
    return (
        measured,
        text,
        {
            "versions": VERSIONS,
            "threads": torch.get_num_threads(),
            "tflop": tflop,
            "common": list(common),
            "n": num_samples,
            "features": extractor.convention,
            "weights": extractor.digest,
            "data": {"train": training.fingerprint(), "test": test.fingerprint()},
            "floor": float(np.mean(floors)),
            "real_test_images": real,
            "recipes": {
                recipe: {
                    "config": plans[recipe].config.to_dict(),
                    "points": [point._asdict() for point in row],
                }
                for recipe, row in measured.items()
            },
        },
    )


if __name__ == "__main__":
    main()
