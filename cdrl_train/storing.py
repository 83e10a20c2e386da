"""Measure a model in a folder and store the result beside its weights: statistics and normalisers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from cdrl_infer.arguments import check_seed, positive
from cdrl_infer.errors import LONGEST, CheckpointError, shown
from cdrl_infer.files import replaced_file
from cdrl_infer.likelihood.normalisers import NORMALISERS
from cdrl_infer.likelihood.telescope import Effort
from cdrl_infer.pipeline import CDRLPipeline
from cdrl_infer.scoring.calibration import calibrate
from cdrl_infer.scoring.reference import MAX_DATA, STATISTICS
from cdrl_infer.storage.folder import load_model
from cdrl_train.calibrate import choose
from cdrl_train.data.image_set import ImageSet
from cdrl_train.data.sources import data_name, fit_of, load_images, without_held_out
from cdrl_train.evaluation.request import check_shape
from cdrl_train.normalise import normalise


@dataclass(frozen=True)
class _Measured:
    """A model and the images to measure it with.

    Args:
        pipe: the model.
        data: images of the model's shape.
        name: of the data.
        seed, batch_size, count: the checked arguments; count None for the default.
    """

    pipe: CDRLPipeline
    data: ImageSet
    name: str
    seed: int
    batch_size: int
    count: int | None

    @classmethod
    def of(
        cls,
        folder: Path,
        *,
        source: str,
        split: str | None = None,
        count: int | None = None,
        seed: int = 0,
        batch_size: int = 64,
        variant: str | None = None,
        device: str | None = None,
    ) -> _Measured:
        split, seed = split or "test", check_seed(seed)
        batch_size = positive("--batch-size", batch_size)
        count = None if count is None else positive("-n", count)
        pipe = CDRLPipeline(load_model(folder, variant=variant), name=folder.resolve().name)
        pipe.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        image = pipe.model.image
        data = load_images(source, split, fit=fit_of(pipe.model), channels=image.channels)
        data, _ = without_held_out(data, pipe.model)
        named = data_name(source) if Path(source).is_dir() else f"{data_name(source)}, {split}"
        return cls(pipe, data, shown(named, MAX_DATA - 1), seed, batch_size, count)


def calibrate_folder(folder: Path, *, score: str | None = None, **options: Any) -> str:
    """Write the reference statistics of a model's scores; returns a line about them.

    Args:
        folder: the model.
        score: the model's own score from now on, see `calibrate`.
        options: source, split, count, seed, batch_size, variant and device, as in `cdrl-eval`.

    Raises:
        CDRLError: see `cdrl_infer.scoring.calibration.calibrate`.
    """
    found = _Measured.of(folder, **options)
    images = choose(found.data.images, found.count, found.seed)
    with _replaced(folder / STATISTICS) as new:
        statistics = calibrate(
            found.pipe.model,
            images,
            data=found.name,
            seed=found.seed,
            score=score,
            batch_size=found.batch_size,
        )
        new.write_bytes(statistics.to_bytes())
    target = shown(folder / STATISTICS, LONGEST)
    own = "" if statistics.score is None else f", its score is {statistics.score}"
    return f"{target}: {statistics.count:,} images of {statistics.data}, seed {found.seed}{own}"


def normalise_folder(
    folder: Path,
    *,
    per_class: bool = False,
    chains: int = Effort.chains,
    moves: int = Effort.moves,
    **options: Any,
) -> str:
    """Write the normalisers of a model's levels; returns a table of them.

    Args:
        folder: the model.
        per_class: also for each value of each label.
        chains, moves: see `cdrl_infer.likelihood.telescope.Effort`.
        options: source, split, seed, batch_size, variant and device, as in `cdrl-eval`.

    Raises:
        CDRLError: see `cdrl_train.normalise.normalise`.
    """
    effort = Effort(chains=chains, moves=moves)
    found = _Measured.of(folder, **options)
    check_shape(found.pipe.model, found.pipe.name, found.data)
    with _replaced(folder / NORMALISERS) as new:
        normalisers = normalise(
            found.pipe,
            found.data,
            name=found.name,
            effort=replace(effort, batch_size=found.batch_size),
            per_class=per_class,
            seed=found.seed,
        )
        new.write_bytes(normalisers.to_bytes())
    target = shown(folder / NORMALISERS, LONGEST)
    return f"{target}: begun at {found.name}, seed {found.seed}\n{normalisers.text()}"


@contextmanager
def _replaced(target: Path) -> Iterator[Path]:
    try:
        with replaced_file(target) as new:
            yield new
    except OSError as error:
        raise CheckpointError(f"cannot write {target}: {error.strerror}") from error
