"""Figures of two sets of features: torch-fidelity's, with its settings."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from cdrl_infer.errors import InputError, NumericalError

if TYPE_CHECKING:
    from cdrl_train.evaluation.extractors import Extractor

KID_SUBSETS, KID_SUBSET = 100, 1000
IS_SPLITS = 10
NEIGHBOURS = 3
PAIRS = 2000  # rows of a table of distances at a time
FEWEST = 2 * IS_SPLITS
SETTINGS: dict[str, dict[str, int | str]] = {
    "fid": {},
    "kid": {"kernel": "polynomial of degree 3"},
    "is": {"splits": IS_SPLITS},
    "prc": {"neighbours": NEIGHBOURS},
}


def check_torch_fidelity() -> None:
    """InputError where it is not installed."""
    try:
        import torch_fidelity  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"torch-fidelity is needed for fid, kid, is and prc ({error}): pip install 'cdrl[eval]'"
        ) from error


def kid_subset(n: int) -> int:
    """How many images each of the KID's subsets has: 1,000, or all n where there are fewer."""
    return min(n, KID_SUBSET)


def inception_score(logits: NDArray[np.float32]) -> float:
    """``exp E KL(p(c|x) ‖ p(c))``, the mean of ten parts (Salimans et al. 2016).

    Args:
        logits: (N, L).
    """
    from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, isc_features_to_metric

    return float(isc_features_to_metric(_finite(logits), IS_SPLITS)[KEY_METRIC_ISC_MEAN])


def frechet(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """``‖μ_a - μ_b‖² + tr(Σ_a + Σ_b - 2 (Σ_a Σ_b)^½)``, the FID on Inception's (Heusel et al. 2017).

    Args:
        a: (N, D).
        b: (M, D).
    """
    from torch_fidelity.metric_fid import (
        KEY_METRIC_FID,
        fid_features_to_statistics,
        fid_statistics_to_metric,
    )

    statistics = [fid_features_to_statistics(_finite(rows).double()) for rows in (a, b)]
    return float(fid_statistics_to_metric(*statistics, verbose=False)[KEY_METRIC_FID])


def kernel_distance(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """The squared MMD with ``(x·y/D + 1)³``, the KID on Inception's (Bińkowski et al. 2018); unbiased.

    The mean of 100 subsets of 1,000; of fewer images it is the one of all.

    Args:
        a: (N, D).
        b: (M, D).
    """
    from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric

    size = kid_subset(min(len(a), len(b)))
    found = kid_features_to_metric(
        _finite(a).double(),
        _finite(b).double(),
        kid_subsets=KID_SUBSETS if size < max(len(a), len(b)) else 1,
        kid_subset_size=size,
        verbose=False,
    )
    return float(found[KEY_METRIC_KID_MEAN])


def precision_recall(
    samples: NDArray[np.float32], reference: NDArray[np.float32]
) -> tuple[float, float]:
    """Shares of samples among the real images, and of these among the samples (Kynkäänniemi et al. 2019).

    Args:
        samples: (N, D).
        reference: (M, D).
    """
    from torch_fidelity.metric_prc import (
        KEY_METRIC_PRECISION,
        KEY_METRIC_RECALL,
        prc_features_to_metric,
    )

    found = prc_features_to_metric(
        _finite(samples),
        _finite(reference),
        prc_neighborhood=NEIGHBOURS,
        prc_batch_size=PAIRS,
        save_cpu_ram=True,
        verbose=False,
    )
    return float(found[KEY_METRIC_PRECISION]), float(found[KEY_METRIC_RECALL])


def compare(
    samples: NDArray[np.float32],
    reference: NDArray[np.float32],
    extractor: Extractor,
    metrics: Collection[str],
) -> dict[str, float]:
    """The figures that are asked, by name: "fid", "kid", "is", "precision", "recall".

    Args:
        samples: (N, D + L) rows of the extractor.
        reference: (M, D + L).
        extractor: what they are of.
        metrics: of "fid", "kid", "is" and "prc".

    Raises:
        NumericalError: features that are not finite.
    """
    ours, real = (rows[:, : extractor.feature_dim] for rows in (samples, reference))
    found = {}
    if "fid" in metrics:
        found["fid"] = frechet(ours, real)
    if "kid" in metrics:
        found["kid"] = kernel_distance(ours, real)
    if "is" in metrics:
        found["is"] = inception_score(samples[:, extractor.feature_dim :])
    if "prc" in metrics:
        found["precision"], found["recall"] = precision_recall(ours, real)
    return found


def _finite(rows: NDArray[np.float32]) -> torch.Tensor:
    if not np.isfinite(rows).all():
        raise NumericalError("features of the images are not finite; check the extractor's weights")
    return torch.from_numpy(np.ascontiguousarray(rows))
