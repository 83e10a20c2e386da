"""Where is it odd? A piece of another image is pasted into clothes, and the heat map finds it.

python examples/anomaly.py  # 3 s on one core
"""

from __future__ import annotations

from pathlib import Path

import click
import torch

from cdrl_infer import CDRLPipeline
from cdrl_infer.images import make_grid, to_pil
from cdrl_infer.scoring.plots import overlay

LABELS = ("Trouser", "Sneaker", "Dress", "Bag", "Coat")
LEVEL = 3  # large enough a noise to see a patch, small enough to see little else


@click.command()
@click.option("--images", "count", default=3, show_default=True, help="Rows of the picture.")
@click.option("--seed", default=0, show_default=True, help="Of the images and of their patches.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default="anomaly.png",
    show_default=True,
    help="The picture.",
)
def main(count: int, seed: int, out: Path) -> None:
    """A row per image: the image with the patch, the heat map over it, and the heat map alone."""
    pipe = CDRLPipeline.from_pretrained()
    labels = [LABELS[k % len(LABELS)] for k in range(count)]
    clean = pipe(class_labels=labels, seeds=seed, output_type="pt").images
    patched, hidden = clean.clone(), torch.zeros(count, 28, 28, dtype=torch.bool)
    corners = torch.randint(2, 19, (count, 2), generator=torch.Generator().manual_seed(seed))
    for k, (row, column) in enumerate(corners.tolist()):
        place = slice(row, row + 8), slice(column, column + 8)
        patched[k, 0][place] = clean[k - 1, 0, 10:18, 10:18].flip(0)
        hidden[k][place] = True
    before = pipe.score(clean, "energy", level=LEVEL).scores
    after = pipe.score(patched, "energy", level=LEVEL, return_map=True)
    rows = []
    for k, heat in enumerate(after.maps):
        inside, outside = heat[hidden[k]], heat[~hidden[k]]
        auroc = (inside[:, None] > outside).double().mean()
        print(
            f"{labels[k]}: {before[k]:.0f} nats, with the patch {after.scores[k]:.0f}; "
            f"pixel AUROC {auroc:.3f}"
        )
        rows.append(overlay(to_pil(2 * patched[k : k + 1] - 1)[0], heat))
    make_grid(rows, columns=1).save(out)


if __name__ == "__main__":
    main()
