"""Baselines: detectors without an energy; higher = more anomalous."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from ood_sets import Bytes
from torch import Tensor, nn

from cdrl_train.data.image_set import ImageSet
from cdrl_train.evaluation.cache import FeatureCache
from cdrl_train.evaluation.classifier import BATCH, Classifier
from cdrl_train.evaluation.ood_metrics import Floats

PYTORCH_OOD = "pytorch-ood "  # what its detectors' names begin with
RIDGE = 1e-4  # this share of the pixels' mean variance is added to every variance
EXPLAINED = 0.95  # the share of the variance that the kept principal components explain

Kind = Literal["score", "unsupervised", "labels"]


class Detector(NamedTuple):
    """A way to score images (N, C, H, W) -> (N,).

    Attributes:
        kind: a score of the model, a baseline that sees images alone, or one that sees labels too.
    """

    name: str
    kind: Kind
    score: Callable[[Bytes], Floats]


@dataclass(frozen=True)
class PixelGaussian:
    """A Gaussian fitted to the pixels in [0, 1], with its principal axes.

    Attributes:
        mean: (D,).
        axes: (D, D), one axis per column.
        variances: (D,) along the axes, in falling order.
    """

    mean: Floats
    axes: Floats
    variances: Floats

    @classmethod
    def fit(cls, images: Tensor) -> PixelGaussian:
        """Fit to images (N, C, H, W) uint8."""
        parts = [part.flatten(1) for part in images.split(5000)]
        mean = torch.stack([part.double().sum(0) for part in parts]).sum(0) / len(images)
        covariance = torch.zeros(len(mean), len(mean), dtype=torch.float64)
        for part in parts:
            centred = part.double() - mean
            covariance += centred.T @ centred / len(images)
        variances, axes = torch.linalg.eigh(covariance / 255**2)
        variances = variances.clamp(min=0).flip(0)
        return cls((mean / 255).numpy(), axes.flip(1).numpy(), variances.numpy())

    @property
    def components(self) -> int:
        """The number of axes that explain the share `EXPLAINED` of the variance."""
        shares = self.variances.cumsum() / self.variances.sum()
        return int((shares < EXPLAINED).sum()) + 1

    def distance(self, images: Bytes) -> Floats:
        """Squared Mahalanobis distance to the mean: minus twice the log-density, plus a constant."""
        ridge = RIDGE * self.variances.mean()
        squares: Floats = (self._coordinates(images) ** 2 / (self.variances + ridge)).sum(1)
        return squares

    def residual(self, images: Bytes) -> Floats:
        """Squared error of the reconstruction from the first `components`."""
        squares: Floats = (self._coordinates(images)[:, self.components :] ** 2).sum(1)
        return squares

    def _coordinates(self, images: Bytes) -> Floats:
        coordinates: Floats = (images.reshape(len(images), -1) / 255 - self.mean) @ self.axes
        return coordinates


@dataclass(frozen=True)
class ClassifierOutputs:
    """Computes the features and the logits of images: the inputs and outputs of the judge's last layer.

    Args:
        judge: a classifier whose network is a `SmallCNN`.
    """

    judge: Classifier
    name: ClassVar[str] = "classifier"

    @property
    def digest(self) -> str:
        """The digest of the judge."""
        return self.judge.digest

    @property
    def last(self) -> nn.Linear:
        """The last layer."""
        layer: nn.Linear = list(self.judge.network)[-1]
        return layer

    @torch.no_grad()
    def __call__(self, images: Bytes) -> NDArray[np.float32]:
        """(N, C, H, W) -> (N, D + K)."""
        rows = []
        for x in torch.from_numpy(images).split(BATCH):
            x = x / 255
            for layer in list(self.judge.network)[:-1]:
                x = layer(x)
            rows.append(torch.cat([x, self.last(x)], dim=1))
        return torch.cat(rows).numpy()

    def split(self, rows: NDArray[Any]) -> tuple[Tensor, Tensor]:
        """(N, D + K) -> features (N, D), logits (N, K)."""
        features, logits = torch.from_numpy(rows).tensor_split([-sum(self.judge.num_classes)], 1)
        return features, logits


def softmax_score(logits: Tensor, num_classes: tuple[int, ...]) -> Floats:
    """``-log max_k p(k)``, summed over attributes. It gives the order of the maximum softmax probability
    (Hendrycks & Gimpel 2017), but without ties near 1.
    """
    parts = logits.double().split(num_classes, dim=1)
    return -sum(part.log_softmax(1).amax(1) for part in parts).numpy()  # type: ignore[union-attr]


def energy_score(logits: Tensor, num_classes: tuple[int, ...]) -> Floats:
    """``-log Σ_k exp(logit_k)``, summed over attributes (Liu et al. 2020, T = 1)."""
    parts = logits.double().split(num_classes, dim=1)
    return -sum(part.logsumexp(1) for part in parts).numpy()  # type: ignore[union-attr]


def classifier_detectors(
    outputs: ClassifierOutputs, keep: Callable[[Bytes], NDArray[Any]]
) -> list[Detector]:
    """The detectors from the softmax and the energy of the judge.

    Args:
        outputs: computes the judge's outputs.
        keep: the same, with a cache.
    """
    classes = outputs.judge.num_classes
    return [
        Detector(name, "labels", lambda x, f=formula: f(outputs.split(keep(x))[1], classes))
        for name, formula in (
            ("classifier softmax", softmax_score),
            ("classifier energy", energy_score),
        )
    ]


def pytorch_ood_detectors(
    outputs: ClassifierOutputs,
    keep: Callable[[Bytes], NDArray[Any]],
    images: Tensor,
    labels: Tensor,
) -> list[Detector]:
    """pytorch-ood's detectors on the judge's features and logits, fitted to the training images.

    They have pytorch-ood's default settings. The list is empty if pytorch-ood cannot be imported.

    Args:
        outputs: computes the judge's outputs.
        keep: the same, with a cache.
        images: (N, C, H, W) uint8, the training images.
        labels: (N,) labels of the training images.
    """
    try:
        from pytorch_ood.detector import KLMatching, Mahalanobis, MaxLogit, ViM
    except Exception:  # missing, or its torchvision is of another torch
        return []
    last = outputs.last
    features, logits = outputs.split(outputs(images.numpy()))
    on_features = {
        "Mahalanobis": Mahalanobis(None),
        "ViM": ViM(None, features.shape[1] // 2, last.weight, last.bias),
    }
    on_logits = {"MaxLogit": MaxLogit(None), "KLMatching": KLMatching(None)}
    for detector in on_features.values():
        detector.fit_features(features, labels)
    on_logits["KLMatching"].fit_logits(logits, labels)

    def by_features(x: Bytes, detector: Any) -> Floats:
        return detector.predict_features(outputs.split(keep(x))[0]).double().numpy()

    def by_logits(x: Bytes, detector: Any) -> Floats:
        return detector.predict_logits(outputs.split(keep(x))[1]).double().numpy()

    return [
        Detector(PYTORCH_OOD + name, "labels", lambda x, d=detector, s=score: s(x, d))
        for group, score in ((on_features, by_features), (on_logits, by_logits))
        for name, detector in group.items()
    ]


def judge_detectors(judge: Classifier, train: ImageSet, cache: FeatureCache) -> list[Detector]:
    """The detectors of the judge; also pytorch-ood's if it is installed and there is one attribute."""
    outputs = ClassifierOutputs(judge)

    def keep(images: Bytes) -> NDArray[Any]:
        return cache.rows(outputs, images)

    found = classifier_detectors(outputs, keep)
    if train.labels is None or train.labels.shape[1] != 1:
        return found
    return found + pytorch_ood_detectors(outputs, keep, train.images, train.labels[:, 0])
