"""Is it right in distribution? The Langevin kernel against laws known exactly.

Each check returns the largest deviation among its statistics, in standard errors. The standard
error comes from the number of independent chains, or of effective draws where they are correlated.
Where the law of the *unadjusted* chain is known (Gaussian data: linear recursions; one dimension:
transition matrices on a grid) it is the reference, its bias included, and nothing is allowed for;
elsewhere the target is the reference and `langevin_bias` is allowed for. The right code must stay
below `LIMIT` and each classic error, planted, must exceed `CAUGHT`.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from laws import (
    CAUGHT,
    GAUSSIAN,
    LIMIT,
    MIXTURE,
    SKEWED,
    Affine,
    Grid,
    batch_random,
    deviation,
    effective_sample_size,
    gaussian_at,
    gaussian_langevin,
    langevin_bias,
    moment_deviation,
)
from planted import ERRORS, PRIOR_ERRORS, RIGHT, Parts
from torch import Tensor

from cdrl_infer.energies.analytic import (
    AnalyticEnergy,
    GaussianMixtureEnergy,
)
from cdrl_infer.energies.base import Energy
from cdrl_infer.kernels.langevin import Langevin
from cdrl_infer.proposals import IdentityProposal
from cdrl_infer.schedule import Level, NoiseSchedule

CURVED = NoiseSchedule(step_rule="curvature", step_size=0.8)
X_T = torch.tensor([0.9, -0.7], dtype=torch.float64)


def run_kernel(
    parts: Parts, energy: Energy, level: Level, start: Tensor, steps: int, seed: int = 0
) -> Tensor:
    random = batch_random(len(start), seed)
    return parts.kernel.run(start, energy.at(level), level.step_variance, random, steps).y


def recovery_energy(parts: Parts, data: AnalyticEnergy, x_t: Tensor, n: int) -> Energy:
    return parts.recovery(parts.prior(data), x_t.expand(n, -1))


def gaussian_prior(parts: Parts) -> float:
    """(a) Stationary law of ULA on a Gaussian: mean M and covariance ``V (I - s²V⁻¹/4)⁻¹``."""
    n, level = 20_000, CURVED.level(6)
    mean, covariance = gaussian_at(level)  # m_T = 1
    inflated = covariance @ torch.linalg.inv(
        torch.eye(2).double() - level.step_variance * torch.linalg.inv(covariance) / 4
    )
    y = run_kernel(parts, parts.prior(GAUSSIAN), level, torch.zeros(n, 2).double(), steps=60)
    return moment_deviation(y, mean, inflated)


def gaussian_posterior(level: Level) -> tuple[Tensor, Tensor]:
    """Mean of y given ``x_t = X_T``, and its covariance as ULA inflates it."""
    mean, covariance = gaussian_at(level)
    prior = torch.linalg.inv(level.scale.double() ** 2 * covariance)
    tie = 1 / level.noise_variance.double()
    posterior = torch.linalg.inv(prior + tie * torch.eye(2).double())
    centre = posterior @ (prior @ (level.scale.double() * mean) + tie * X_T)
    return centre, posterior @ torch.linalg.inv(
        torch.eye(2).double() - level.step_variance * torch.linalg.inv(posterior) / 4
    )


def gaussian_recovery(parts: Parts) -> float:
    """(b) Closed-form posterior of y given x_t, with ULA's known inflation."""
    n, level = 20_000, CURVED.level(4)
    energy = recovery_energy(parts, GAUSSIAN, X_T, n)
    y = run_kernel(parts, energy, level, torch.zeros(n, 2).double(), steps=60)
    return moment_deviation(y, *gaussian_posterior(level))


