"""Scores and their features: closed forms, and that higher means more anomalous."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from conftest import make_model
from torch import Tensor

from cdrl_infer.energies.analytic import GaussianMixtureEnergy, PosteriorMeanProposal
from cdrl_infer.errors import InputError
from cdrl_infer.proposals import posterior_mean
from cdrl_infer.schedule import NoiseSchedule
from cdrl_infer.scoring import SCORES
from cdrl_infer.scoring.features import FeatureTable, NoisedImages, draw_noise
from cdrl_infer.scoring.gaussian import RIDGE, Gaussian
from cdrl_infer.scoring.scores import Fit, FittedScore

SCHEDULE = NoiseSchedule(num_levels=3, logsnr_max=4.0)
LEVELS = range(1, 4)
FREE = [name for name, score in SCORES.items() if not isinstance(score, FittedScore)]
D = 6


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def correlated(dim: int = D) -> tuple[Tensor, Tensor]:
    """A mean and a covariance that no formula can get right by symmetry."""
    root = torch.randn(dim, dim, generator=generator(1), dtype=torch.float64) / dim**0.5
    mean = torch.linspace(-0.6, 0.9, dim, dtype=torch.float64)
    return mean, 0.2 * root @ root.T + 0.02 * torch.eye(dim, dtype=torch.float64)


def analytic(u: Tensor, seed: int = 0) -> NoisedImages:
    """Points in place of images: energy and proposal are those of a Gaussian, exactly."""
    mean, covariance = correlated(u.shape[1])
    energy = GaussianMixtureEnergy([1.0], mean[None], covariance[None])
    noise = draw_noise(SCHEDULE, u.shape[1:], seed)
    found = NoisedImages(energy, PosteriorMeanProposal(energy), SCHEDULE, u, noise)
    found.compressed_size = torch.zeros(len(u), dtype=torch.float64)  # points make no PNG
    return found


def sample(num: int, seed: int) -> Tensor:
    mean, covariance = correlated()
    draws = torch.randn(num, D, generator=generator(seed), dtype=torch.float64)
    return mean + draws @ torch.linalg.cholesky(covariance).T


@pytest.fixture(scope="module")
def fit() -> Fit:
    table = FeatureTable.of(analytic(sample(400, 5)))
    return Fit(table, Gaussian.of(table.all))


# -- formulas -----------------------------------------------------------------------------------


@pytest.mark.parametrize("t", LEVELS)
def test_energies_and_errors_are_those_of_a_gaussian(t: int) -> None:
    """``y ~ N(m α μ, m²(α² Σ + σ̄² I))``, so E, its gradient and E[x_{t-1} | x_t] are known."""
    u = sample(5, 2)
    images = analytic(u)
    mean, covariance = (value.numpy() for value in correlated())
    level = SCHEDULE.level(t)
    m, a, s = float(level.scale), float(level.alpha), float(level.sigma_bar)
    a_t, s_t = float(level.alpha_in), float(level.sigma_bar_in)
    eps = torch.randn(3, D, generator=generator(0))[t - 1].double().numpy()
    x, eye = u.numpy(), np.eye(D)

    y = m * (a * x + s * eps)
    c = m**2 * (a**2 * covariance + s**2 * eye)
    d = y - m * a * mean
    g = d @ np.linalg.inv(c)
    energy = 0.5 * (d * g).sum(1) + 0.5 * np.linalg.slogdet(2 * math.pi * c)[1]
    np.testing.assert_allclose(images.energy(t), energy, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(images.score_norm(t), ((m * s * g) ** 2).sum(1), rtol=1e-6)
    error = ((m * s * g - eps) ** 2).sum(1)
    np.testing.assert_allclose(images.log_score_error(t), np.log(error), rtol=1e-6)
    known = images.energy(t)  # found with the gradient
    np.testing.assert_allclose(known, energy, rtol=1e-6, atol=1e-6)

    x_t = a_t * x + s_t * eps
    step = a_t / a  # x_t = step x_{t-1} + …, so Cov(x_{t-1}, x_t) = step Cov(x_{t-1})
    before = a**2 * covariance + s**2 * eye
    gain = step * before @ np.linalg.inv(a_t**2 * covariance + s_t**2 * eye)
    proposed = m * (a * mean + (x_t - a_t * mean) @ gain.T)
    # The posterior of x_{t-1} given x_t and x: two Gaussian messages, by their precisions.
    variance = 1 - step**2
    precision = 1 / s**2 + step**2 / variance
    expected = m * (a * x / s**2 + step * x_t / variance) / precision
    distance = ((proposed - expected) ** 2).sum(1) / variance
    np.testing.assert_allclose(images.log_initializer_error(t), np.log(distance), rtol=1e-4)


def test_a_table_says_what_the_images_say(fit: Fit) -> None:
    images, lazy = analytic(sample(4, 2)), analytic(sample(4, 2))
    table = FeatureTable.join([FeatureTable.of(images), FeatureTable.of(analytic(sample(2, 3)))])
    for t in LEVELS:
        assert torch.equal(table.energies[:4, t - 1], images.energy(t))
        assert torch.equal(table.log_score_errors[:4, t - 1], images.log_score_error(t))
        assert torch.equal(table.score_norms[:4, t - 1], images.score_norm(t))
        errors = images.log_initializer_error(t)
        assert torch.equal(table.log_initializer_errors[:4, t - 1], errors)
    expected = [table.energies, table.log_score_errors, table.log_initializer_errors]
    assert torch.equal(table.all, torch.cat(expected, 1)) and len(table) == 6
    for score in SCORES.values():
        for t in LEVELS if score.levelled else (1,):
            torch.testing.assert_close(score(table, t, fit)[:4], score(lazy, t, fit))


def test_without_an_initializer_the_proposal_is_the_noisier_image() -> None:
    images = torch.rand(5, 1, 8, 8, generator=generator(0))
    model = make_model()
    model.initializer = None
    noise = draw_noise(model.schedule, (1, 8, 8), 0)
    found = NoisedImages.of(model, images, noise).log_initializer_errors
    u = 2 * images - 1
    for t in LEVELS:
        level = model.schedule.level(t)
        x_t = level.diffused_in(u, noise[t - 1])
        error = (x_t - posterior_mean(u, x_t, level)).double().square().sum((1, 2, 3))
        expected = (error / float(level.noise_variance)).log()
        torch.testing.assert_close(found[:, t - 1], expected, rtol=1e-6, atol=1e-6)


def test_distance_is_mahalanobis_with_a_tiny_ridge() -> None:
    mean, covariance = correlated()
    covariance = covariance * torch.outer(*[torch.logspace(0, 3, D).double()] * 2)
    features = sample(7, 3)
    ridged = covariance + RIDGE * covariance.diagonal().diag()
    shift = (features - mean).numpy()
    expected = np.sqrt((shift @ np.linalg.inv(ridged.numpy()) * shift).sum(1))
    gaussian = Gaussian(mean, covariance)
    np.testing.assert_allclose(gaussian.distance(features), expected, rtol=1e-7)
    one = (features[:, 2:3] - mean[2]).abs()[:, 0] / ridged[2, 2].sqrt()
    np.testing.assert_allclose(gaussian.part([2]).distance(features[:, 2:3]), one, rtol=1e-12)


@pytest.mark.parametrize("covariance", [torch.ones(2, 2), torch.zeros(2, 2), -torch.eye(2)])
def test_features_that_do_not_vary_are_refused(covariance: Tensor) -> None:
    covariance = covariance.double()
    covariance[0, 1] = covariance[1, 0] = 2 * covariance[0, 1]
    with pytest.raises(InputError, match="not positive definite; calibrate with more images"):
        Gaussian(torch.zeros(2).double(), covariance)


def test_scores_are_their_formulas(fit: Fit) -> None:
    images = analytic(sample(9, 4))
    gaussian = fit.gaussian
    z = (images.all - gaussian.mean).numpy()
    covariance = gaussian.covariance.numpy() * (1 + RIDGE * np.eye(9))

    def distance(part: slice | list[int]) -> np.ndarray:
        inverse = np.linalg.inv(covariance[part][:, part])
        return np.asarray(np.sqrt((z[:, part] @ inverse * z[:, part]).sum(1)))

    def combined_energy() -> np.ndarray:
        half = [0, 2, 3, 5, 6, 8]
        usual = gaussian.part(half).distance(fit.features.all[:, half]).numpy()
        far = (distance(half) - usual.mean()) / usual.std(ddof=1)
        high = (images.energy(1) - gaussian.mean[0]) / gaussian.covariance[0, 0].sqrt()
        return np.asarray(far + high.numpy())

    expected = {
        "combined": distance(slice(0, 9)),
        "combined-half": distance([0, 2, 3, 5, 6, 8]),  # E, log D and log I of t = 1 and 3
        "combined-energy": combined_energy(),
        "multi-level": distance(slice(0, 3)),
        "initializer": distance(slice(6, 9)),
        "typicality": np.abs(z[:, 0]) / np.sqrt(gaussian.covariance[0, 0].item()),
        "energy": images.energy(1),
        "score-norm": images.score_norm(1).sqrt(),
    }
    for name, values in expected.items():
        np.testing.assert_allclose(SCORES[name](images, fit=fit), values, rtol=1e-6, err_msg=name)
    assert {*expected, "complexity"} == set(SCORES)
    for name in ("energy", "score-norm"):
        at_2 = SCORES[name](images, level=2)
        of_2 = images.energy(2) if name == "energy" else images.score_norm(2).sqrt()
        assert torch.equal(at_2, of_2) and not torch.equal(at_2, SCORES[name](images))


# -- direction ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in SCORES if name != "complexity"])
def test_higher_is_more_anomalous(name: str, fit: Fit) -> None:
    """The further out along the axis of the smallest variance, the higher the score."""
    data = sample(300, 6)
    axis = torch.linalg.eigh(correlated()[1])[1][:, 0]
    shifts = [SCORES[name](analytic(data + k * axis), fit=fit).median() for k in (0, 1.5, 3, 6)]
    assert shifts == sorted(shifts) and shifts[0] < shifts[1]
    known = SCORES[name](analytic(sample(300, 7)), fit=fit)
    assert shifts[3] > known.quantile(0.99)
