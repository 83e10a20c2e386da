"""Out-of-distribution scores as an outlier detector of scikit-learn."""

from __future__ import annotations

import math
import os
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from cdrl_infer.arguments import check_choice, check_seed, number, positive
from cdrl_infer.errors import ConfigError, InputError
from cdrl_infer.images import read_images
from cdrl_infer.model import CDRLModel, ImageShape
from cdrl_infer.optional import needed
from cdrl_infer.scoring.reference import check_share, fewest_images, measure
from cdrl_infer.scoring.registry import SCORES
from cdrl_infer.scoring.scorer import Scorer

with needed("scikit-learn", "CDRLDetector", "score"):
    from sklearn.base import BaseEstimator, OutlierMixin
    from sklearn.utils.validation import check_is_fitted, validate_data


class CDRLDetector(OutlierMixin, BaseEstimator):  # type: ignore[misc]
    """An outlier detector of scikit-learn: `Scorer.score`, calibrated by ``fit``.

    ::

        detector = CDRLDetector(pipe, contamination=0.05).fit(X)
        detector.predict(others)  # -1 for odd images, else 1

    Images, called X here, are rows of pixels (n, H * W * C), an array (n, H, W) or (n, H, W, C), a tensor
    (n, C, H, W), or a list of pictures or arrays; uint8, or floats in [0, 1].

    Args:
        pipe: a `CDRLPipeline` or a `Scorer`. It is not changed, and its own calibration is not used.
        score_name: a name in `cdrl_infer.scoring.SCORES`.
        contamination: the share of in-distribution images that may be called outliers, in (0, 0.5]. The
            threshold is set on the half of X that the scores are not fitted to, so it holds for new
            images. In X itself about that share are outliers, not exactly.
        seed: the seed of the noise and of the halves.
        batch_size: images scored at once.

    Attributes:
        statistics_: `ReferenceStatistics` of X.
        scorer_: the `Scorer` that has them; its networks are those of ``pipe``.
        offset_: minus the threshold: ``decision_function = score_samples - offset_``.
        n_features_in_: H * W * C.
        feature_names_in_: the names of the columns, if ``fit`` was given a table that has some.
    """

    def __init__(
        self,
        pipe: Any,
        *,
        score_name: str = "combined",
        contamination: float = 0.1,
        seed: int = 0,
        batch_size: int = 64,
    ) -> None:
        self.pipe = pipe
        self.score_name = score_name
        self.contamination = contamination
        self.seed = seed
        self.batch_size = batch_size

    def fit(self, X: Any, y: Any = None) -> CDRLDetector:
        """Calibrate on in-distribution images; returns self.

        Args:
            X: at least `fewest_images` of them (72 for six levels).
            y: ignored.

        Raises:
            InputError: a parameter that cannot be right, or images that are too few, of another size or
                type, or with values out of range.
            NumericalError: features that are not finite.
        """
        model = getattr(self.pipe, "model", None)
        if not isinstance(model, CDRLModel):
            raise InputError(f"expected a CDRLPipeline or a Scorer, got {self.pipe!r}")
        check_choice("score_name", self.score_name, tuple(SCORES))
        contamination = number("contamination", self.contamination)
        if not 0 < contamination <= 0.5:
            raise InputError(f"contamination must lie in (0, 0.5], got {contamination:g}")
        seed, batch_size = check_seed(self.seed), positive("batch_size", self.batch_size)
        images = self._images(X, model, fitting=True)
        check_share(contamination, len(images) // 2)
        statistics = measure(
            model, images, data="CDRLDetector.fit", seed=seed, batch_size=batch_size
        )
        self.statistics_ = statistics
        self.offset_ = -statistics.threshold(self.score_name, contamination)
        self.scorer_ = Scorer(replace(model, statistics=statistics), self.pipe.name)
        return self

    def score_samples(self, X: Any) -> np.ndarray:
        """(n,) float64, lower = more anomalous: minus the scores of `Scorer.score`.

        Raises:
            InputError: images of another size or type, or with values out of range.
            ConfigError: the weights of the networks have changed since ``fit``.
            NumericalError: a score that is not finite.
            sklearn.exceptions.NotFittedError: before ``fit``.
        """
        check_is_fitted(self, "scorer_")
        images = self._images(X, self.scorer_.model)
        try:
            found = self.scorer_.score(
                images, self.score_name, batch_size=self.batch_size, progress=False
            )
        except ConfigError:
            raise ConfigError(
                "expected the weights that the detector was fitted with, found others; fit it again"
            ) from None
        return np.asarray(-found.scores)

    def decision_function(self, X: Any) -> np.ndarray:
        """(n,) float64, negative for outliers; see `score_samples`."""
        return np.asarray(self.score_samples(X) - self.offset_)

    def predict(self, X: Any) -> np.ndarray:
        """(n,) integers, -1 for outliers and 1 for all others; see `score_samples`."""
        return np.where(self.decision_function(X) < 0, -1, 1)

    def _images(self, X: Any, model: CDRLModel, *, fitting: bool = False) -> Tensor:
        """(n, C, H, W) float32 in [0, 1]."""
        if not _are_pictures(X):
            fewest = fewest_images(model.schedule.num_levels) if fitting else 1
            kinds = [np.float64, np.float32, np.uint8]  # other types become the first
            table = X.numpy(force=True) if isinstance(X, Tensor) else X
            rows = validate_data(self, table, reset=fitting, dtype=kinds, ensure_min_samples=fewest)
            X = self._unflatten(rows, model.image)
        elif fitting:
            self.n_features_in_ = math.prod(model.image.shape)
        if isinstance(X, np.ndarray) and X.ndim == 3:
            X = X[..., None]
        return read_images(X, model.image.shape)

    def _unflatten(self, rows: np.ndarray, image: ImageShape) -> np.ndarray:
        """(n, H * W * C) -> (n, H, W, C)."""
        shape = image.height, image.width, image.channels
        if rows.shape[1] != math.prod(shape):
            raise InputError(
                f"expected rows of {math.prod(shape)} values, the pixels of {image.height} x "
                f"{image.width} x {image.channels} images (H x W x C), got {rows.shape[1]}"
            )
        return rows.reshape(-1, *shape)


def _are_pictures(X: Any) -> bool:
    """Whether X holds images rather than rows; scikit-learn refuses everything else well."""
    first = X[0] if isinstance(X, (list, tuple)) and X else None
    return (
        isinstance(first, (Image.Image, str, os.PathLike))
        or getattr(first, "ndim", 0) > 1
        or getattr(X, "ndim", 0) > 2
    )
