"""See the energy at work: the same seeds with K = 0, 1, 5 and 15 Langevin steps, a row each.

python examples/propose_and_refine.py  # 8 s on one core
"""

from __future__ import annotations

from pathlib import Path

import click

from cdrl_infer import CDRLPipeline
from cdrl_infer.images import make_grid, viewing_scale

STEPS = (0, 1, 5, 15)


@click.command()
@click.option("--model", help="Bundled model or folder.")
@click.option("--columns", default=10, show_default=True, help="Images in a row.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default="steps.png",
    show_default=True,
    help="The picture.",
)
def main(model: str | None, columns: int, out: Path) -> None:
    """Draw the rows and print what refining does to the energies."""
    pipe = CDRLPipeline.from_pretrained(model)
    names = pipe.model.labels[0].values if pipe.model.labels else (None,)
    labels = [names[k % len(names)] for k in range(columns)]
    pictures = []
    for steps in STEPS:
        drawn = pipe(class_labels=labels, seeds=range(columns), langevin_steps=steps)
        pictures += list(drawn.images)
        print(f"K = {steps:2d}: mean energy {drawn.energies.mean():8.1f} nats")
    make_grid(pictures, columns, upscale=viewing_scale(pictures[0])).save(out)


if __name__ == "__main__":
    main()
