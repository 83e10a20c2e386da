"""The scores: one number per image, higher = more anomalous.

The energy alone is a poor score, because images that are simpler than the data have a low energy
(Nalisnick et al. 2019, "Do Deep Generative Models Know What They Don't Know?").
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple

from torch import Tensor

from cdrl_infer.errors import InputError
from cdrl_infer.scoring.features import Features, FeatureTable
from cdrl_infer.scoring.gaussian import Gaussian


class Fit(NamedTuple):
    """In-distribution images to compare with. p-values come from other in-distribution images."""

    features: FeatureTable
    gaussian: Gaussian  # the Gaussian of `Features.all`


class Score(ABC):
    """A number per image, higher = more anomalous, as a function of the image's features.

    A calibration stores features, so a new score has p-values and thresholds at once::

        class Steepness(Score):
            levelled = True

            def __call__(self, features, level=1, fit=None):
                return features.log_score_errors[:, level - 1]

        SCORES.register("steepness", Steepness())  # then pipe.score(images, "steepness")

    Attributes:
        levelled: whether users may choose another transition than t = 1.
    """

    levelled: ClassVar[bool] = False

    @abstractmethod
    def __call__(self, features: Features, level: int = 1, fit: Fit | None = None) -> Tensor:
        """The scores (B,), float64.

        Args:
            features: the features of the batch.
            level: the transition t = 1 … T; 1 has the least noise.
            fit: in-distribution images to compare with; a `FittedScore` needs them.
        """


class FittedScore(Score):
    """A score that needs in-distribution images."""

    def __call__(self, features: Features, level: int = 1, fit: Fit | None = None) -> Tensor:
        """The scores (B,), float64; raise `InputError` without a fit."""
        if fit is None:
            raise InputError(
                "expected in-distribution images to compare with, got none; calibrate first"
            )
        return self.compared(features, fit)

    @abstractmethod
    def compared(self, features: Features, fit: Fit) -> Tensor:
        """The scores (B,), float64."""


class EnergyScore(Score):
    """``E(y_t)``: the unnormalised negative log-density.

    Zhu et al. 2024 (CDRL), section 4.4; Du & Mordatch 2019.
    """

    levelled = True

    def __call__(self, features: Features, level: int = 1, fit: Fit | None = None) -> Tensor:
        """(B,) nats."""
        return features.energy(level)


class ScoreNorm(Score):
    """``‖ m_t σ̄_{t-1} ∇_y E(y_t) ‖``: how steep the energy is, in units of the noise.

    Grathwohl et al. 2020 (JEM), "approximate mass".
    """

    levelled = True

    def __call__(self, features: Features, level: int = 1, fit: Fit | None = None) -> Tensor:
        """(B,), at least 0."""
        return features.score_norm(level).sqrt()


class MultiLevel(FittedScore):
    """``√((E - μ)ᵀ C⁻¹ (E - μ))`` with ``E = (E_1 … E_T)``; μ and C are from in-distribution images.

    Mahmood et al. 2021 (MSMA), but with energies instead of score norms.
    """

    def compared(self, features: Features, fit: Fit) -> Tensor:
        """(B,), at least 0."""
        return fit.gaussian.part(range(features.num_levels)).distance(features.energies)


class Typicality(FittedScore):
    """``|E_1 - μ_1| / √C_11``: energies that are too low are as odd as energies that are too high.

    Nalisnick et al. 2019, "Detecting Out-of-Distribution Inputs … Using Typicality", for one image.
    """

    def compared(self, features: Features, fit: Fit) -> Tensor:
        """(B,) standard deviations."""
        return (features.energy(1) - fit.gaussian.mean[0]).abs() / fit.gaussian.deviation[0]


class Complexity(Score):
    """``E_1 - L``; L is the size of the image as a PNG file, in nats. Simple images have low energies.

    Serrà et al. 2020, "Input Complexity and Out-of-distribution Detection with Likelihood-based
    Generative Models".
    """

    def __call__(self, features: Features, level: int = 1, fit: Fit | None = None) -> Tensor:
        """(B,) nats."""
        return features.energy(1) - features.compressed_size


class InitializerScore(FittedScore):
    """``√((i - μ)ᵀ C⁻¹ (i - μ))`` with ``i = (log I_1 … log I_T)``: the errors of the proposals.

    The error I_t compares the initializer's mean with the mean of the forward process given the image.
    Graham et al. 2023 ("Denoising Diffusion Models for Out-of-Distribution Detection") use the errors of
    reconstructions instead. Errors that are too small are odd as well: an empty image has small errors.
    """

    def compared(self, features: Features, fit: Fit) -> Tensor:
        """(B,), at least 0."""
        count = features.num_levels
        part = fit.gaussian.part(range(2 * count, 3 * count))
        return part.distance(features.log_initializer_errors)


class Combined(FittedScore):
    """``√((f - μ)ᵀ C⁻¹ (f - μ))`` with ``f = (E_1 … E_T, log D_1 … log D_T, log I_1 … log I_T)``.

    It compares energies, denoising errors and proposal errors with those of in-distribution images.
    Mahmood et al. 2021 (MSMA), but with more features.

    Args:
        every: use the transitions 1, 1 + every, … only; the cost falls with their number.
    """

    def __init__(self, every: int = 1) -> None:
        self.every = every

    def compared(self, features: Features, fit: Fit) -> Tensor:
        """(B,), at least 0."""
        count = features.num_levels
        chosen = range(1, count + 1, self.every)
        places = [kind * count + t - 1 for kind in range(3) for t in chosen]
        return fit.gaussian.part(places).distance(features.at(chosen))


class CombinedEnergy(FittedScore):
    """`COMBINED_HALF` plus the energy at t = 1, both in standard deviations of in-distribution images.

    The distance alone takes a low energy for as odd as a high one. The sum leans to the high ones, which
    is right for an energy that was trained with negatives beside the data (the objective ``manifold``).
    """

    def compared(self, features: Features, fit: Fit) -> Tensor:
        """(B,) standard deviations, their sum."""
        distance, usual = (COMBINED_HALF.compared(each, fit) for each in (features, fit.features))
        gaussian = fit.gaussian
        high = (features.energy(1) - gaussian.mean[0]) / gaussian.deviation[0]
        return (distance - usual.mean()) / usual.std() + high


COMBINED = Combined()
COMBINED_HALF = Combined(every=2)
COMBINED_ENERGY = CombinedEnergy()
ENERGY = EnergyScore()
SCORE_NORM = ScoreNorm()
MULTI_LEVEL = MultiLevel()
TYPICALITY = Typicality()
COMPLEXITY = Complexity()
INITIALIZER = InitializerScore()
