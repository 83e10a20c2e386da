"""How well scores separate two sets of images, with bootstrap intervals; higher = more anomalous."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cdrl_infer.errors import NumericalError
from cdrl_infer.optional import needed

ACCEPTED = 0.95  # FPR95: the share of the data's images below the threshold
CONFIDENCE = 0.95
METRICS = ("AUROC", "AUPR", "FPR95")
CONVENTION = (
    "AUROC: the probability that an outside image scores higher than an image of the data; ties count "
    "half, 0.5 is chance. AUPR: average precision, where outside images are the positives. FPR95: the "
    "share of outside images below the threshold that 95 % of the data's images stay below (Liu et al. "
    "2020)"
)
Floats = NDArray[np.float64]


class Interval(NamedTuple):
    """A value and its 95 % bootstrap interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def sklearn_metrics() -> Any:
    """``sklearn.metrics``; InputError if it cannot be imported."""
    with needed("scikit-learn", "the metric ood needs", "eval"):
        from sklearn import metrics
    return metrics


def separation(inside: Floats, outside: Floats) -> Floats:
    """The `METRICS` (3,).

    Args:
        inside: (N,) scores of images of the data.
        outside: (M,) scores of outside images.

    Raises:
        NumericalError: a score is not finite.
    """
    metrics = sklearn_metrics()
    if not (np.isfinite(inside).all() and np.isfinite(outside).all()):
        raise NumericalError("expected finite scores, got NaN or infinity")
    positive = np.r_[np.zeros(len(inside)), np.ones(len(outside))]
    scores = np.r_[inside, outside]
    threshold = np.sort(inside)[math.ceil(ACCEPTED * len(inside)) - 1]
    return np.array(
        [
            metrics.roc_auc_score(positive, scores),
            metrics.average_precision_score(positive, scores),
            (outside <= threshold).mean(),
        ]
    )


def resamplings(count: int, repeats: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """(R, N) counts: how often each of N images occurs in each of R bootstrap samples."""
    return rng.multinomial(count, np.full(count, 1 / count), repeats)


def resampled_separation(
    inside: Floats, outside: Floats, inside_draws: NDArray[Any], outside_draws: NDArray[Any]
) -> Floats:
    """(R, 3) `separation` for R resamplings; ``inside_draws`` are (R, N), ``outside_draws`` (R, M)."""
    scores, place = np.unique(np.r_[inside, outside], return_inverse=True)
    order = np.argsort(place, kind="stable")
    starts = np.searchsorted(place[order], np.arange(len(scores)))
    # For each distinct score, ascending: how many of the resampled images have it.
    ours, others = (
        np.add.reduceat(draws[:, order], starts, axis=1, dtype=np.float64)
        for draws in (
            np.concatenate([inside_draws, np.zeros_like(outside_draws)], axis=1),
            np.concatenate([np.zeros_like(inside_draws), outside_draws], axis=1),
        )
    )
    n, m = len(inside), len(outside)
    ours_up_to, others_up_to = ours.cumsum(1), others.cumsum(1)
    auroc = (others * (ours_up_to - ours / 2)).sum(1) / (n * m)
    flagged = m - others_up_to + others
    precision = flagged / np.maximum(flagged + n - ours_up_to + ours, 1)
    aupr = (others * precision).sum(1) / m
    threshold = (ours_up_to >= math.ceil(ACCEPTED * n)).argmax(1)
    fpr = np.take_along_axis(others_up_to, threshold[:, None], axis=1)[:, 0] / m
    return np.stack([auroc, aupr, fpr], axis=1)


def interval(value: float, draws: Floats) -> Interval:
    """A value with the percentile interval of its R resampled values."""
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    return Interval(float(value), float(low), float(high))


def pixel_auroc(maps: NDArray[Any], masks: NDArray[np.bool_]) -> Floats:
    """(N,) pixel AUROC of each map: how well maps (N, H, W) separate the pixels inside the masks."""
    return np.array(
        [
            separation(map_[~mask].astype(float), map_[mask].astype(float))[0]
            for map_, mask in zip(maps, masks, strict=True)
        ]
    )
