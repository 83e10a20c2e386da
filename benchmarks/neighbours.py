"""Precision and recall of generated images, by nearest neighbours among features."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

from cdrl_infer.errors import InputError

NEIGHBOURS = 3


class PrecisionRecall(NamedTuple):
    """Shares, in [0, 1]."""

    precision: float  # of generated images that lie among the real ones: fidelity
    recall: float  # of real images that lie among the generated ones: diversity


def precision_recall(
    real: NDArray[np.float32], generated: NDArray[np.float32], k: int = NEIGHBOURS
) -> PrecisionRecall:
    """Kynkäänniemi et al. 2019, equations 1 and 2.

    A point lies among a set if for one of the set's points it is no farther than that point's k-th
    nearest neighbour in the set, itself not counted. Both shares depend on the number of points and
    on the features: only those of one n and one extractor compare.

    Args:
        real: (N, D) features.
        generated: (M, D) features.
        k: neighbours; N and M must be greater.
    """
    if real.ndim != 2 or generated.ndim != 2 or real.shape[1] != generated.shape[1]:
        raise InputError(
            f"expected features (N, D) and (M, D), got {real.shape} and {generated.shape}"
        )
    if not 1 <= k < min(len(real), len(generated)):
        raise InputError(
            f"expected k of at least 1 and fewer than the {min(len(real), len(generated))} features "
            f"of a set, got {k}"
        )
    distances = cdist(real, generated)
    among_real = (distances <= _radii(real, k)[:, None]).any(0)
    among_generated = (distances <= _radii(generated, k)[None]).any(1)
    return PrecisionRecall(float(among_real.mean()), float(among_generated.mean()))


def _radii(points: NDArray[np.float32], k: int) -> NDArray[np.float64]:
    """(N,) distance of each point to its k-th nearest; the nearest of all, at 0, is itself."""
    radii: NDArray[np.float64] = np.partition(cdist(points, points), k, axis=1)[:, k]
    return radii
