"""From noise to image: what the initializer proposes at each level, and what Langevin makes of it.

python examples/levels.py  # 3 s on one core
"""

from __future__ import annotations

from pathlib import Path

import click
import torch

from cdrl_infer import CDRLPipeline, LevelEnd
from cdrl_infer.images import captioned, make_grid, to_pil, viewing_scale


@click.command()
@click.option("--model", help="Bundled model or folder.")
@click.option("--label", default="Ankle boot", show_default=True, help="What to draw.")
@click.option("--seed", default=0, show_default=True, help="Of the image.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default="levels.png",
    show_default=True,
    help="The picture.",
)
def main(model: str | None, label: str, seed: int, out: Path) -> None:
    """A column per transition, the noisiest first: the proposal, and the same after K Langevin steps."""
    pipe = CDRLPipeline.from_pretrained(model)
    ends: list[LevelEnd] = []
    pipe(class_labels=[label], seeds=[seed], callback_on_level_end=lambda end, _: ends.append(end))
    columns = []
    for end in ends:
        moved = (end.refined - end.proposal).square().mean().sqrt()
        print(
            f"transition {end.t} -> {end.t - 1}: Langevin moves a pixel by {moved:.3f} (rms, of [-1, 1])"
        )
        pictures = to_pil(torch.cat([end.proposal, end.refined]))
        column = make_grid(pictures, columns=1, upscale=viewing_scale(pictures[0], 112))
        columns.append(captioned(column, f"{end.t} to {end.t - 1}"))
    make_grid(columns, columns=len(columns)).save(out)


if __name__ == "__main__":
    main()
