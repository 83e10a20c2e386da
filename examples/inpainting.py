"""Inpainting: half of an image is known, the other half is painted several ways.

python examples/inpainting.py  # 6 s on one core
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
from PIL import Image

from cdrl_infer import CDRLPipeline
from cdrl_infer.images import make_grid, viewing_scale

LABELS = ("Dress", "Sneaker", "Bag")


@click.command()
@click.option("--model", help="Bundled model or folder.")
@click.option("--image", type=click.Path(exists=True, path_type=Path), help="Paint this instead.")
@click.option("--columns", default=6, show_default=True, help="Samples of each image.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default="inpainting.png",
    show_default=True,
    help="The picture.",
)
def main(model: str | None, image: Path | None, columns: int, out: Path) -> None:
    """A row per image: as it is, what is known of it, and the samples."""
    pipe = CDRLPipeline.from_pretrained(model)
    if image is not None:
        originals = [Image.open(image)]
    else:
        originals = list(pipe(class_labels=LABELS, seeds=range(len(LABELS))).images)
    pictures = []
    for original in originals:
        mask = np.zeros((original.height, original.width), bool)
        mask[:, original.width // 2 :] = True
        drawn = pipe.inpaint(original, mask, num_images=columns, seeds=0)
        shown = np.asarray(original).copy()
        shown[mask] = 128
        samples = [np.asarray(sample) for sample in drawn.images]
        kept = all((sample[~mask] == np.asarray(original)[~mask]).all() for sample in samples)
        print(f"known pixels unchanged: {kept}; {len({s.tobytes() for s in samples})} fillings")
        pictures += [original, Image.fromarray(shown), *drawn.images]
    make_grid(pictures, columns + 2, upscale=viewing_scale(pictures[0])).save(out)


if __name__ == "__main__":
    main()
