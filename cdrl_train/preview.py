"""What a run looks like: a grid of samples, the same seeds every time."""

from __future__ import annotations

from pathlib import Path

from cdrl_infer.files import replaced_file
from cdrl_infer.images import make_grid, save_png, viewing_scale
from cdrl_infer.pipeline import CDRLPipeline
from cdrl_train.export import to_model
from cdrl_train.trainer import Trainer

ROWS = 6


def save_samples(trainer: Trainer, classes: tuple[str, ...]) -> Path:
    """Draw from the averaged networks into ``samples/step-XXXXXXXX.png``: a column per class."""
    pipe = CDRLPipeline(to_model(trainer, classes)).to(trainer.device)
    columns = len(classes) or ROWS
    out = pipe(
        class_labels=[k % columns for k in range(ROWS * columns)] if classes else None,
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
