"""Scores by name: (B,) numbers of a batch of images, higher = more anomalous.

The energy alone is a poor score: images that are simpler than the data have a low one (Nalisnick et
al. 2019, "Do Deep Generative Models Know What They Don't Know?").
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from cdrl_infer.errors import InputError
from cdrl_infer.scoring.features import NoisedImages

RIDGE = 1e-6  # of each variance, added to it


class Gaussian:
    """``N(μ, C)`` of features of in-distribution images.

    Args:
        mean: (F,) float64.
        covariance: (F, F) float64.

    Raises:
        InputError: a covariance that is not positive definite.
    """

    def __init__(self, mean: Tensor, covariance: Tensor) -> None:
        self.mean = mean
        self.covariance = covariance
        self.deviation = covariance.diagonal().sqrt()
        scaled = covariance / self.deviation / self.deviation[:, None]
        ridge = RIDGE * torch.eye(len(mean), dtype=mean.dtype)
        self._root, failed = torch.linalg.cholesky_ex(scaled + ridge)
        if failed or not bool(self._root.isfinite().all()):
            raise InputError(
                "expected features that vary independently of each other, got a covariance that is "
                "not positive definite; calibrate with more images, or with others"
            )

    def part(self, start: int, stop: int) -> Gaussian:
        """The marginal distribution of some of the features."""
        chosen = slice(start, stop)
        return Gaussian(self.mean[chosen], self.covariance[chosen, chosen])

    def distance(self, features: Tensor) -> Tensor:
        """``√((f - μ)ᵀ C⁻¹ (f - μ))`` (Mahalanobis 1936), (B, F) -> (B,)."""
        scaled = (features - self.mean) / self.deviation
        white: Tensor = torch.linalg.solve_triangular(self._root, scaled.T, upper=False)
        return white.square().sum(0).sqrt()


class Score(ABC):
    """A number per image, higher = more anomalous.

    Attributes:
        levelled: whether it can be taken at another level than the lowest, t = 1.
    """

    levelled: ClassVar[bool] = False

    @abstractmethod
    def __call__(self, images: NoisedImages, level: int = 1, fit: Gaussian | None = None) -> Tensor:
        """(B,) float64.

        Args:
            images: the batch.
            level: t = 1 … T, 1 being the lowest noise.
            fit: of the features of in-distribution images; only a `FittedScore` looks at it.
        """


class FittedScore(Score):
    """A score that compares with in-distribution images."""

    def __call__(self, images: NoisedImages, level: int = 1, fit: Gaussian | None = None) -> Tensor:
        """As `Score`; InputError without a fit."""
        if fit is None:
            raise InputError("expected the fit of reference statistics, got none; calibrate first")
        return self.compared(images, fit)

    @abstractmethod
    def compared(self, images: NoisedImages, fit: Gaussian) -> Tensor:
        """(B,) float64."""


class EnergyScore(Score):
    """``E(y_t)``: the unnormalised negative log-density, at the lowest level unless another is asked.

    Zhu et al. 2024 (CDRL), section 4.4; Du & Mordatch 2019.
    """

    levelled = True

    def __call__(self, images: NoisedImages, level: int = 1, fit: Gaussian | None = None) -> Tensor:
        """As `Score`."""
        return images.energy(level)


class ScoreNorm(Score):
    """``‖ m_t σ̄_{t-1} ∇_y E(y_t) ‖``: how steep the energy is, in units of the noise.

    Grathwohl et al. 2020 (JEM), "approximate mass".
    """

    levelled = True

    def __call__(self, images: NoisedImages, level: int = 1, fit: Gaussian | None = None) -> Tensor:
        """As `Score`."""
        return images.score_norm(level).sqrt()


class MultiLevel(FittedScore):
    """``√((E - μ)ᵀ C⁻¹ (E - μ))`` with ``E = (E_1 … E_T)`` and μ, C those of in-distribution images.

    Mahmood et al. 2021 (MSMA) with energies in place of score norms.
    """

    def compared(self, images: NoisedImages, fit: Gaussian) -> Tensor:
        """As `Score`."""
        return fit.part(0, images.num_levels).distance(images.energies)


class Typicality(FittedScore):
    """``|E_1 - μ_1| / √C_11``: an energy that is too low is as odd as one too high.

    Nalisnick et al. 2019, "Detecting Out-of-Distribution Inputs … Using Typicality", for one image.
    """

    def compared(self, images: NoisedImages, fit: Gaussian) -> Tensor:
        """As `Score`."""
        return (images.energy(1) - fit.mean[0]).abs() / fit.deviation[0]


class Complexity(Score):
    """``E_1 - L``, L the nats of the image as a PNG file: simple images have low energies anyway.

    Serrà et al. 2020, "Input Complexity and Out-of-distribution Detection with Likelihood-based
    Generative Models".
    """

    def __call__(self, images: NoisedImages, level: int = 1, fit: Gaussian | None = None) -> Tensor:
        """As `Score`."""
        return images.energy(1) - images.compressed_size()


class InitializerScore(FittedScore):
    """``√((i - μ)ᵀ C⁻¹ (i - μ))`` with ``i = (log I_1 … log I_T)``: the proposals' errors.

    How far the initializer's mean is from that of the forward process given the image, over the
    levels, as Graham et al. 2023 ("Denoising Diffusion Models for Out-of-Distribution Detection") do
    with reconstructions. An error that is too small is odd as well: that of an empty image.
    """

    def compared(self, images: NoisedImages, fit: Gaussian) -> Tensor:
        """As `Score`."""
        count = images.num_levels
        return fit.part(2 * count, 3 * count).distance(images.log_initializer_errors)


class Combined(FittedScore):
    """``√((f - μ)ᵀ C⁻¹ (f - μ))`` with ``f = (E_1 … E_T, log D_1 … log D_T, log I_1 … log I_T)``.

    Energies, denoising errors and proposal errors, each against what in-distribution images have,
    and against each other. Mahmood et al. 2021 (MSMA) with more features.
    """

    def compared(self, images: NoisedImages, fit: Gaussian) -> Tensor:
        """As `Score`."""
        return fit.distance(images.all)


SCORES: dict[str, Score] = {
    "combined": Combined(),
    "energy": EnergyScore(),
    "score-norm": ScoreNorm(),
    "multi-level": MultiLevel(),
    "typicality": Typicality(),
    "complexity": Complexity(),
    "initializer": InitializerScore(),
}
