"""The analytic energies against quadrature and exact draws."""

from __future__ import annotations

import pytest
import torch
from test_energies import DIAGONAL, FULL, LEVELS, SCHEDULE, SKEWED, points
from torch import Tensor

from cdrl_infer.energies.analytic import (
    AnalyticEnergy,
    ExponentialGaussianEnergy,
    GaussianMixtureEnergy,
    PosteriorMeanProposal,
)
from cdrl_infer.errors import InputError
from cdrl_infer.random import BatchRandom


class TestAnalyticEnergies:
    @pytest.mark.parametrize("at", LEVELS)
    @pytest.mark.parametrize("energy", [FULL, DIAGONAL, SKEWED], ids=["full", "diagonal", "skewed"])
    def test_float32_agrees_with_float64(self, energy: AnalyticEnergy, at: str) -> None:
        level, y = LEVELS[at], points()
        value, grad = energy.at(level).value_and_grad(y.float())
        assert value.dtype == grad.dtype == torch.float32
        exact, exact_grad = energy.at(level).value_and_grad(y)
        torch.testing.assert_close(value.double(), exact, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(grad.double(), exact_grad, rtol=1e-4, atol=1e-4)

    ONE_DIMENSIONAL = (
        GaussianMixtureEnergy([0.7, 0.3], [[-0.6], [1.4]], [[0.1], [0.3]]),
        ExponentialGaussianEnergy([-1.0], [0.3], [1.0]),
    )

    @pytest.mark.parametrize("t", [1, 3, 6])
    @pytest.mark.parametrize("energy", ONE_DIMENSIONAL, ids=lambda e: type(e).__name__)
    def test_moments_by_quadrature(self, energy: AnalyticEnergy, t: int) -> None:
        """The density integrates to 1 and has the moments of ``y = m (α x + σ̄ ε)``."""
        level = SCHEDULE.level(t)
        y = torch.linspace(-12, 25, 40_001, dtype=torch.float64)
        density = (-energy(y[:, None], level)).exp()

        def integral(values: Tensor) -> float:
            return torch.trapezoid(values * density, y).item()

        m, a, s = (v.double().item() for v in (level.scale, level.alpha, level.sigma_bar))
        mean = m * a * energy.mean.item()
        assert integral(torch.ones_like(y)) == pytest.approx(1, abs=1e-6)
        assert integral(y) == pytest.approx(mean, abs=1e-6)
        assert integral((y - mean) ** 2) == pytest.approx(
            m**2 * (a**2 * energy.covariance.item() + s**2), rel=1e-5
        )
        if isinstance(energy, ExponentialGaussianEnergy):
            third = (m * a) ** 3 * energy.third_moment.item()
            assert integral((y - mean) ** 3) == pytest.approx(third, rel=1e-5)

    @pytest.mark.parametrize("energy", ONE_DIMENSIONAL, ids=lambda e: type(e).__name__)
    def test_level_is_the_data_convolved_with_noise(self, energy: AnalyticEnergy) -> None:
        """``p(y) = ∫ p(x) N(y; m α x, m² σ̄²) dx``, the data's density alone being given."""
        level = SCHEDULE.level(4)
        x = torch.linspace(-8, 25, 20_001, dtype=torch.float64)
        data = energy.log_density(x[:, None], 1.0, 0.0).exp()
        y = torch.tensor([-2.0, -0.5, 0.0, 0.7, 2.5], dtype=torch.float64)
        m, a, s = (v.double() for v in (level.scale, level.alpha, level.sigma_bar))
        kernel = torch.distributions.Normal(m * a * x, m * s).log_prob(y[:, None]).exp()
        expected = torch.trapezoid(data * kernel, x)
        torch.testing.assert_close((-energy(y[:, None], level)).exp(), expected, rtol=1e-5, atol=0)

    @pytest.mark.parametrize("energy", [FULL, DIAGONAL, SKEWED], ids=["full", "diagonal", "skewed"])
    @pytest.mark.parametrize("t", [1, 5, 6])
    def test_exact_draws_follow_the_density(self, energy: AnalyticEnergy, t: int) -> None:
        """Score identities: ``E[∇E(y)] = 0`` and ``E[(y - μ) ∇E(y)ᵀ] = I``, within 5 sigma."""
        n, level = 40_000, SCHEDULE.level(t)
        y = energy.sample_level(level, n, torch.Generator().manual_seed(t))
        _, grad = energy.at(level).value_and_grad(y)
        outer = (y - level.scale * level.alpha * energy.mean)[:, :, None] * grad[:, None, :]
        for draws, expected in ((grad, torch.zeros(2)), (outer, torch.eye(2))):
            z = (draws.mean(0) - expected) / (draws.std(0) / n**0.5)
            assert z.abs().max() < 5
        moments = (level.scale**2 * level.alpha**2, level.scale**2 * level.sigma_bar**2)
        expected = moments[0] * energy.covariance + moments[1] * torch.eye(2)
        centred = y - y.mean(0)
        products = centred[:, :, None] * centred[:, None, :]
        z = (products.mean(0) - expected) / (products.std(0) / n**0.5)
        assert z.abs().max() < 5

    def test_components_tell_where_a_draw_is_from(self) -> None:
        """The mean responsibility of exact draws is the weight."""
        n, level = 40_000, SCHEDULE.level(2)
        y = FULL.sample_level(level, n, torch.Generator().manual_seed(0))
        share = FULL.log_components(
            y, level.scale * level.alpha, level.scale * level.sigma_bar
        ).softmax(1)
        z = (share.mean(0) - FULL.weights) / (share.std(0) / n**0.5)
        assert z.abs().max() < 5

    def test_full_and_diagonal_covariances_agree(self) -> None:
        full = GaussianMixtureEnergy(
            DIAGONAL.weights,
            DIAGONAL.means,
            torch.diag_embed(torch.tensor([[0.2, 0.5], [0.1, 0.3]])),
        )
        y, level = points(), SCHEDULE.level(2)
        torch.testing.assert_close(full(y, level), DIAGONAL(y, level), rtol=1e-6, atol=1e-6)

    @pytest.mark.parametrize(
        ("arguments", "named"),
        [
            (([1.0], [[0.0], [1.0]], [[1.0], [1.0]]), r"\(1,\), \(2, 1\)"),
            (([1.0], [[0.0, 1.0]], [[1.0]]), r"\(1, 1\)"),
            (([1.0], [[0.0, 1.0]], [[[1.0, 0.5], [0.0, 1.0]]]), "symmetric"),
            (([1.0], [[0.0, 1.0]], [[[1.0, 2.0], [2.0, 1.0]]]), "positive definite"),
            (([1.0, -0.5], [[0.0], [1.0]], [[1.0], [1.0]]), "positive weights"),
        ],
    )
    def test_mixture_that_is_none(self, arguments: tuple[list[float], ...], named: str) -> None:
        with pytest.raises(InputError, match=named):
            GaussianMixtureEnergy(*arguments)

    def test_skewed_that_is_none(self) -> None:
        with pytest.raises(InputError, match="one shape"):
            ExponentialGaussianEnergy([0.0], [1.0, 1.0], [1.0])
        with pytest.raises(InputError, match="positive"):
            ExponentialGaussianEnergy([0.0], [1.0], [-1.0])

    @pytest.mark.parametrize("energy", [FULL, SKEWED], ids=["mixture", "skewed"])
    def test_points_of_the_wrong_shape(self, energy: AnalyticEnergy) -> None:
        with pytest.raises(InputError, match=r"\(B, 2\), got \(4, 3\)"):
            energy(torch.zeros(4, 3), SCHEDULE.level(1))


class TestPosteriorMeanProposal:
    @pytest.mark.parametrize("t", range(1, 7))
    def test_mixture_by_conditioning(self, t: int) -> None:
        """Tweedie's formula equals the Markov posterior's mean at ``E[x | x_t]``."""
        level = SCHEDULE.level(t)
        x_t = points(seed=3)
        a, s = level.alpha_in.double(), level.sigma_bar_in.double()
        gain = (
            a
            * FULL.covariances
            @ torch.linalg.inv(a**2 * FULL.covariances + s**2 * torch.eye(2).double())
        )
        per_component = FULL.means + torch.einsum(
            "kde,bke->bkd", gain, x_t[:, None] - a * FULL.means
        )
        share = FULL.log_components(x_t, a, s).softmax(1)
        data_mean = (share[:, :, None] * per_component).sum(1)
        below, sigma = level.alpha.double(), level.sigma_bar.double()
        expected = level.scale * (
            a / below * (sigma / s) ** 2 * x_t + below * level.noise_variance / s**2 * data_mean
        )
        got = PosteriorMeanProposal(FULL).mean(x_t, level)
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("t", [1, 4, 6])
    def test_skewed_by_regression(self, t: int) -> None:
        """``y - E[y | x_t]`` is uncorrelated with functions of x_t, within 5 sigma."""
        n, level = 40_000, SCHEDULE.level(t)
        generator = torch.Generator().manual_seed(t)
        y = SKEWED.sample_level(level, n, generator)
        kept = level.alpha_in / level.alpha
        noise = torch.randn(y.shape, generator=generator, dtype=y.dtype)
        x_t = kept * y / level.scale + level.noise_variance.sqrt() * noise
        error = y - PosteriorMeanProposal(SKEWED).mean(x_t, level)
        for weight in (torch.ones_like(x_t), x_t, x_t.square()):
            draws = error * weight
            z = draws.mean(0) / (draws.std(0) / n**0.5)
            assert z.abs().max() < 5

    def test_spread_is_the_proposals(self) -> None:
        n, level = 20_000, SCHEDULE.level(4)
        x_t = torch.tensor([[0.3, -0.4]]).expand(n, 2)
        proposal = PosteriorMeanProposal(FULL)
        draws = proposal.sample(x_t, level, BatchRandom(n, torch.Generator().manual_seed(0)))
        tau2 = level.proposal_variance.item()
        mean = proposal.mean(x_t[:1], level)
        assert ((draws.mean(0) - mean) / (tau2 / n) ** 0.5).abs().max() < 5
        assert ((draws.var(0) / tau2 - 1) / (2 / (n - 1)) ** 0.5).abs().max() < 5

    def test_levels_may_differ_in_a_batch(self) -> None:
        x_t, t = points(3), torch.tensor([1, 4, 6])
        proposal = PosteriorMeanProposal(SKEWED)
        together = proposal.mean(x_t, SCHEDULE.level(t))
        for row, index in enumerate(t.tolist()):
            alone = proposal.mean(x_t[row : row + 1], SCHEDULE.level(index))
            torch.testing.assert_close(together[row : row + 1], alone)
