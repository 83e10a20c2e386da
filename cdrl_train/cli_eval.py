"""``cdrl-eval``: arguments only."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from cdrl_infer.cli.command import open_target, parse_steps, uses_a_model
from cdrl_infer.errors import CDRLError, CheckpointError, InputError
from cdrl_infer.files import replaced_file
from cdrl_infer.scoring.registry import SCORES
from cdrl_infer.version import __version__
from cdrl_train.engine.ending import OneOfSeveral

CALIBRATING = {"model", "variant", "source", "split", "count", "seed", "batch_size", "device"}


@click.command(
    "cdrl-eval", cls=OneOfSeveral, context_settings={"help_option_names": ["-h", "--help"]}
)
@uses_a_model
@click.option(
    "--data",
    "source",
    required=True,
    metavar="FILE.npz|FOLDER|torchvision:FashionMNIST[:ROOT]",
    help="Real images to compare with, as for cdrl-train.",
)
@click.option(
    "--split",
    type=click.Choice(["train", "test"]),
    help="Of the data; a folder has none. [test; with --calibrate train]",
)
@click.option(
    "-n",
    "--n",
    "count",
    type=int,
    metavar="N",
    help="Samples, and as many real images. [5000, or all if fewer]",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of images and noise.")
@click.option(
    "--metrics",
    metavar="NAME,…",
    help="Of fid, kid, is, prc, ood, accuracy. [all that can be taken]",
)
@click.option(
    "--repeats",
    type=int,
    default=1,
    show_default=True,
    metavar="R",
    help="Other seeds and other real images each time, for error bars.",
)
@click.option("--langevin-steps", metavar="K|K,K,…", help="Of all levels or of each. [the model's]")
@click.option("--guidance-scale", type=float, default=1.0, show_default=True, metavar="G")
@click.option(
    "--extractor",
    default="inception-v3-compat",
    show_default=True,
    metavar="NAME",
    help="Of features: that, or efficientnet-lite0.",
)
@click.option(
    "--extractor-weights",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Of the extractor. [Inception's are downloaded, EfficientNet's installed]",
)
@click.option("--floor/--no-floor", default=True, help="Compare the other split too. [yes]")
@click.option(
    "--outside",
    multiple=True,
    metavar="NAME=DATA",
    help="Images to tell from the data, for ood; may be repeated.",
)
@click.option(
    "--score",
    type=click.Choice(list(SCORES)),
    default="combined",
    show_default=True,
    help="For ood, as for cdrl-score.",
)
@click.option(
    "--classifier",
    type=click.Path(path_type=Path),
    metavar="FILE.pt2",
    help="For accuracy, of torch.export. Its code is run: only from whom you trust.",
)
@click.option(
    "--cache",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Features of real images. [~/.cache/cdrl]",
)
@click.option("--out", metavar="FILE.json", help="All figures and what they depend on.")
@click.option(
    "--update-card", is_flag=True, help="Put the figures into FOLDER/README.md, its model-index."
)
@click.option(
    "--calibrate",
    "to_calibrate",
    is_flag=True,
    help="Measure nothing; store what the images score in FOLDER, for cdrl-score.",
)
@click.version_option(__version__, prog_name="cdrl-eval")
def main(
    model: str | None,
    revision: str | None,
    variant: str | None,
    device: str | None,
    batch_size: int,
    source: str,
    split: str | None,
    count: int | None,
    seed: int,
    to_calibrate: bool,
    update_card: bool,
    out: str | None,
    **options: Any,
) -> None:
    """Measure a model: cdrl-eval --model my-model --data good.npz --out figures.json

    Samples, with the labels in turn, are compared with as many real images: fid, kid, is and prc
    (precision and recall) on features, accuracy by a classifier of yours; ood says how well a score
    tells real images from others. With each figure it is said what it depends on.

    --calibrate scores N images of the data, chosen by --seed, and writes the statistics beside the
    weights: FOLDER/statistics.safetensors. With them a score says how many in-distribution images
    score higher. Best are images that the model was not trained on.

    `accelerate launch -m cdrl_train.cli_eval …` shares the work out over processes.

    Exit codes: 0 done, 2 bad input, 3 numbers that are not finite, 4 the network could not be
    reached, 5 the disk is full, 130 interrupted.
    """
    if to_calibrate:
        context = click.get_current_context()
        for name in context.params.keys() - CALIBRATING - {"to_calibrate"}:
            if context.get_parameter_source(name) is not ParameterSource.DEFAULT:
                option = "--" + name.replace("_", "-")
                raise InputError(
                    f"--calibrate measures nothing, {option} is not for it: leave it out"
                )
        if model is None:
            raise InputError("--calibrate writes into the model's folder: name it, --model FOLDER")
        _calibrate(Path(model), source, split or "train", count, seed, variant, batch_size, device)
        return
    from cdrl_train.evaluation.cache import default_cache
    from cdrl_train.evaluation.evaluate import Evaluation, Request, card_file, updated_card
    from cdrl_train.evaluation.together import Processes

    metrics, steps = options["metrics"], options["langevin_steps"]
    request = Request(
        source=source,
        cache=options["cache"] or default_cache(),
        split=split or "test",
        model=model,
        revision=revision,
        variant=variant,
        metrics=None if metrics is None else tuple(metrics.split(",")),
        count=count,
        repeats=options["repeats"],
        seed=seed,
        langevin_steps=None if steps is None else parse_steps(steps),
        guidance_scale=options["guidance_scale"],
        extractor=options["extractor"],
        weights=options["extractor_weights"],
        classifier=options["classifier"],
        outside=options["outside"],
        score=options["score"],
        floor=options["floor"],
        batch_size=batch_size,
    )
    processes = Processes.join(device)
    try:
        with ExitStack() as stack:
            stack.callback(processes.leave)

            def prepare() -> tuple[Evaluation, Path | None, Path | None]:
                table = card = None
                if processes.main and out is not None:
                    table = open_target(stack, out, ".json")
                if processes.main and update_card:
                    card = _opened(stack, card_file(model))
                evaluation = Evaluation.prepare(request, processes.device)
                if card is not None:
                    updated_card(evaluation.pipe, card_file(model))  # refuses what it cannot do
                return evaluation, table, card

            evaluation, table, card = processes.alike(prepare)
            report = evaluation.run(processes)
            if table is not None:
                text = json.dumps(report.to_dict(), indent=2, ensure_ascii=False, allow_nan=False)
                table.write_text(text + "\n", encoding="utf-8")
            if card is not None:
                card.write_bytes(updated_card(evaluation.pipe, card_file(model), report))
    except (CDRLError, OSError):
        if processes.main:
            raise
        raise click.exceptions.Exit(2) from None  # the main process tells
    if processes.main:
        click.echo(report.text())
        for path in filter(None, [out, str(card_file(model)) if update_card else None]):
            click.echo(f"written: {path}", err=True)


def _opened(stack: ExitStack, target: Path) -> Path:
    try:
        return stack.enter_context(replaced_file(target))
    except OSError as error:
        raise CheckpointError(f"cannot write {target}: {error.strerror}") from error


def _calibrate(
    folder: Path,
    source: str,
    split: str,
    count: int | None,
    seed: int,
    variant: str | None,
    batch_size: int,
    device: str | None,
) -> None:
    """Write the reference statistics of a model's scores."""
    import torch

    from cdrl_infer.arguments import check_seed, positive
    from cdrl_infer.pipeline import CDRLPipeline
    from cdrl_infer.scoring.reference import STATISTICS
    from cdrl_infer.storage.folder import load_model
    from cdrl_train.calibrate import calibrate, choose
    from cdrl_train.data.sources import data_name, load_images

    seed, batch_size = check_seed(seed), positive("--batch-size", batch_size)
    wanted = None if count is None else positive("-n", count)
    model = load_model(folder, variant=variant)
    place = device or ("cuda" if torch.cuda.is_available() else "cpu")
    pipe = CDRLPipeline(model, name=folder.resolve().name).to(place)
    images = choose(load_images(source, split).images, wanted, seed)
    named = data_name(source) if Path(source).is_dir() else f"{data_name(source)}, {split}"
    target = folder / STATISTICS
    try:
        with replaced_file(target) as new:
            statistics = calibrate(
                pipe,
                images,
                data=named,
                seed=seed,
                batch_size=batch_size,
            )
            new.write_bytes(statistics.to_bytes())
    except OSError as error:
        raise CheckpointError(f"cannot write {target}: {error.strerror}") from error
    click.echo(f"{target}: {statistics.count:,} images of {statistics.data}, seed {seed}")


if __name__ == "__main__":
    main()
