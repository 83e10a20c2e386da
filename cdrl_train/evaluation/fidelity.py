"""Formulas that compare two sets of features: FID, KID, inception score, precision and recall."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cdrl_infer.errors import InputError, NumericalError
from cdrl_infer.optional import needed

KID_SUBSETS, KID_SUBSET = 100, 1000
IS_SPLITS = 10
NEIGHBOURS = 3
ROWS = 2000  # rows of a table of distances at a time
FEWEST = 2 * IS_SPLITS
SETTINGS: dict[str, dict[str, int | str]] = {
    "fid": {},
    "kid": {"kernel": "polynomial of degree 3"},
    "is": {"splits": IS_SPLITS},
    "precision": {"neighbours": NEIGHBOURS},
    "recall": {"neighbours": NEIGHBOURS},
}


def check_torch_fidelity() -> None:
    """InputError if torch-fidelity cannot be imported."""
    with needed("torch-fidelity", "kid, is and Inception need", "eval"):
        import torch_fidelity  # noqa: F401


def frechet(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """``‖μ_a - μ_b‖² + tr(Σ_a + Σ_b - 2 (Σ_a Σ_b)^½)`` in float64.

    On Inception's features it is the FID (Heusel et al. 2017). With ``Σ = FᵀF``, ``tr (Σ_a Σ_b)^½`` is
    the sum of the singular values of ``F_a F_bᵀ``. This needs no matrix root, so it also works for
    singular covariances, which occur with fewer rows than columns.

    Args:
        a: (N, D), N at least 2.
        b: (M, D), M at least 2.
    """
    x, y = _features(a, b, fewest=2)
    factors = [torch.linalg.qr((z - z.mean(0)) / (len(z) - 1) ** 0.5, mode="r").R for z in (x, y)]
    overlap = torch.linalg.svdvals(factors[0] @ factors[1].T).sum()
    traces = sum(factor.square().sum() for factor in factors)
    return float((x.mean(0) - y.mean(0)).square().sum() + traces - 2 * overlap)


def precision_recall(
    samples: NDArray[np.float32], reference: NDArray[np.float32], k: int = NEIGHBOURS
) -> tuple[float, float]:
    """Precision and recall: the share of samples in the manifold of the real images, and vice versa.

    Each point of a set has a ball that reaches to its k-th nearest neighbour in the set. The balls of a
    set form its manifold (Kynkäänniemi et al. 2019, equations 1 and 2). Both shares depend on the number
    of points and on the features.

    Args:
        samples: (N, D).
        reference: (M, D).
        k: the number of neighbours, less than N and M.
    """
    ours, real = _features(samples, reference, fewest=k + 1)
    return _share_among(ours, real, k), _share_among(real, ours, k)


def _share_among(points: Tensor, others: Tensor, k: int) -> float:
    # k + 1, because the nearest neighbour of a point is the point itself.
    parts = torch.split(others, ROWS)
    radii = torch.cat([torch.cdist(part, others).kthvalue(k + 1, dim=1).values for part in parts])
    among = [(torch.cdist(part, others) <= radii).any(1) for part in torch.split(points, ROWS)]
    return float(torch.cat(among).double().mean())


def kid_subset(n: int) -> int:
    """The size of the subsets of the KID: 1,000 images, or all n if there are fewer."""
    return min(n, KID_SUBSET)


def kernel_distance(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """The squared MMD with ``(x·y/D + 1)³``; the KID for features of Inception (Bińkowski et al. 2018).

    torch-fidelity computes the unbiased mean over 100 subsets of 1,000 images. If there are fewer images,
    it computes one value from all images.

    Args:
        a: (N, D).
        b: (M, D).
    """
    from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric

    size = kid_subset(min(len(a), len(b)))
    found = kid_features_to_metric(
        *_features(a, b, fewest=2),
        kid_subsets=KID_SUBSETS if size < max(len(a), len(b)) else 1,
        kid_subset_size=size,
        verbose=False,
    )
    return float(found[KEY_METRIC_KID_MEAN])


def inception_score(logits: NDArray[np.float32]) -> float:
    """``exp E KL(p(c|x) ‖ p(c))`` from torch-fidelity, as the mean of ten parts (Salimans et al. 2016).

    Args:
        logits: (N, L).
    """
    from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, isc_features_to_metric

    return float(isc_features_to_metric(_finite(logits), IS_SPLITS)[KEY_METRIC_ISC_MEAN])


def compare(
    samples: NDArray[np.float32],
    reference: NDArray[np.float32],
    feature_dim: int,
    metrics: Collection[str],
) -> dict[str, float]:
    """Compute the requested values by name: "fid", "kid", "is", "precision", "recall".

    Args:
        samples: (N, D + L) rows of an extractor.
        reference: (M, D + L) rows.
        feature_dim: D.
        metrics: names among "fid", "kid", "is" and "prc".

    Raises:
        NumericalError: a feature is not finite.
    """
    ours, real = samples[:, :feature_dim], reference[:, :feature_dim]
    found = {}
    if "fid" in metrics:
        found["fid"] = frechet(ours, real)
    if "kid" in metrics:
        found["kid"] = kernel_distance(ours, real)
    if "is" in metrics:
        found["is"] = inception_score(samples[:, feature_dim:])
    if "prc" in metrics:
        found["precision"], found["recall"] = precision_recall(ours, real)
    return found


def _features(a: NDArray[np.float32], b: NDArray[np.float32], fewest: int) -> tuple[Tensor, Tensor]:
    """Check both sets of features and convert them to float64."""
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < fewest:
        raise InputError(
            f"expected features (N, D) and (M, D), N and M at least {fewest}, got {a.shape} and "
            f"{b.shape}"
        )
    return _finite(a).double(), _finite(b).double()


def _finite(rows: NDArray[np.float32]) -> Tensor:
    if not np.isfinite(rows).all():
        raise NumericalError("features of the images are not finite; check the extractor's weights")
    return torch.from_numpy(np.ascontiguousarray(rows))
