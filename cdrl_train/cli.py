"""``cdrl-train``: from arguments to options; the run itself is `cdrl_train.run`."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cdrl_infer.cli.command import IMPORT, OneOfSeveral
from cdrl_infer.errors import InputError
from cdrl_infer.version import __version__
from cdrl_train.data.registry import source_help

if TYPE_CHECKING:
    from cdrl_train.config import TrainConfig
    from cdrl_train.export import DataRecord
    from cdrl_train.run import Resume


@click.command(
    "cdrl-train", cls=OneOfSeveral, context_settings={"help_option_names": ["-h", "--help"]}
)
@IMPORT
@click.option(
    "--preset",
    metavar="NAME[+VARIATION]",
    help="Options of the run, such as cifar10 or cifar10+no-shared-noise. [fashion-mnist; my-images for "
    "other --data; fine-tune with --init-from]",
)
@click.option(
    "--presets",
    is_flag=True,
    help="List the presets with their images, sizes, costs and data, and exit.",
)
@click.option(
    "--config",
    "file",
    type=click.Path(path_type=Path),
    metavar="FILE.json",
    help="Options in place of a preset's, in the form that --print-config writes.",
)
@click.option(
    "--set",
    "assignments",
    multiple=True,
    metavar="KEY=VALUE",
    help="Change an option, such as seed=1, schedule.num_levels=8 or cooperative.ebm_lr=1e-4.",
)
@click.option("--print-config", is_flag=True, help="Print the options as JSON and exit.")
@click.option(
    "--dry-run",
    is_flag=True,
    help="Print what the run would cost, timed over a few steps, and exit.",
)
@click.option(
    "--data",
    "source",
    metavar="DATA",
    help=f"Images to train on: {source_help()}. [the preset's]",
)
@click.option("--grey", is_flag=True, help="Make grey images of coloured ones.")
@click.option(
    "--image-size",
    metavar="N|HEIGHTxWIDTH",
    help="Scale images to this size. [their own; for large or different pictures 32, or the model's]",
)
@click.option(
    "--resize",
    type=click.Choice(["crop", "pad"]),
    help="Crop pictures of other proportions, or pad them with black. [crop]",
)
@click.option(
    "--init-from",
    metavar="NAME|FOLDER|USER/MODEL",
    help="Start with the networks of a trained model. What does not fit the data or the options is new.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Folder of the run. [runs/NAME, the preset's or the data's name]",
)
@click.option("--device", metavar="NAME", help="Where to train. [a GPU if there is one]")
@click.option(
    "--track",
    "trackers",
    multiple=True,
    default=["tensorboard"],
    show_default=True,
    metavar="tensorboard|wandb|trackio|none",
    help="Where curves and samples are shown, in addition to metrics.jsonl.",
)
@click.option(
    "--resume",
    "resuming",
    is_flag=False,
    flag_value="yes",
    type=click.Choice(["yes", "auto"]),
    metavar="[auto]",
    help="Continue the run in --out, with the options and data that it began with; --set changes "
    "options. auto: start it if there is none, with the same command each time.",
)
@click.option(
    "--push-to-hub",
    "repo_id",
    metavar="USER/MODEL",
    help="Upload the model with every preview (sample_every) and at the end.",
)
@click.option(
    "--private/--public", default=None, help="For a new repository. [the account's default]"
)
@click.version_option(__version__, prog_name="cdrl-train")
def main(
    preset: str | None,
    presets: bool,
    file: Path | None,
    assignments: tuple[str, ...],
    print_config: bool,
    dry_run: bool,
    source: str | None,
    grey: bool,
    image_size: str | None,
    resize: str | None,
    init_from: str | None,
    out: Path | None,
    device: str | None,
    trackers: tuple[str, ...],
    resuming: Resume | None,
    repo_id: str | None,
    private: bool | None,
) -> None:
    """Train a CDRL model; OUT/model is then a folder that CDRLPipeline.from_pretrained opens.

    On several GPUs or machines: `accelerate launch -m cdrl_train.cli …` or `torchrun -m …`. The batch
    is split over the processes. A run may continue with another number of processes.

    OUT also gets config.json, metrics.jsonl, report.html, checkpoints/, samples/ and logs/. SIGTERM,
    SIGHUP and Ctrl-C save the state after the current step, and --resume continues from it. A second
    signal, at least a second later, ends the run at once. A scheduler that repeats one command needs
    --resume auto. Exit codes: 0 done, or stopped by SIGTERM or SIGHUP; 2 bad input; 3 training
    diverged, also at lower learning rates (the last good state is kept); 4 the model is trained but
    could not be uploaded (`cdrl-hub push OUT/model USER/MODEL` sends it); 5 the disk is full (the last
    saved state is kept); 130 interrupted.
    """
    if presets:
        from cdrl_train.catalogue import table

        for line in table():
            click.echo(line)
        return
    from cdrl_train.networks import check_networks

    if private is not None and repo_id is None:
        raise InputError("--private and --public need --push-to-hub; add it or leave them out")
    assigned = [*_for_images(grey, image_size, resize), *assignments]
    config, source, init_from, out = _run(preset, file, assigned, source, init_from, out, resuming)
    check_networks(config)
    if print_config:
        click.echo(config.to_json())
        return
    if not source:
        raise InputError("no data: add --data, or --set data.source=… in the options")
    if dry_run:
        _dry_run(config, source, init_from, device)
        return
    from cdrl_train.run import train

    stopped_by = train(
        config,
        source,
        out,
        device=device,
        trackers=[name for name in trackers if name != "none"],
        resuming=resuming,
        init_from=init_from,
        repo_id=repo_id,
        private=private,
    )
    if stopped_by == signal.SIGINT:
        raise click.Abort


def _run(
    preset: str | None,
    file: Path | None,
    assignments: list[str],
    source: str | None,
    init_from: str | None,
    out: Path | None,
    resuming: Resume | None,
) -> tuple[TrainConfig, str, str | None, Path]:
    """The options, data, first networks and folder of a run: those asked for, or of the run to resume."""
    from cdrl_train.config import TrainConfig
    from cdrl_train.settle import for_data

    def started(data: str | None, first: str | None = init_from) -> tuple[TrainConfig, str]:
        config = _asked(preset, file, data, first).override(assignments)
        data = data or config.data.source
        return for_data(config, data), data

    if resuming != "yes" or out is None:
        config, data = started(source)
        out = out or Path("runs") / config.name
        if resuming is None or (resuming == "auto" and not (out / "config.json").is_file()):
            return config, data, init_from, out
    if not (out / "config.json").is_file():
        raise InputError(
            f"nothing to resume in {out}: there is no config.json; --out names the folder of the run"
        )
    config = TrainConfig.read(out / "config.json").override(
        [] if resuming == "auto" else assignments
    )
    remembered = _record(out)
    former = remembered.source if remembered else None
    data = source or former or config.data.source
    first = remembered.init_from if remembered else None
    if resuming == "auto" or preset is not None or file is not None:
        from cdrl_train.run import check_same

        asked, _ = started(former or data, init_from or first)  # a moved folder keeps its name
        check_same(asked, config, out)
    if init_from is not None:
        from cdrl_train.init_from import absolute_model

        if absolute_model(init_from) != first:
            raise InputError(
                f"{out} holds a run that started from {first or 'new networks'}, not from "
                f"{init_from}; leave --init-from out or choose another --out"
            )
    return config, data, first, out


def _for_images(grey: bool, image_size: str | None, resize: str | None) -> list[str]:
    """The assignments that --grey, --image-size and --resize stand for."""
    found = ["data.grey=true"] if grey else []
    found += [] if resize is None else [f"data.resize={resize}"]
    if image_size is not None:
        sides = image_size.lower().split("x")
        if len(sides) > 2 or not all(side.isdecimal() and len(side) < 6 for side in sides):
            raise InputError(f"--image-size must be N or HEIGHTxWIDTH, got {image_size!r:.60}")
        found.append(f"data.image_size=[{int(sides[0])},{int(sides[-1])}]")
    return found


def _asked(
    preset: str | None, file: Path | None, source: str | None, init_from: str | None
) -> TrainConfig:
    """The options of a new run, before --set."""
    from cdrl_train.config import TrainConfig
    from cdrl_train.data.sources import split_source
    from cdrl_train.presets import FINE_TUNING
    from cdrl_train.presets import preset as named_preset

    if preset is not None and file is not None:
        raise InputError("--preset and --config both set the options: leave one out")
    if file is not None:
        return TrainConfig.read(file)
    if preset is not None:
        name = preset
    elif init_from is not None:
        name = FINE_TUNING[0]
    else:
        known = source is None or split_source(source)[0] == "torchvision:FashionMNIST"
        name = "fashion-mnist" if known else "my-images"
    if name.partition("+")[0] not in FINE_TUNING:
        return named_preset(name)
    if init_from is None:
        raise InputError(
            f"the preset {name} goes on from a trained model: add --init-from, "
            "as --init-from fashion-mnist"
        )
    from cdrl_train.init_from import open_model, with_networks_of

    return with_networks_of(open_model(init_from), named_preset(name))


def _record(out: Path) -> DataRecord | None:
    """What the run in a folder remembers of its data; None if it remembers nothing readable."""
    from cdrl_infer.errors import CDRLError
    from cdrl_train.export import read_record

    try:
        return read_record(out)
    except CDRLError:
        return None


def _dry_run(config: TrainConfig, source: str, init_from: str | None, device: str | None) -> None:
    """Print what a run would cost. Data are read only if their shape is not known otherwise."""
    from cdrl_infer.device import usable_device
    from cdrl_infer.model import ImageShape
    from cdrl_train.data.sources import stand_in
    from cdrl_train.dry_run import dry_run
    from cdrl_train.engine.distributed import make_accelerator, precision_of
    from cdrl_train.init_from import open_model
    from cdrl_train.settle import settled, sized
    from cdrl_train.tracking import tell

    place = None if device is None else usable_device(device)
    accelerator = make_accelerator(config.precision, place)
    config = replace(config, precision=precision_of(accelerator))
    config = sized(config, source, open_model(init_from) if init_from else None, tell)
    data = stand_in(source, config.data)
    config = settled(config, data, tell)
    image = ImageShape(*data.images.shape[1:])
    for line in dry_run(config, image, data.num_classes, accelerator.device):
        click.echo(line)


if __name__ == "__main__":
    main()
