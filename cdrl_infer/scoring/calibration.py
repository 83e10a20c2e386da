"""In-distribution images -> the reference statistics of a model."""

from __future__ import annotations

from typing import Any

from cdrl_infer.arguments import Progress, check_choice, check_seed, positive, progress_bar
from cdrl_infer.images import read_images
from cdrl_infer.model import CDRLModel
from cdrl_infer.scoring.reference import ReferenceStatistics, measure
from cdrl_infer.scoring.registry import SCORES


def calibrate(
    model: CDRLModel,
    images: Any,
    *,
    data: str,
    seed: Any = 0,
    score: str | None = None,
    resize: bool = False,
    grey: bool = False,
    batch_size: int = 64,
    progress: Progress = None,
) -> ReferenceStatistics:
    """Read in-distribution images and measure them, see `cdrl_infer.scoring.reference.measure`.

    Args:
        model: the networks, on any device.
        images: see `cdrl_infer.images.each_image`; best are images that the model was not trained on.
        data: the name of their set.
        seed: the seed of the halves and of the noise.
        score: the score that the model has from now on unless a user names another; None: the one that
            it has.
        resize: resize pictures to the model's size; otherwise another size is an error.
        grey: for a model of grey images, convert coloured images to grey.
        batch_size: number of images at once.
        progress: show a bar on stderr; by default only if stderr is a terminal.

    Raises:
        InputError: an argument is not valid, or the images are too few or too similar.
        ConfigError: the name of the data or the number of images is not valid.
        NumericalError: a feature is not finite.
    """
    if score is not None:
        check_choice("score", score, tuple(SCORES))
    elif model.statistics is not None:
        score = model.statistics.score
    seed, batch_size = check_seed(seed), positive("batch_size", batch_size)
    found = read_images(images, model.image.shape, resize=resize, grey=grey)
    with progress_bar(progress, total=len(found), unit="image") as bar:
        return measure(
            model,
            found,
            data=data,
            seed=seed,
            score=score,
            batch_size=batch_size,
            after_batch=bar.update,
        )
