"""``cdrl-train``: arguments only."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from cdrl_infer.errors import CDRLError, InputError, NumericalError


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--preset", "preset_name", default="fashion-mnist", show_default=True)
@click.option(
    "--data",
    "source",
    required=True,
    help="A .npz file, a folder of images, or torchvision:FashionMNIST[:ROOT].",
)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of the run.")
@click.option(
    "--set", "assignments", multiple=True, metavar="KEY=VALUE", help="Override an option."
)
@click.option("--device", default="cpu", show_default=True)
@click.option("--resume", is_flag=True, help="Continue the run in --out.")
def main(
    preset_name: str,
    source: str,
    out: Path,
    assignments: tuple[str, ...],
    device: str,
    resume: bool,
) -> None:
    """Train a CDRL model and export it to OUT/model, a folder CDRLPipeline.from_pretrained opens.

    Exit codes: 0 done, 2 bad input, 3 training diverged (the last good state is kept).
    """
    try:
        run(preset_name, source, out, list(assignments), device, resume)
    except NumericalError as error:
        click.echo(f"cdrl-train: {error}", err=True)
        sys.exit(3)
    except CDRLError as error:
        click.echo(f"cdrl-train: error: {error}", err=True)
        sys.exit(2)


def run(
    preset_name: str, source: str, out: Path, assignments: list[str], device: str, resume: bool
) -> None:
    """Set up the run, train, export.

    Raises:
        CDRLError: bad input, found before any work is done, or divergence.
    """
    from cdrl_train.config import TrainConfig
    from cdrl_train.data import BatchStream, load_images
    from cdrl_train.presets import preset
    from cdrl_train.trainer import Trainer

    stored = out / "config.json"
    if resume and not stored.is_file():
        raise InputError(f"nothing to resume in {out}: no config.json there")
    if not resume and stored.exists():
        raise InputError(f"{out} already holds a run; add --resume or choose another --out")
    if resume:
        config = TrainConfig.from_dict(json.loads(stored.read_text(encoding="utf-8")))
    else:
        config = preset(preset_name)
    config = config.override(assignments)

    data = load_images(source)
    stream = BatchStream(data, config.data, config.seed, device)
    num_classes = (len(data.classes),) if data.classes else ()
    trainer = Trainer(config, stream, num_classes, out)
    out.mkdir(parents=True, exist_ok=True)
    stored.write_text(json.dumps(config.to_dict(), indent=2) + "\n", encoding="utf-8")
    if resume and trainer.resume():
        click.echo(f"resumed at step {trainer.step} of {trainer.total_steps}", err=True)
    trainer.fit(on_log=_print)


def _print(line: dict[str, Any]) -> None:
    rate = ""
    if "seconds_per_step" in line:
        rate = f"  {line['seconds_per_step'] * 1000:.0f} ms/step"
    losses = "  ".join(f"{k} {v:.4g}" for k, v in line.items() if k.startswith(("loss/", "grad")))
    click.echo(f"{line['phase']} {line['step']}  {losses}{rate}", err=True)


if __name__ == "__main__":
    main()
