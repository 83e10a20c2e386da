"""Held-out images -> the normalisers of a model."""

from __future__ import annotations

import torch
from torch import Tensor
from tqdm import tqdm

from cdrl_infer.likelihood.compute import compute, label_sets
from cdrl_infer.likelihood.normalisers import Normalisers
from cdrl_infer.likelihood.telescope import Effort
from cdrl_infer.pipeline import CDRLPipeline
from cdrl_infer.scoring.reference import random_order
from cdrl_train.data.image_set import ImageSet, same_labels


def normalise(
    pipe: CDRLPipeline,
    data: ImageSet,
    *,
    name: str,
    effort: Effort | None = None,
    per_class: bool = False,
    seed: int = 0,
    progress: bool | None = None,
) -> Normalisers:
    """Compute the normalisers of a model, see `cdrl_infer.likelihood.telescope.normalise`.

    Args:
        pipe: the model's.
        data: images of the model's shape; every second chain begins at one. For a class, they are images
            of that class if the data have the model's classes, by name or by number, else the chains
            begin at samples.
        name: of the data.
        effort: how much to compute.
        per_class: also for each value of each label.
        seed: of the noise and of the choice of images.
        progress: a bar on stderr; by default only if that is a terminal.

    Raises:
        InputError: the package arviz-stats is missing, or the energy is the bound of a VAE.
        NumericalError: a chain or a weight is not finite.
    """
    effort, model = Effort() if effort is None else effort, pipe.model
    order = random_order(len(data), seed)

    def begin(labels: tuple[int, ...]) -> Tensor | None:
        rows = order
        if any(labels):
            if data.labels is None or not same_labels(model.labels, data):
                return None
            asked = torch.tensor(labels) - 1
            fits = (data.labels[order] == asked) | (asked < 0)
            rows = order[fits.all(1)]
            if not len(rows):
                return None
        return data.scaled(rows[: effort.points])

    sets = label_sets(model, per_class)
    hidden = None if progress is None else not progress
    steps = 2 * model.schedule.num_levels * len(sets)
    with tqdm(total=steps, unit="part", disable=hidden) as bar:
        return compute(
            model, sets, begin, name=name, seed=seed, effort=effort, on_step=lambda: bar.update()
        )
