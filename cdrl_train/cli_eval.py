"""``cdrl-eval``: arguments only."""

from __future__ import annotations

from pathlib import Path

import click

from cdrl_infer.cli.command import BATCH_SIZE, VARIANT, OneLineErrors
from cdrl_infer.errors import CheckpointError, InputError
from cdrl_infer.files import replaced_file
from cdrl_infer.version import __version__


@click.command(
    "cdrl-eval", cls=OneLineErrors, context_settings={"help_option_names": ["-h", "--help"]}
)
@click.option("--model", metavar="FOLDER", required=True, help="Of the model.")
@click.option(
    "--data",
    "source",
    required=True,
    metavar="FILE.npz|FOLDER|torchvision:FashionMNIST[:ROOT]",
    help="In-distribution images, as for cdrl-train.",
)
@click.option(
    "--split",
    type=click.Choice(["train", "test"]),
    default="train",
    show_default=True,
    help="Of the data; a folder has none.",
)
@click.option(
    "--calibrate",
    "to_calibrate",
    is_flag=True,
    help="Store what the images score in FOLDER, for cdrl-score and CDRLPipeline.score.",
)
@click.option("-n", "--n", "count", type=int, metavar="N", help="Images. [5000, or all if fewer]")
@click.option("--seed", type=int, default=0, show_default=True, help="Of images and noise.")
@VARIANT
@BATCH_SIZE
@click.option("--device", default="cpu", show_default=True, metavar="NAME")
@click.version_option(__version__, prog_name="cdrl-eval")
def main(
    model: str,
    source: str,
    split: str,
    to_calibrate: bool,
    count: int | None,
    seed: int,
    variant: str | None,
    batch_size: int,
    device: str,
) -> None:
    """Measure a model with images it should know.

    --calibrate scores N images of the data, chosen by --seed, and writes the statistics beside the
    weights: FOLDER/statistics.safetensors. With them a score says how many in-distribution images
    score higher. Best are images that the model was not trained on.

    Exit codes: 0 done, 2 bad input, 3 scores that are not finite, 130 interrupted.
    """
    if not to_calibrate:
        raise InputError("nothing to do: add --calibrate")
    from cdrl_infer.arguments import check_seed, positive
    from cdrl_infer.checkpoint import load_model
    from cdrl_infer.pipeline import CDRLPipeline
    from cdrl_infer.scoring.reference import STATISTICS
    from cdrl_train.calibrate import calibrate, choose
    from cdrl_train.data import data_name, load_images

    seed, batch_size = check_seed(seed), positive("--batch-size", batch_size)
    wanted = None if count is None else positive("-n", count)
    folder = Path(model)
    pipe = CDRLPipeline(load_model(folder, variant=variant), name=folder.resolve().name).to(device)
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
