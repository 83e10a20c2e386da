"""Concepts added as energies: a row for each expression, the same seeds in all.

python examples/composition.py  # 34 s on one core
"""

from __future__ import annotations

from pathlib import Path

import click

from cdrl_infer import CDRLPipeline
from cdrl_infer.images import captioned, make_grid, viewing_scale

EXPRESSIONS = (
    "sneaker",
    "red",
    "sneaker & red",  # no red sneaker was in the training images
    "red & (dress | coat)",
    "boot & ~dark",
)


@click.command()
@click.option("--model", default="coloured-fashion-mnist", help="Bundled model or folder.")
@click.option("--expression", "expressions", multiple=True, default=EXPRESSIONS, help="Repeatable.")
@click.option("--guidance-scale", default=2.0, show_default=True, help="Of each expression.")
@click.option("--columns", default=8, show_default=True, help="Images in a row.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default="composition.png",
    show_default=True,
    help="The picture.",
)
def main(
    model: str, expressions: tuple[str, ...], guidance_scale: float, columns: int, out: Path
) -> None:
    """Draw the rows; then one of them again, with Python's operators."""
    pipe = CDRLPipeline.from_pretrained(model)
    rows = []
    for expression in expressions:
        drawn = pipe.compose(expression, guidance_scale=guidance_scale, num_images=columns, seeds=0)
        images = list(drawn.images)
        row = make_grid(images, columns, upscale=viewing_scale(images[0]))
        rows.append(captioned(row, expression))
    make_grid(rows, 1).save(out)

    said = pipe.concept("sneaker") & pipe.concept("red") ** 1.5
    print(f"in Python: {said}, {pipe.compose(said, seeds=[0]).info.expression}")


if __name__ == "__main__":
    main()
