"""Guidance: the same seeds at guidance scales 1, 2, 4 and 8, a row each.

python examples/guidance.py  # 10 s on one core
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np

from cdrl_infer import CDRLPipeline
from cdrl_infer.images import make_grid, viewing_scale

SCALES = (1.0, 2.0, 4.0, 8.0)


@click.command()
@click.option("--model", help="Bundled model or folder.")
@click.option("--label", default="Coat", show_default=True, help="What to draw.")
@click.option("--columns", default=8, show_default=True, help="Images in a row.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default="guidance.png",
    show_default=True,
    help="The picture.",
)
def main(model: str | None, label: str, columns: int, out: Path) -> None:
    """Draw the rows and print how much the images of each differ from one another."""
    pipe = CDRLPipeline.from_pretrained(model)
    pictures = []
    for scale in SCALES:
        drawn = pipe(class_labels=[label] * columns, guidance_scale=scale, seeds=range(columns))
        spread = np.stack([np.asarray(image) for image in drawn.images]).std(axis=0).mean()
        print(f"guidance scale {scale:g}: a pixel differs by {spread:.1f} grey levels (std)")
        pictures += list(drawn.images)
    make_grid(pictures, columns, upscale=viewing_scale(pictures[0])).save(out)


if __name__ == "__main__":
    main()
