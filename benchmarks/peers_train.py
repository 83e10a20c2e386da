"""Train a DDPM of diffusers with as many operations as a model of the package."""

from __future__ import annotations

from pathlib import Path

import click
import torch
from ood_autoencoder import count_values
from options import DATA, MODEL
from peers_ddpm import DDPMRecipe, State, resume, step_flops, train

from cdrl_infer.cli.command import OneLineErrors
from cdrl_infer.device import Precision, resolved_precision, usable_device, usual_device
from cdrl_infer.errors import InputError
from cdrl_infer.model import CDRLModel
from cdrl_infer.pipeline import CDRLPipeline
from cdrl_infer.storage.folder import find_model
from cdrl_train.config import TrainConfig
from cdrl_train.cost import count
from cdrl_train.data.image_set import ImageSet
from cdrl_train.data.sources import load_images

PETA = 1e15


def training_flops(model: CDRLModel) -> float:
    """Operations of the training of a model, by the options in its config.

    Raises:
        InputError: the config does not have the options of the run.
    """
    if "config" not in model.training:
        raise InputError("the model's config does not say how it was trained: give --petaflop")
    config = TrainConfig.from_dict(model.training["config"])
    sizes = tuple(len(attribute.values) for attribute in model.labels)
    return float(count(config, model.image, sizes).flops(config))


@click.command("train", cls=OneLineErrors, context_settings={"show_default": True})
@MODEL
@DATA
@click.option(
    "--petaflop",
    type=click.FloatRange(0, min_open=True),
    help="Of the whole training. [that of the model]",
)
@click.option(
    "--train-minutes",
    type=click.FloatRange(0, min_open=True),
    default=60.0,
    help="Of this call; the next one goes on.",
)
@click.option("--save-minutes", type=click.FloatRange(0), default=3.0, help="Between checkpoints.")
@click.option("--precision", type=click.Choice(["auto", "float32", "bfloat16"]), default="auto")
@click.option("--device", help="[cuda if there is one, else cpu]")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("runs/ddpm"),
    help="Folder of the run; a run that is there goes on.",
)
def main(
    model: str | None,
    data: str,
    petaflop: float | None,
    train_minutes: float,
    save_minutes: float,
    precision: Precision,
    device: str | None,
    out: Path,
) -> None:
    """Train diffusers' class-conditional UNet2DModel; an interrupted run goes on."""
    pipe, images = CDRLPipeline.from_pretrained(find_model(model)), load_images(data, "train")
    flops = training_flops(pipe.model) if petaflop is None else petaflop * PETA
    state = evaluate(
        images,
        flops,
        DDPMRecipe(),
        60 * train_minutes,
        60 * save_minutes,
        precision,
        usable_device(device or usual_device()),
        out,
        count_values(*pipe.model.networks.values()),
    )
    click.echo(f"{100 * state.share:.1f} % of the steps are done, in {state.seconds / 60:.1f} min.")


def evaluate(
    images: ImageSet,
    flops: float,
    recipe: DDPMRecipe,
    seconds: float,
    save_seconds: float,
    precision: Precision,
    device: torch.device,
    out: Path,
    values: int,
) -> State:
    """Begin a run of that many operations, or go on with it.

    Args:
        flops: of the whole run.
        values: parameters of the model that it is compared with; only printed.

    Raises:
        InputError: a step has more operations than the run, or the folder holds another run.
    """
    if images.labels is None:
        raise InputError("a DDPM needs data with labels")
    each = step_flops(recipe, tuple(images.images.shape[1:]), images.num_classes[0])
    total = int(flops / each)
    if not total:
        raise InputError(f"{flops:.3g} operations are less than a step has, {each:.3g}")
    precision = resolved_precision(precision, device)
    out.mkdir(parents=True, exist_ok=True)
    state = resume(out, recipe, images, total, device)
    threads = torch.get_num_threads()
    where = f"{threads} threads" if device.type == "cpu" else str(device)
    click.echo(
        f"UNet2DModel, {count_values(state.network):,} values (model: {values:,}); {total:,} steps of "
        f"{recipe.batch_size} images and {each / 1e9:.1f} GFLOP = {total * each / PETA:.3g} PFLOP; "
        f"{precision}, {where}; {state.steps} steps are done.",
        err=True,
    )
    return train(
        state,
        images,
        out,
        seconds,
        save_seconds,
        precision,
        lambda line: click.echo(line, err=True),
    )