def mixture_recovery(parts: Parts) -> float:
    """(b) The mixture's posterior given x_t: mean, covariance and the components' shares."""
    n, step_size = 4_000, 0.1
    level = NoiseSchedule(step_rule="curvature", step_size=step_size).level(4)
    eye = torch.eye(2).double()
    m, a, s = (v.double() for v in (level.scale, level.alpha, level.sigma_bar))
    priors = m**2 * (a**2 * MIXTURE.covariances + s**2 * eye)
    tie = level.noise_variance.double()
    evidence = torch.distributions.MultivariateNormal(m * a * MIXTURE.means, priors + tie * eye)
    share = (MIXTURE.weights.log() + evidence.log_prob(X_T)).softmax(0)
    gain = priors @ torch.linalg.inv(priors + tie * eye)
    centres = m * a * MIXTURE.means + torch.einsum("kde,ke->kd", gain, X_T - m * a * MIXTURE.means)
    posterior = GaussianMixtureEnergy(share, centres, (eye - gain) @ priors)
    energy = recovery_energy(parts, MIXTURE, X_T, n)
    y = run_kernel(parts, energy, level, X_T.expand(n, 2), steps=100)
    bias = langevin_bias(step_size)
    shares = posterior.log_components(y, 1.0, 0.0).softmax(1)
    return max(
        moment_deviation(y, posterior.mean, posterior.covariance, bias=bias),
        deviation(shares, share, bias),
    )


KERNEL_GRID = Grid(torch.linspace(-7, 14, 421, dtype=torch.float64))


