"""``cdrl-train``: arguments only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cdrl_infer.cli.command import OneLineErrors
from cdrl_infer.errors import InputError, NetworkError, NumericalError
from cdrl_infer.files import replaced_file
from cdrl_infer.version import __version__

if TYPE_CHECKING:
    from cdrl_infer.checkpoint import CDRLModel
    from cdrl_train.config import TrainConfig


@click.command(
    "cdrl-train", cls=OneLineErrors, context_settings={"help_option_names": ["-h", "--help"]}
)
@click.option("--preset", metavar="NAME", help="The run's options. [fashion-mnist]")
@click.option(
    "--data",
    "source",
    required=True,
    metavar="FILE.npz|FOLDER|torchvision:FashionMNIST[:ROOT]",
    help="Images to train on; the last downloads them. With coloured: before it, in colour.",
)
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, metavar="FOLDER", help="Of the run."
)
@click.option("--set", "assignments", multiple=True, metavar="KEY=VALUE", help="Change an option.")
@click.option("--device", default="cpu", show_default=True, metavar="NAME")
@click.option("--resume", is_flag=True, help="Go on with the run in --out.")
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
    source: str,
    out: Path,
    assignments: tuple[str, ...],
    device: str,
    resume: bool,
    repo_id: str | None,
    private: bool | None,
) -> None:
    """Train a CDRL model; OUT/model is then a folder that CDRLPipeline.from_pretrained opens.

    OUT also gets config.json, metrics.jsonl, checkpoints/ and samples/. Exit codes: 0 done, 2 bad
    input, 3 training diverged (the last good state is kept), 4 the model is trained but could not be
    uploaded (`cdrl-hub push OUT/model USER/MODEL` goes on), 130 interrupted.
    """
    from cdrl_train.presets import preset as named_preset

    if private is not None and repo_id is None:
        raise InputError("--private and --public are of --push-to-hub; add it or leave them out")
    config = _config(preset, out, resume).override(list(assignments))
    named_preset(config.name)  # the card tells how the run differs from it
    from cdrl_infer.checkpoint import save_model
    from cdrl_infer.device import usable_device
    from cdrl_train.data import BatchStream, data_name, load_images
    from cdrl_train.export import STORED_TYPES, add_card, record_data, to_model
    from cdrl_train.preview import save_samples
    from cdrl_train.trainer import Trainer
    from cdrl_train.upload import Uploads

    data = load_images(source)
    stream = BatchStream(data, config.data, config.seed, usable_device(device))
    trainer = Trainer(config, stream, out)
    untrained = to_model(trainer)  # what could not be exported is not worth training
    resumed = resume and trainer.resume()
    dtype = STORED_TYPES[config.stored_as]
    uploads = Uploads(repo_id, private=private, dtype=dtype, tell=_tell) if repo_id else None
    try:
        out.mkdir(parents=True, exist_ok=True)
        with replaced_file(out / "config.json") as new:
            new.write_text(json.dumps(config.to_dict(), indent=2) + "\n", encoding="utf-8")
        record_data(untrained, out, data=data_name(source))
    except OSError as error:
        raise InputError(f"cannot write to {str(out)!r}: {error.strerror}") from error
    if resumed:
        _tell(f"resumed at step {trainer.step} of {trainer.total_steps}")

    def preview(run: Trainer) -> None:
        try:
            save_samples(run)
        except NumericalError as error:
            _tell(f"no samples of step {run.step}: {error}")
        if uploads and run.step < run.total_steps:
            uploads.start(exported(), run.step)

    def exported() -> CDRLModel:
        model = to_model(trainer)
        add_card(model, config, out, data=data_name(source))
        return model

    trainer.fit(on_log=_print, on_sample=preview)

    model = exported()
    save_model(model, out / "model", dtype=dtype)
    _tell(f"model written to {out / 'model'}")
    if uploads and not uploads.finish(out / "model", trainer.step):
        raise NetworkError(
            f"the model is in {out / 'model'} but not on the Hub; "
            f"`cdrl-hub push {out / 'model'} {repo_id}` sends it"
        )


def _config(preset: str | None, out: Path, resume: bool) -> TrainConfig:
    """The stored options of a run to resume, else a preset's."""
    from cdrl_train.config import TrainConfig
    from cdrl_train.presets import preset as named_preset

    stored = out / "config.json"
    if not resume:
        if stored.exists():
            raise InputError(f"{out} already holds a run: add --resume or choose another --out")
        return named_preset(preset or "fashion-mnist")
    if preset is not None:
        raise InputError("--resume goes on with the run's own options: leave --preset out")
    try:
        return TrainConfig.from_dict(json.loads(stored.read_text(encoding="utf-8")))
    except (OSError, json.JSONDecodeError) as error:
        raise InputError(f"nothing to resume in {out}: {stored.name} cannot be read") from error


def _tell(text: str) -> None:
    click.echo(text, err=True)


def _print(line: dict[str, Any]) -> None:
    shown = ("loss/", "grad_norm/")
    values = "  ".join(f"{k} {v:.4g}" for k, v in line.items() if k.startswith(shown))
    speed = f"{1000 * line['seconds_per_step']:.0f} ms/step"
    _tell(f"{line['phase']} {line['step']}  {values}  {speed}")


if __name__ == "__main__":
    main()
