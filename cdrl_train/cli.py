"""``cdrl-train``: arguments only."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cdrl_infer.cli.command import OneLineErrors
from cdrl_infer.errors import ConfigError, InputError, NetworkError, NumericalError
from cdrl_infer.files import replaced_file
from cdrl_infer.version import __version__

if TYPE_CHECKING:
    from cdrl_infer.checkpoint import CDRLModel
    from cdrl_train.config import TrainConfig


@click.command(
    "cdrl-train", cls=OneLineErrors, context_settings={"help_option_names": ["-h", "--help"]}
)
@click.option(
    "--preset",
    metavar="NAME[+VARIATION]",
    help="The run's options, as cifar10 or cifar10+no-shared-noise. [fashion-mnist]",
)
@click.option(
    "--config",
    "file",
    type=click.Path(path_type=Path),
    metavar="FILE.json",
    help="Options as --print-config writes them, in place of a preset's.",
)
@click.option("--set", "assignments", multiple=True, metavar="KEY=VALUE", help="Change an option.")
@click.option("--print-config", is_flag=True, help="Print the options as JSON and end.")
@click.option(
    "--dry-run",
    is_flag=True,
    help="Print what the run would cost, timed over a few steps, and end.",
)
@click.option(
    "--data",
    "source",
    metavar="FILE.npz|FOLDER|torchvision:NAME[:ROOT]|imagenet32:FOLDER",
    help="Images to train on; torchvision's are downloaded. [the preset's]",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Of the run. [runs/ and the preset's name]",
)
@click.option("--device", metavar="NAME", help="[a GPU where there is one]")
@click.option(
    "--track",
    "trackers",
    multiple=True,
    default=["tensorboard"],
    show_default=True,
    metavar="tensorboard|wandb|trackio|none",
    help="Where curves and samples are shown, beside metrics.jsonl.",
)
@click.option(
    "--resume",
    is_flag=False,
    flag_value="yes",
    type=click.Choice(["yes", "auto"]),
    metavar="[auto]",
    help="Go on with the run in --out; auto: or begin it where there is none, by the same command each "
    "time, --preset, --config and --set as at first.",
)
@click.option(
    "--push-to-hub",
    "repo_id",
    metavar="USER/MODEL",
    help="Upload the model with every preview (sample_every) and at the end.",
)
@click.option(
    "--private/--public", default=None, help="Of a repository that is made. [the account's default]"
)
@click.version_option(__version__, prog_name="cdrl-train")
def main(
    preset: str | None,
    file: Path | None,
    assignments: tuple[str, ...],
    print_config: bool,
    dry_run: bool,
    source: str | None,
    out: Path | None,
    device: str | None,
    trackers: tuple[str, ...],
    resume: str | None,
    repo_id: str | None,
    private: bool | None,
) -> None:
    """Train a CDRL model; OUT/model is then a folder that CDRLPipeline.from_pretrained opens.

    On several GPUs or machines: `accelerate launch -m cdrl_train.cli …` or `torchrun -m …`; the batch
    is split, and a run may go on with another number of processes than it began with.

    OUT also gets config.json, metrics.jsonl, report.html, checkpoints/, samples/ and logs/. SIGTERM
    and Ctrl-C save the state after the step at hand, and --resume goes on from it; one more, a second
    later, ends at once. A scheduler that repeats one command needs --resume auto in it. Exit codes: 0
    done, or stopped by SIGTERM; 2 bad input; 3 training diverged, also at lower rates (the last good
    state is kept); 4 the model is trained but could not be uploaded (`cdrl-hub push OUT/model
    USER/MODEL` goes on); 5 the disk is full (the last saved state is kept); 130 interrupted.
    """
    from cdrl_train.presets import preset as named_preset

    if private is not None and repo_id is None:
        raise InputError("--private and --public are of --push-to-hub; add it or leave them out")
    goes_on = resume == "yes"  # with a run that is there, and its options
    config = _config(preset, file, out if goes_on else None, goes_on).override(list(assignments))
    named_preset(config.name)  # the card tells how the run differs from it
    from cdrl_train.networks import check_networks

    check_networks(config)
    if print_config:
        click.echo(json.dumps(config.to_dict(), indent=2))
        return
    source = source or config.data.source
    if not source:
        raise InputError("no data: add --data, or --set data.source=… in the options")
    if dry_run:
        _dry_run(config, source, device)
        return
    out = out or Path("runs") / config.name
    _check_folder(out, config, resume)
    from cdrl_train.interrupt import Stopped, stop_request
    from cdrl_train.lock import locked

    context = click.get_current_context()  # its resources are let go of when the command ends
    stop = context.with_resource(stop_request())
    from cdrl_infer.checkpoint import save_model
    from cdrl_infer.device import usable_device
    from cdrl_train.data import BatchStream, data_name, load_images
    from cdrl_train.export import STORED_TYPES, add_card, picture_of, record_data, to_model
    from cdrl_train.preview import save_samples
    from cdrl_train.processes import by_main, main_first, make_accelerator
    from cdrl_train.tracking import Progress, Trackers
    from cdrl_train.trainer import Trainer
    from cdrl_train.upload import Uploads

    accelerator = make_accelerator(
        config.precision,
        None if device is None else usable_device(device),
        trackers=[name for name in trackers if name != "none"],
        logs=out / "logs",
    )
    context.call_on_close(accelerator.end_training)
    with main_first(accelerator):  # which downloads, or copies what is to be mapped
        data = load_images(
            source,
            attributes=config.data.attributes,
            in_memory=config.data.in_memory_mib * 2**20,
        )
    stream = BatchStream(data, config.data, config.seed, accelerator.device)
    trainer = Trainer(config, stream, out, _tell, accelerator)
    untrained = to_model(trainer)  # what could not be exported is not worth training

    def claim() -> None:
        with _writing_to(out):
            out.mkdir(parents=True, exist_ok=True)
            context.with_resource(locked(out, _tell))
            _check_folder(out, config, resume)  # a run may have begun and ended since

    def begin() -> tuple[Trackers, Uploads | None]:
        uploads = Uploads(repo_id, private=private, dtype=dtype, tell=_tell) if repo_id else None
        with _writing_to(out):
            with replaced_file(out / "config.json") as new:
                new.write_text(json.dumps(config.to_dict(), indent=2) + "\n", encoding="utf-8")
            record_data(untrained, out, data=data_name(source))
            return Trackers(accelerator, config, out, trainer.step), uploads

    by_main(accelerator, claim)
    resumed = resume is not None and trainer.resume()
    dtype = STORED_TYPES[config.stored_as]
    begun = by_main(accelerator, begin)
    if begun is None:
        trainer.fit(stop=stop)
        return
    curves, uploads = begun
    progress = Progress(trainer)
    context.call_on_close(progress.close)
    if resumed:
        _tell(f"resumed at step {trainer.step} of {trainer.total_steps}")

    def preview(run: Trainer) -> None:
        try:
            curves.picture(save_samples(run, stop), run.step)
        except Stopped:
            return
        except NumericalError as error:
            _tell(f"no samples of step {run.step}: {error}")
        if uploads and run.step < run.total_steps:
            uploads.start(exported(), run.step)

    def exported() -> CDRLModel:
        model = to_model(trainer)
        add_card(model, config, out, data=data_name(source))
        return model

    def logged(line: dict[str, Any]) -> None:
        progress.log(line)
        curves.log(line)

    trainer.fit(on_log=logged, on_sample=preview, stop=stop, on_step=progress.advance)
    done, pictured = trainer.step == trainer.total_steps, picture_of(out, trainer.step).is_file
    if done and resumed and not pictured():  # killed after the last step
        with trainer.writing():
            preview(trainer)
    if not done or (stop() and not pictured()):  # asked to stop, this process or another
        by = f" by {stop.signal.name}" if stop.signal else ""
        _tell(f"stopped{by} at step {trainer.step}; --resume goes on from it")
        if stop.signal == signal.SIGINT:
            raise click.Abort
        return

    with trainer.writing():
        save_model(exported(), out / "model", dtype=dtype)
    _tell(f"model written to {out / 'model'}")
    if uploads and not uploads.finish(out / "model", trainer.step):
        raise NetworkError(
            f"the model is in {out / 'model'} but not on the Hub; "
            f"`cdrl-hub push {out / 'model'} {repo_id}` sends it"
        )


def _config(preset: str | None, file: Path | None, out: Path | None, resume: bool) -> TrainConfig:
    """The stored options of a run to resume, else those of a file, else a preset's."""
    from cdrl_train.presets import preset as named_preset

    if resume:
        if preset is not None or file is not None:
            raise InputError(
                "--resume goes on with the run's own options: leave --preset and --config out"
            )
        if out is None:
            raise InputError("--resume goes on with the run in --out: name it")
        file = out / "config.json"
    elif preset is not None and file is not None:
        raise InputError("--preset and --config both give the options: leave one out")
    if file is None:
        return named_preset(preset or "fashion-mnist")
    if resume and not file.is_file():
        raise InputError(f"nothing to resume in {out}: there is no {file.name}")
    return _read_config(file)


