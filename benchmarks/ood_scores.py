"""The model's scores and heat maps for the benchmark, fitted to training images."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from ood_baselines import Detector
from ood_sets import Bytes
from torch import Tensor

from cdrl_infer.files import replaced_file
from cdrl_infer.pipeline import CDRLPipeline
from cdrl_infer.scoring import SCORES
from cdrl_infer.scoring.calibration import calibrate
from cdrl_infer.scoring.features import FeatureTable, NoisedImages, draw_noise
from cdrl_infer.scoring.reference import (
    STATISTICS,
    VERSION,
    ReferenceStatistics,
    read_statistics,
)
from cdrl_train.evaluation.cache import FeatureCache
from cdrl_train.evaluation.ood_metrics import Floats

SIZE = "compressed size"
ALARM = 0.05  # the p-value below which the calibration check calls an image anomalous


@dataclass(frozen=True)
class ModelScores:
    """Computes every score of the model and the compressed size of images."""

    pipe: CDRLPipeline
    statistics: ReferenceStatistics
    digest: str  # digest of the model and the statistics
    batch_size: int

    name: ClassVar[str] = "scores"
    columns: ClassVar[tuple[str, ...]] = (*SCORES, SIZE)

    def __call__(self, images: Bytes) -> Floats:
        """(N, C, H, W) -> (N, one for each of ``columns``)."""
        model, fit = self.pipe.model, self.statistics.fit
        noise = draw_noise(model.schedule, model.image.shape, self.statistics.seed)
        rows = []
        for part in torch.from_numpy(images).split(self.batch_size):
            features = FeatureTable.of(NoisedImages.of(model, part / 255, noise))
            columns = [score(features, fit=fit) for score in SCORES.values()]
            rows.append(torch.stack([*columns, features.compressed_size], dim=1))
        return torch.cat(rows).numpy()


@dataclass(frozen=True)
class HeatMaps:
    """Computes the model's heat maps of images."""

    pipe: CDRLPipeline
    digest: str  # digest of the model and the seed
    seed: int
    batch_size: int
    name: ClassVar[str] = "maps"

    def __call__(self, images: Bytes) -> NDArray[np.float32]:
        """(N, C, H, W) -> (N, H, W)."""
        output = self.pipe.score(
            torch.from_numpy(images),
            "energy",
            seed=self.seed,
            return_map=True,
            batch_size=self.batch_size,
            progress=False,
        )
        return torch.as_tensor(output.maps).numpy()


def false_alarms(scores: Floats, statistics: ReferenceStatistics) -> dict[str, tuple[float, float]]:
    """The share of images of the data with a p-value below `ALARM`, and its standard error, by score.

    The error accounts for the N images and for the reference images of the p-values.

    Args:
        scores: (N, …) from `ModelScores`.
        statistics: the reference statistics, which give the p-values.
    """
    found = {}
    for k, name in enumerate(SCORES):
        p = statistics.p_values(name, torch.from_numpy(scores[:, k].copy()))
        sizes = 1 / len(scores) + 1 / len(statistics.held_out)
        found[name] = (float((p < ALARM).double().mean()), (ALARM * (1 - ALARM) * sizes) ** 0.5)
    return found


def reference_statistics(
    pipe: CDRLPipeline,
    images: Tensor,
    data: str,
    seed: int,
    batch_size: int,
    cache: Path,
    digest: str,
) -> ReferenceStatistics:
    """The reference statistics of images (N, C, H, W), with a cache.

    The benchmark does not use the model's own statistics, because they may come from the test images.
    """
    sha = hashlib.sha256(images.numpy().tobytes()).hexdigest()[:12]
    folder = cache / f"statistics-{VERSION}-{digest}-{sha}-seed{seed}"
    found = read_statistics(folder, pipe.model.schedule.num_levels)
    if found is None:
        found = calibrate(
            pipe.model, images, data=data, seed=seed, batch_size=batch_size, progress=True
        )
        folder.mkdir(exist_ok=True)
        with replaced_file(folder / STATISTICS) as temporary:
            temporary.write_bytes(found.to_bytes())
    return found


def stored_ones(stored: ReferenceStatistics | None, used: ReferenceStatistics) -> str:
    """Whether the model's own statistics are the same, up to rounding."""
    if stored is None:
        return "none are stored with the model"
    same = (stored.seed, stored.count) == (used.seed, used.count) and all(
        torch.allclose(stored.tensors()[name], values, rtol=1e-3, atol=1e-3)
        for name, values in used.tensors().items()
    )
    return f"those stored with the model are {'the same' if same else 'others'}"


def statistics_digest(statistics: ReferenceStatistics) -> str:
    """12 hexadecimal digits of the content of the statistics, not of the bytes of the file."""
    sha = hashlib.sha256(f"{VERSION} {statistics.count} {statistics.seed}".encode())
    for name, tensor in sorted(statistics.tensors().items()):
        sha.update(name.encode() + tensor.numpy().tobytes())
    return sha.hexdigest()[:12]


def model_detectors(scores: ModelScores, cache: FeatureCache) -> list[Detector]:
    """Each score of the model, and the compressed size."""
    return [
        Detector(
            name,
            "unsupervised" if name == SIZE else "score",
            lambda images, k=k: cache.rows(scores, images)[:, k],
        )
        for k, name in enumerate(ModelScores.columns)
    ]
