"""What a run looks like: a grid of samples, the same seeds every time."""

from __future__ import annotations

from pathlib import Path

from cdrl_infer.files import replaced_file
from cdrl_infer.images import make_grid, save_png, viewing_scale
from cdrl_infer.pipeline import CDRLPipeline
from cdrl_train.export import to_model
from cdrl_train.trainer import Trainer

ROWS = 6


def save_samples(trainer: Trainer) -> Path:
    """Draw from the averaged networks into ``samples/step-XXXXXXXX.png``.

    A column per class of the first attribute; the others take turns, row by row.
    """
    pipe = CDRLPipeline(to_model(trainer)).to(trainer.device)
    first, *others = trainer.stream.data.num_classes or (ROWS,)
    columns = first
    labels = [
        (k % first, *((k // first + k % first) % n for n in others)) for k in range(ROWS * columns)
    ]
    out = pipe(
        class_labels=labels if trainer.stream.data.attributes else None,
        seeds=range(ROWS * columns),
        progress=False,
    )
    if not isinstance(out.images, list):
        raise TypeError(type(out.images))
    scale = viewing_scale(out.images[0], 56)
    path = trainer.folder / "samples" / f"step-{trainer.step:08d}.png"
    path.parent.mkdir(exist_ok=True)
    with replaced_file(path) as new:
        save_png(make_grid(out.images, columns, upscale=scale), new, {"step": str(trainer.step)})
    return path
