"""An outlier detector with the interface of scikit-learn."""

from __future__ import annotations

import math
import os
from dataclasses import replace
from typing import Any, get_args

import numpy as np
from PIL import Image
from torch import Tensor

from cdrl_infer.arguments import check_choice, check_seed, number, positive
from cdrl_infer.device import Precision, resolved_precision
from cdrl_infer.errors import ConfigError, InputError
from cdrl_infer.images import read_images
from cdrl_infer.model import CDRLModel, ImageShape
from cdrl_infer.optional import needed
from cdrl_infer.scoring.reference import check_share, fewest_images, measure
from cdrl_infer.scoring.registry import SCORES
from cdrl_infer.scoring.scorer import Scorer, default_score

with needed("scikit-learn", "CDRLDetector needs", "score"):
    from sklearn.base import BaseEstimator, OutlierMixin
    from sklearn.utils.validation import check_is_fitted, validate_data


class CDRLDetector(OutlierMixin, BaseEstimator):  # type: ignore[misc]
    """An outlier detector of scikit-learn. ``fit`` calibrates it, and `Scorer.score` gives the scores.

    ::

        detector = CDRLDetector(pipe, contamination=0.05).fit(X)
        detector.predict(others)  # -1 for odd images, else 1

    The images X are rows of pixels (n, H * W * C), an array (n, H, W) or (n, H, W, C), a tensor
    (n, C, H, W), or a list of pictures or arrays, as uint8 or as floats in [0, 1].

    Args:
        pipe: a `CDRLPipeline` or a `Scorer`. The detector does not change it. It uses one
            thing of its calibration, the name of the model's own score.
        score_name: a name in `cdrl_infer.scoring.SCORES`; None: the model's own, see
            `cdrl_infer.scoring.scorer.default_score`.
        contamination: the share of in-distribution images that may count as outliers, in (0, 0.5]. One
            half of X fits the scores and the other half sets the threshold, so the threshold holds for
            new images. The share of outliers in X itself is near this share.
        seed: the seed of the noise and of the halves.
        precision: that of `Scorer.score`; the fit computes in float32.
        batch_size: number of images to score at once.

    Attributes:
        statistics_: `ReferenceStatistics` of X.
        precision_: that of the scores; "auto" is decided once.
        scorer_: the `Scorer` with these statistics and the networks of ``pipe``.
        offset_: minus the threshold: ``decision_function = score_samples - offset_``.
        n_features_in_: H * W * C.
        feature_names_in_: the names of the columns, if ``fit`` saw a table with names.
    """

    def __init__(
        self,
        pipe: Any,
        *,
        score_name: str | None = None,
        contamination: float = 0.1,
        seed: int = 0,
        precision: Precision = "float32",
        batch_size: int = 64,
    ) -> None:
        self.pipe = pipe
        self.score_name = score_name
        self.contamination = contamination
        self.seed = seed
        self.precision = precision
        self.batch_size = batch_size

    def fit(self, X: Any, y: Any = None) -> CDRLDetector:
        """Calibrate on in-distribution images; returns self.

        Args:
            X: the images, at least `fewest_images` (72 for six levels).
            y: ignored.

        Raises:
            InputError: a parameter is invalid, there are too few images, or the images have another size,
                another type or values out of range.
            NumericalError: a feature is not finite.
        """
        model = getattr(self.pipe, "model", None)
        if not isinstance(model, CDRLModel):
            raise InputError(f"expected a CDRLPipeline or a Scorer, got {self.pipe!r}")
        if self.score_name is not None:
            check_choice("score_name", self.score_name, tuple(SCORES))
        check_choice("precision", self.precision, get_args(Precision))
        contamination = number("contamination", self.contamination)
        if not 0 < contamination <= 0.5:
            raise InputError(f"contamination must lie in (0, 0.5], got {contamination:g}")
        seed, batch_size = check_seed(self.seed), positive("batch_size", self.batch_size)
        images = self._images(X, model, fitting=True)
        check_share(contamination, len(images) // 2)
        self.score_ = default_score(model) if self.score_name is None else self.score_name
        statistics = measure(
            model, images, data="CDRLDetector.fit", seed=seed, batch_size=batch_size
        )
        self.precision_ = resolved_precision(self.precision, self.pipe.device)
        self.statistics_ = statistics
        self.offset_ = -statistics.threshold(self.score_, contamination)
        self.scorer_ = Scorer(replace(model, statistics=statistics), self.pipe.name)
        return self

    def score_samples(self, X: Any) -> np.ndarray:
        """Minus the scores of `Scorer.score`, (n,) float64; lower = more anomalous.

        Raises:
            InputError: the images have another size, another type or values out of range.
            ConfigError: the weights of the networks have changed since ``fit``.
            NumericalError: a score is not finite.
            sklearn.exceptions.NotFittedError: ``fit`` was not called.
        """
        check_is_fitted(self, "scorer_")
        images = self._images(X, self.scorer_.model)
        try:
            found = self.scorer_.score(
                images,
                self.score_,
                precision=self.precision_,
                batch_size=self.batch_size,
                progress=False,
            )
        except ConfigError:
            raise ConfigError(
                "the weights of the model have changed since the detector was fitted; fit it again"
            ) from None
        return np.asarray(-found.scores)

    def decision_function(self, X: Any) -> np.ndarray:
        """``score_samples - offset_``, (n,) float64, negative for outliers; see `score_samples`."""
        return np.asarray(self.score_samples(X) - self.offset_)

    def predict(self, X: Any) -> np.ndarray:
        """(n,) integers, -1 for outliers and 1 for other images; see `score_samples`."""
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
    """Whether X holds images. Otherwise scikit-learn reads it as rows, and refuses what is no table."""
    first = X[0] if isinstance(X, (list, tuple)) and X else None
    return (
        isinstance(first, (Image.Image, str, os.PathLike))
        or getattr(first, "ndim", 0) > 1
        or getattr(X, "ndim", 0) > 2
    )
