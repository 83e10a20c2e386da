"""How well a score separates images of the data from outside images."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cdrl_infer.errors import InputError
from cdrl_infer.pipeline import CDRLPipeline
from cdrl_infer.processes import Arrays, Processes
from cdrl_train.data.sources import load_images
from cdrl_train.evaluation.cache import images_digest
from cdrl_train.evaluation.ood_metrics import (
    METRICS,
    resampled_separation,
    resamplings,
    separation,
)
from cdrl_train.evaluation.report import BOOTSTRAP, Result
from cdrl_train.evaluation.sampling import Bytes, RealImages

RESAMPLINGS = 1000


def generator(seed: int, name: str) -> np.random.Generator:
    """A generator for one set of images, so that its random choices do not depend on other sets."""
    return np.random.default_rng([seed, *name.encode()])


def name_and_source(text: str, expected: str) -> tuple[str, str]:
    """The parts of a text ``NAME=SOURCE``.

    Args:
        text: of the command line.
        expected: how the message of the error begins.

    Raises:
        InputError: a part is missing, or the name cannot be printed.
    """
    name, _, source = text.partition("=")
    if not name or not source or not name.isprintable():
        raise InputError(f"{expected}, got {text!r}")
    return name, source


def read_outside(
    sources: Sequence[str],
    shape: tuple[int, int, int],
    count: int,
    seed: int,
    taken: Collection[str] = (),
) -> dict[str, Bytes]:
    """Read sets of outside images, and choose ``count`` random test images (N, C, H, W) of each.

    Args:
        sources: a text ``NAME=DATA`` for each set.
        shape: (C, H, W) that the images must have.
        count: the largest number of images of a set.
        seed: the seed of the choice.
        taken: names that other sets already have.

    Returns:
        The images by name.

    Raises:
        InputError: a text is not ``NAME=DATA``, the data do not exist, the images have another shape, or
            two sets have the same name.
    """
    found: dict[str, Bytes] = {}
    for text in sources:
        name, source = name_and_source(text, "--outside must be NAME=DATA, such as mnist=mnist.npz")
        if name in taken or name in found:
            raise InputError(f"--outside: two sets have the name {name!r}; choose another name")
        images = load_images(source, "test", channels=shape[0]).images
        if tuple(images.shape[1:]) != shape:
            raise InputError(
                f"--outside {text}: expected images of the model's shape {shape} (C, H, W), "
                f"got {tuple(images.shape[1:])}"
            )
        some = generator(seed, name).permutation(len(images))[:count]
        found[name] = images[torch.from_numpy(np.sort(some))].numpy()
    return found


@dataclass(frozen=True)
class Separation:
    """AUROC, AUPR and FPR95 of a score for each set of outside images, with bootstrap errors.

    Args:
        pipe: the model.
        score: the name of the score.
        inside: images of the data.
        place: the name of these images in reports.
        outside: the sets of outside images, by name.
        batch_size: number of images at once.
    """

    pipe: CDRLPipeline
    score: str
    inside: RealImages
    place: str
    outside: Mapping[str, Bytes]
    batch_size: int

    def results(self, processes: Processes) -> list[Result]:
        """Three results for each set of outside images."""
        inside = self._scores(processes, self.inside.images(0), "data")
        results = []
        for name, images in self.outside.items():
            outside = self._scores(processes, images, name)
            values = separation(inside, outside)
            rng = generator(self.inside.seed, name)
            draws = [resamplings(len(one), RESAMPLINGS, rng) for one in (inside, outside)]
            errors = resampled_separation(inside, outside, *draws).std(0, ddof=1)
            results += [
                Result(
                    f"ood-{metric.lower()}",
                    f"{metric} against {name}",
                    (float(value),),
                    float(error),
                    BOOTSTRAP.format(RESAMPLINGS),
                    n=self.inside.count,
                    by=self.score,
                    depends_on=("score", "outside"),
                    args={"outside_images": len(outside)},
                )
                for metric, value, error in zip(METRICS, values, errors, strict=True)
            ]
        return results

    def _scores(self, processes: Processes, images: Bytes, name: str) -> NDArray[np.float64]:
        def score(start: int, stop: int) -> Arrays:
            part = torch.from_numpy(images[start:stop])
            found = self.pipe.score(part, self.score, batch_size=stop - start, progress=False)
            return {"scores": found.scores.numpy()}

        title = f"{self.score}, {name}"
        rows = processes.each_batch(len(images), self.batch_size, score, title)
        return rows["scores"].astype(np.float64)

    def conditions(self) -> dict[str, str]:
        """The score, the data and the sets, for readers."""
        statistics = self.pipe.model.statistics
        return {
            "score": (
                f"{self.score} (higher = more anomalous), seed of the noise "
                f"{0 if statistics is None else statistics.seed}, "
                + ("not calibrated" if statistics is None else f"calibrated on {statistics.data}")
                + f"; inside: {self.inside.count:,} images of {self.place}, chosen by seed "
                f"{self.inside.seed}"
            ),
            "outside": "; ".join(
                f"{name}: {len(images):,} images, {images_digest(images)[:12]}"
                for name, images in self.outside.items()
            ),
        }

    def settings(self) -> dict[str, Any]:
        """The score, for programs."""
        return {"score": self.score}
