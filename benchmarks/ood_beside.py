"""A second model of the same data: its scores, and the two models together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from ood_baselines import Detector
from ood_scores import ModelScores
from ood_sets import Bytes
from torch import Tensor

from cdrl_infer.networks.autoencoder import SphereNetwork
from cdrl_infer.scoring.scorer import default_score
from cdrl_train.evaluation.cache import FeatureCache
from cdrl_train.evaluation.ood_metrics import Floats


@torch.no_grad()
def in_batches(of: Callable[[Tensor], Tensor], images: Tensor, batch_size: int) -> Floats:
    """Numbers (N,) of images (N, C, H, W) uint8 by a function of images in [-1, 1], on their device."""
    parts = torch.split(images, batch_size)
    return torch.cat([of(part / 127.5 - 1).double().cpu() for part in parts]).numpy()


@dataclass(frozen=True)
class Reconstruction:
    """Computes the errors of reconstruction of a model's autoencoder.

    Args:
        network: the autoencoder.
        digest: the digest of its model.
        batch_size: images at once.
    """

    network: SphereNetwork
    digest: str
    batch_size: int
    name: ClassVar[str] = "reconstruction"

    def __call__(self, images: Bytes) -> Floats:
        """(N, C, H, W) -> (N,)."""
        device = next(self.network.parameters()).device
        pixels = torch.from_numpy(images).to(device)
        return in_batches(self.network.errors, pixels, self.batch_size)


def together(p: Floats, q: Floats) -> Floats:
    """``-log p - log q`` of the p-values of two scores of the same images (N,): Fisher's method, halved.

    Both count the same, whatever their units, and each counts only upwards: an image that is quite usual
    for one score takes nothing away from what the other has found.
    """
    return -np.log(p) - np.log(q)


def second_model(
    name: str, first: ModelScores, score: str, second: ModelScores, cache: FeatureCache
) -> list[Detector]:
    """The detectors of a second model: its own score, reconstruction, and both models `together`.

    Args:
        name: what the second model is called.
        first: the scores of the first model.
        score: the score of the first model to join.
        second: the scores of the second model, fitted to the same images.
        cache: keeps what both compute.
    """
    own = default_score(second.pipe.model)

    def p_values(scores: ModelScores, of: str, images: Bytes) -> Floats:
        found = torch.from_numpy(_column(scores, of, images, cache).copy())
        return scores.statistics.p_values(of, found).numpy()

    def both(images: Bytes) -> Floats:
        return together(p_values(first, score, images), p_values(second, own, images))

    detectors = [Detector(f"{name} {own}", "score", lambda x: _column(second, own, x, cache))]
    network = second.pipe.model.initializer
    if isinstance(network, SphereNetwork):
        errors = Reconstruction(network, second.digest, second.batch_size)
        detectors.append(
            Detector(f"{name} reconstruction", "score", lambda x: cache.rows(errors, x))
        )
    return [*detectors, Detector(f"{score} and {name}", "score", both)]


def _column(scores: ModelScores, of: str, images: Bytes, cache: FeatureCache) -> Floats:
    column: Floats = cache.rows(scores, images)[:, ModelScores.columns.index(of)]
    return column