def _read_config(file: Path) -> TrainConfig:
    """Options as a file of JSON holds them."""
    from cdrl_train.config import TrainConfig

    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: expected options in JSON, found none ({error})") from error
    try:
        return TrainConfig.from_dict(values)
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from None


def _dry_run(config: TrainConfig, source: str, device: str | None) -> None:
    """Print what a run would cost. Data are read where their shape is not known without."""
    from cdrl_infer.device import usable_device
    from cdrl_train.data import expected
    from cdrl_train.dry_run import dry_run
    from cdrl_train.processes import make_accelerator

    place = None if device is None else usable_device(device)
    accelerator = make_accelerator(config.precision, place)
    image, num_classes = expected(source, config.data)
    for line in dry_run(config, image, num_classes, accelerator.device):
        click.echo(line)


def _check_folder(out: Path, config: TrainConfig, resume: str | None) -> None:
    """A run that is there is not begun again, nor gone on with by other options unless asked to."""
    if resume == "yes" or not (out / "config.json").exists():
        return
    if resume is None:
        raise InputError(f"{out} already holds a run: add --resume or choose another --out")
    held = _read_config(out / "config.json")
    differing = config.assignments(held)
    if differing:
        value: Any = held.to_dict()
        for key in differing[0].partition("=")[0].split("."):
            value = value.get(key)
        raise InputError(
            f"{out} holds a run whose options differ: expected {json.dumps(value)}, got {differing[0]}; "
            "give those of the run, change them by --resume with --set, or choose another --out"
        )


@contextmanager
def _writing_to(out: Path) -> Iterator[None]:
    """Inside the block it is the folder's fault when a file cannot be written."""
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot write to {str(out)!r}: {error.strerror or error}") from error


def _tell(text: str) -> None:
    """A line on stderr, above the bar if there is one."""
    from tqdm import tqdm

    tqdm.write(text, file=sys.stderr)


if __name__ == "__main__":
    main()
