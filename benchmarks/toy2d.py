"""How far models of the checkerboard are from the truth, for several numbers of Langevin steps.

``python benchmarks/toy2d.py --model toy/model``; see benchmarks/README.md.
"""

from __future__ import annotations

from pathlib import Path

import click
from report import check_target, table

from cdrl_infer.cli.command import OneLineErrors, parse_steps
from cdrl_infer.images import save_png
from cdrl_infer.storage.folder import find_model, load_model
from cdrl_train.toy import measure, plot

HEADER = ("model", "K", "gradients", "energy", "samples", "exact samples")


@click.command("toy2d.py", cls=OneLineErrors, context_settings={"show_default": True})
@click.option("--model", "models", multiple=True, required=True, metavar="FOLDER")
@click.option("--langevin-steps", default="5,15,30", help="Values of K, a row for each.")
@click.option("--samples", type=click.IntRange(1), default=50_000, help="Samples for each row.")
@click.option(
    "--figure",
    "picture",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write a plot of the levels of the last row.",
)
def main(models: tuple[str, ...], langevin_steps: str, samples: int, picture: Path | None) -> None:
    """Total variation from the truth at the lowest level, of energies and of samples."""
    check_target("--figure", picture)
    given = parse_steps(langevin_steps)
    loaded = [(name, load_model(find_model(name))) for name in models]
    rows = []
    for name, model in loaded:
        for steps in [given] if isinstance(given, int) else given:
            fits = measure(model, num_samples=samples, langevin_steps=steps)
            last = fits[-1]
            figures = (last.energy_tv, last.samples_tv, last.exact_tv)
            rows.append([name, steps, steps * len(fits), *(f"{x:.3f}" for x in figures)])
    click.echo(table(HEADER, rows))
    if picture is not None:
        save_png(plot(fits), picture, {})


if __name__ == "__main__":
    main()
