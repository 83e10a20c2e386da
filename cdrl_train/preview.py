"""A picture of a run's samples, drawn from the same seeds every time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from PIL import Image

from cdrl_infer.files import replaced_file
from cdrl_infer.images import make_grid, save_png, viewing_scale
from cdrl_infer.images.plane import POINT, scatter, to_points
from cdrl_infer.pipeline import CDRLPipeline
from cdrl_train import toy
from cdrl_train.data.checkerboard import checkerboard
from cdrl_train.engine.interrupt import Stopped
from cdrl_train.engine.trainer import Trainer
from cdrl_train.export import picture_of, to_model

ROWS = 6
POINTS = 2_000  # in a picture of the plane


def save_samples(trainer: Trainer, stop: Callable[[], bool] = lambda: False) -> Path:
    """Draw from the averaged networks into ``samples/step-XXXXXXXX.png``.

    The picture is a grid of images, or a scatter plot of points in the plane. For the checkerboard it
    shows all levels next to the truth, and the distance between them is printed.

    Args:
        trainer: the run.
        stop: asked before and after each level; when it answers yes, no picture is made.

    Raises:
        NumericalError: sampling left the finite numbers.
        Stopped: ``stop`` said yes.
    """

    def go_on_or_stop(*_: object) -> None:
        if stop():
            raise Stopped

    go_on_or_stop()
    model = to_model(trainer)
    if trainer.data_fingerprint == checkerboard().fingerprint():
        fits = toy.measure(model, on_level_end=go_on_or_stop)
        trainer.tell(f"step {trainer.step}: {toy.summary(fits)}")
        picture = toy.plot(fits)
    elif model.image.shape == POINT and not model.labels:
        picture = _points(CDRLPipeline(model).to(trainer.device), go_on_or_stop)
    else:
        picture = _grid(CDRLPipeline(model).to(trainer.device), go_on_or_stop)
    path = picture_of(trainer.folder, trainer.step)
    path.parent.mkdir(exist_ok=True)
    with replaced_file(path) as new:
        save_png(picture, new, {"step": str(trainer.step)})
    return path


def _grid(pipe: CDRLPipeline, on_level_end: Callable[..., None]) -> Image.Image:
    """One column per class of the first attribute; the other attributes vary by row."""
    counts = [len(attribute.values) for attribute in pipe.model.labels]
    first, *others = counts or (ROWS,)
    labels = [
        (k % first, *((k // first + k % first) % n for n in others)) for k in range(ROWS * first)
    ]
    out = pipe(
        class_labels=labels if counts else None,
        seeds=range(ROWS * first),
        callback_on_level_end=on_level_end,
        progress=False,
    )
    if not isinstance(out.images, list):
        raise TypeError(type(out.images))
    return make_grid(out.images, first, upscale=viewing_scale(out.images[0], 56))


def _points(pipe: CDRLPipeline, on_level_end: Callable[..., None]) -> Image.Image:
    """Images of two pixels as points."""
    out = pipe(
        num_images=POINTS,
        batch_size=POINTS,
        seeds=range(POINTS),
        output_type="pt",
        callback_on_level_end=on_level_end,
        progress=False,
    )
    return scatter(to_points(out.images))