def skewed_prior(parts: Parts) -> float:
    """(c) Mean, variance and third moment of a skewed law, after 60 steps from a normal start."""
    n, level = 20_000, CURVED.level(3)
    start = torch.randn(n, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    law = KERNEL_GRID.langevin(KERNEL_GRID.normal(torch.tensor(0.0), 1.0), level, steps=60)
    y = run_kernel(parts, parts.prior(SKEWED), level, start, steps=60)
    return moment_deviation(y, *KERNEL_GRID.moments(law))


def skewed_recovery(parts: Parts) -> float:
    """(c) The same given x_t."""
    n, level, x_t = 20_000, CURVED.level(3), torch.tensor([1.2], dtype=torch.float64)
    start = torch.randn(n, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    law = KERNEL_GRID.langevin(KERNEL_GRID.normal(torch.tensor(0.0), 1.0), level, 60, x_t)
    y = run_kernel(parts, recovery_energy(parts, SKEWED, x_t, n), level, start, steps=60)
    return moment_deviation(y, *KERNEL_GRID.moments(law))


# --- the tests -----------------------------------------------------------------------------------

Check = Callable[[Parts], float]
CHECKS: dict[str, tuple[Check, dict[str, Parts]]] = {
    "gaussian prior": (gaussian_prior, PRIOR_ERRORS),
    "gaussian recovery": (gaussian_recovery, ERRORS),
    "mixture recovery": (mixture_recovery, ERRORS),
    "skewed prior": (skewed_prior, PRIOR_ERRORS),
    "skewed recovery": (skewed_recovery, ERRORS),
}


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("parts", RIGHT)
def test_right_in_distribution(check: str, parts: str) -> None:
    assert CHECKS[check][0](RIGHT[parts]) < LIMIT


@pytest.mark.parametrize(
    ("check", "error"),
    [(check, error) for check, (_, errors) in CHECKS.items() for error in errors],
)
def test_each_classic_error_is_caught(check: str, error: str) -> None:
    measure, errors = CHECKS[check]
    assert measure(errors[error]) > CAUGHT


def test_deviations_are_fair() -> None:
    """Over 20 seeds the largest of six statistics stays where standard errors put it."""
    level, n = CURVED.level(6), 2_000
    mean, covariance = gaussian_at(level)
    inflated = covariance @ torch.linalg.inv(
        torch.eye(2).double() - level.step_variance * torch.linalg.inv(covariance) / 4
    )
    start = torch.zeros(n, 2).double()
    worst = [
        moment_deviation(run_kernel(Parts(), GAUSSIAN, level, start, 40, seed), mean, inflated)
        for seed in range(1, 21)
    ]
    assert 1.0 < max(worst) < LIMIT
    assert sum(worst) / len(worst) < 2.5


def test_drl_starts_at_x_t_and_reaches_the_posterior() -> None:
    """DRL's chain: after two steps it still shows where it began, after 60 the posterior alone."""
    n, level, parts = 20_000, CURVED.level(4), Parts()
    x_t = X_T.expand(n, 2)
    energy = recovery_energy(parts, GAUSSIAN, X_T, n)

    def draws(steps: int) -> Tensor:
        random = batch_random(n)
        start = IdentityProposal().sample(x_t, level, random)
        return parts.kernel.run(start, energy.at(level), level.step_variance, random, steps).y

    eye = torch.eye(2).double()
    at_x_t = Affine(eye, torch.zeros(2).double(), 0 * eye)
    early, late = draws(2), draws(60)
    law = gaussian_langevin(at_x_t, level, steps=2).push(X_T, 0 * eye)
    assert moment_deviation(early, *law) < LIMIT
    assert moment_deviation(early, *gaussian_posterior(level)) > CAUGHT
    assert moment_deviation(late, *gaussian_posterior(level)) < LIMIT


def test_correlated_draws_of_few_chains() -> None:
    """The pooled path of 64 chains, its standard errors from the effective sample size."""
    data = GaussianMixtureEnergy([1.0], [[0.5]], [[0.6]])
    level, chains, steps = CURVED.level(6), 64, 1_500
    mean = (level.alpha * data.mean).item()
    variance = (level.alpha**2 * data.covariance + level.sigma_bar**2).item()
    s2 = level.step_variance.item()
    a = 1 - s2 / (2 * variance)
    inflated = variance / (1 - s2 / (4 * variance))

    random = batch_random(chains)
    kernel, potential = Langevin(), data.at(level)
    state, path = kernel.init(torch.zeros(chains, 1).double(), potential), []
    for _ in range(50 + steps):
        state, _ = kernel.step(state, potential, level.step_variance, random)
        path.append(state.y[:, 0])
    draws = torch.stack(path[50:])
    squares = (draws - mean) ** 2

    effective = effective_sample_size(draws)
    assert effective == pytest.approx(draws.numel() * (1 - a) / (1 + a), rel=0.1)
    assert abs(draws.mean() - mean) < LIMIT * (inflated / effective) ** 0.5
    effective = effective_sample_size(squares)
    assert effective == pytest.approx(draws.numel() * (1 - a**2) / (1 + a**2), rel=0.1)
    assert abs(squares.mean() - inflated) < LIMIT * inflated * (2 / effective) ** 0.5


@pytest.mark.parametrize("t", [3, 6])
def test_unadjusted_laws_tend_to_the_target_at_first_order(t: int) -> None:
    """Halving s² halves the bias of the reference law: references and targets belong together.

    That of the third moment has next to no first-order part here; it is small.
    """
    errors = []
    for step_size in (0.4, 0.2):
        level = NoiseSchedule(step_rule="curvature", step_size=step_size).level(t)
        start = KERNEL_GRID.normal(torch.tensor(0.0), 1.0)
        law = KERNEL_GRID.moments(KERNEL_GRID.langevin(start, level, steps=round(160 / step_size)))
        gain = (level.scale * level.alpha).double()
        spread = (level.scale * level.sigma_bar).double() ** 2
        exact = (
            gain * SKEWED.mean,
            gain**2 * SKEWED.covariance + spread,
            gain**3 * SKEWED.third_moment,
        )
        errors.append([float(abs(got - want)) for got, want in zip(law, exact, strict=True)])
    (mean, variance, _), (fine_mean, fine_variance, fine_third) = errors
    assert 1.8 < mean / fine_mean < 2.2
    assert 1.8 < variance / fine_variance < 2.2
    assert fine_third < 0.01 * exact[2]
