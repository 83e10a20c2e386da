"""Is it right in distribution? Kernels and the whole chain against laws known exactly.

Each check returns the largest deviation among its statistics, in standard errors. The standard
error comes from the number of independent chains, or of effective draws where they are correlated.
Where the law of the *unadjusted* chain is known (Gaussian data: linear recursions; one dimension:
transition matrices on a grid) it is the reference, its bias included, and nothing is allowed for;
elsewhere the target is the reference and `langevin_bias` is allowed for. The right code must stay
below `LIMIT` and each classic error, planted, must exceed `CAUGHT`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Literal, NamedTuple
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from cdrl_infer.energies.analytic import (
    AnalyticEnergy,
    ExponentialGaussianEnergy,
    GaussianMixtureEnergy,
    PosteriorMeanProposal,
)
from cdrl_infer.energies.base import Energy, Potential
from cdrl_infer.energies.neural import NeuralEnergy
from cdrl_infer.energies.recovery import RecoveryEnergy, RecoveryPotential
from cdrl_infer.kernels.base import StepInfo
from cdrl_infer.kernels.langevin import Langevin, LangevinState
from cdrl_infer.proposals import IdentityProposal
from cdrl_infer.random import BatchRandom, RandomSource
from cdrl_infer.sampler import CooperativeSampler, LevelEnd
from cdrl_infer.schedule import Level, NoiseSchedule

LIMIT = 5.0  # standard errors; two-sided, 6e-7 per statistic
CAUGHT = 10.0

GAUSSIAN = GaussianMixtureEnergy([1.0], [[0.4, -0.3]], [[[0.8, 0.3], [0.3, 0.4]]])
SKEWED = ExponentialGaussianEnergy(location=[-0.8], spread=[0.3], rate=[1.25])
MIXTURE = GaussianMixtureEnergy(
    weights=[0.55, 0.3, 0.15],
    means=[[-0.8, 0.4], [1.0, 0.5], [0.6, -1.5]],
    covariances=[
        [[0.2, 0.08], [0.08, 0.15]],
        [[0.12, 0.0], [0.0, 0.3]],
        [[0.2, -0.1], [-0.1, 0.15]],
    ],
)


# --- what is under test: the package's parts, or one of them replaced by a classic error ---------


@dataclass(frozen=True)
class Parts:
    """The parts that a check puts together."""

    kernel: Langevin = field(default_factory=Langevin)
    prior: Callable[[Energy], Energy] = lambda energy: energy
    recovery: type[RecoveryEnergy] = RecoveryEnergy
    score_scale: float = 1.0


class LogDensityNetwork:
    """An energy dressed as a network that returns log-densities in a unit, and says which."""

    def __init__(
        self,
        energy: Energy,
        returns: Literal["nats", "step"],
        says: Literal["nats", "step"],
    ) -> None:
        self.energy = energy
        self.returns = returns
        self.output_unit = says

    def condition(self, level: Level, labels: Tensor | None = None) -> Level:
        return level

    def __call__(self, y: Tensor, condition: Level) -> Tensor:
        log_density = -self.energy(y, condition)
        return log_density * condition.step_variance if self.returns == "step" else log_density


class MissingRoot(Langevin):
    """The noise is scaled by s² instead of s."""

    def step(
        self, state: LangevinState, potential: Potential, step_size: Tensor, random: RandomSource
    ) -> tuple[LangevinState, StepInfo]:
        _, grad = potential.value_and_grad(state.y)
        y = state.y - 0.5 * step_size * grad + step_size * random.normal(state.y.shape[1:])
        return LangevinState(y), StepInfo(torch.ones(len(y)), torch.ones(len(y)).bool())


class WrongSignRecovery(RecoveryEnergy):
    """The quadratic term is subtracted."""

    def at(self, level: Level) -> RecoveryPotential:
        return WrongSignPotential(self.prior.at(level), self.x_t, level)


class WrongSignPotential(RecoveryPotential):
    def value_and_grad(self, y: Tensor) -> tuple[Tensor, Tensor]:
        energy, grad = self.prior.value_and_grad(y)
        level = self.level
        return energy, grad - level.recovery / level.noise_variance * (y - self.x_t)


def as_network(returns: Literal["nats", "step"], says: Literal["nats", "step"]) -> Parts:
    return Parts(prior=lambda e: NeuralEnergy(LogDensityNetwork(e, returns, says)))


RIGHT = {
    "analytic": Parts(),
    "network in steps": as_network("step", "step"),
}
PRIOR_ERRORS = {
    "noise variance doubled": Parts(kernel=Langevin(noise_scale=math.sqrt(2))),
    "noise variance halved": Parts(kernel=Langevin(noise_scale=math.sqrt(0.5))),
    "missing root": Parts(kernel=MissingRoot()),
    "divided by s2 twice": as_network("nats", "step"),
    "never divided by s2": as_network("step", "nats"),
}
ERRORS = PRIOR_ERRORS | {"wrong sign of recovery": Parts(recovery=WrongSignRecovery)}
LAST_STEP_ERRORS = ERRORS | {"last score doubled": Parts(score_scale=2.0)}


# --- statistics ----------------------------------------------------------------------------------


def deviation(draws: Tensor, expected: Tensor | float, bias: float = 0.0) -> float:
    """Largest ``(|mean - expected| - bias · sd) / (sd / √N)`` over columns of (N, ...) draws."""
    if not bool(draws.isfinite().all()):
        return math.inf
    sd = draws.std(0)
    excess = (draws.mean(0) - expected).abs() - bias * sd
    return float((excess / (sd / math.sqrt(len(draws)))).max())


def moment_deviation(
    draws: Tensor,
    mean: Tensor,
    covariance: Tensor,
    third: Tensor | None = None,
    bias: float = 0.0,
) -> float:
    """`deviation` of mean, covariance and, if given, the third central moments of (N, D) draws."""
    centred = draws.double() - mean
    products = centred[:, :, None] * centred[:, None, :]
    worst = [deviation(centred, 0.0, bias), deviation(products, covariance, bias)]
    if third is not None:
        worst.append(deviation(centred**3, third, bias))
    return max(worst)


def langevin_bias(step_size: float) -> float:
    """Allowed bias of a mean, in standard deviations of what is averaged.

    Under the "curvature" rule an unadjusted chain on a Gaussian inflates no variance by more than
    ``f = 1/(1 - step_size/4)``, and passing from level to level keeps that factor. By
    Cauchy-Schwarz ``|E_q h - E_p h| ≤ sd_p(h) √χ²(q, p)``, and for D = 2 such variances
    ``√χ² = f - 1`` to first order.
    """
    return 1 / (1 - step_size / 4) - 1


def effective_sample_size(draws: Tensor) -> float:
    """Of (steps, chains) stationary draws: their number over ``1 + 2 Σ ρ_k`` (Geyer 1992)."""
    steps, chains = draws.shape
    centred = draws - draws.mean()
    spectrum = torch.fft.rfft(centred, n=2 * steps, dim=0)
    autocovariance = torch.fft.irfft(spectrum.abs() ** 2, dim=0)[:steps].mean(1)
    rho = autocovariance / torch.arange(steps, 0, -1)
    pairs = (rho / rho[0])[: steps // 2 * 2].reshape(-1, 2).sum(1)
    positive = int((pairs < 0).int().argmax()) or len(pairs)
    return steps * chains / float(2 * pairs[:positive].sum() - 1)


# --- laws of the unadjusted chain ----------------------------------------------------------------


class Affine(NamedTuple):
    """``y | x_t ~ N(A x_t + b, N)``."""

    A: Tensor
    b: Tensor
    N: Tensor

    def push(self, mean: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and covariance of y where x_t has these."""
        return self.A @ mean + self.b, self.A @ covariance @ self.A.mT + self.N


def gaussian_at(level: Level) -> tuple[Tensor, Tensor]:
    """Mean and covariance of ``x_{t-1}`` for the Gaussian data."""
    a, s = level.alpha.double(), level.sigma_bar.double()
    return a * GAUSSIAN.mean, a**2 * GAUSSIAN.covariance + s**2 * torch.eye(2).double()


def gaussian_proposal(level: Level) -> Affine:
    """``N(E[y | x_t], τ_t² I)`` by conditioning the pair ``x_t = √r x_{t-1} + σ_t ε``."""
    eye = torch.eye(2).double()
    mean, covariance = gaussian_at(level)
    m, root_r = level.scale.double(), (level.alpha_in / level.alpha).double()
    joint = root_r**2 * covariance + level.noise_variance * eye
    A = m * root_r * covariance @ torch.linalg.inv(joint)
    return Affine(A, m * mean - A @ (root_r * mean), level.proposal_variance * eye)


def gaussian_langevin(start: Affine, level: Level, steps: int) -> Affine:
    """After ``y ← y - ½s² (V⁻¹(y - M) + R (y - x_t)) + s ε``, again and again."""
    eye = torch.eye(2).double()
    m, s2 = level.scale.double(), level.step_variance.double()
    mean, covariance = gaussian_at(level)
    P = torch.linalg.inv(m**2 * covariance)
    R = (level.recovery / level.noise_variance).double()
    keep = eye - 0.5 * s2 * (P + R * eye)
    A, b, N = start
    for _ in range(steps):
        A = keep @ A + 0.5 * s2 * R * eye
        b = keep @ b + 0.5 * s2 * P @ (m * mean)
        N = keep @ N @ keep.mT + s2 * eye
    return Affine(A, b, N)


@dataclass(frozen=True)
class Grid:
    """Densities of one coordinate as vectors of probabilities on equidistant points."""

    points: Tensor

    def normal(self, mean: Tensor, variance: Tensor | float) -> Tensor:
        """(..., G) probabilities of normals with means (...)."""
        z2 = (self.points - mean[..., None]) ** 2 / variance
        return (
            z2.mul_(-0.5).exp_()
            * (self.points[1] - self.points[0])
            / math.sqrt(2 * math.pi * variance)
        )

    def langevin(
        self, start: Tensor, level: Level, steps: int, x_t: Tensor | None = None
    ) -> Tensor:
        """``start`` after steps of ULA on the skewed energy, with recovery where x_t is given."""
        s2 = level.step_variance.item()
        width = 1e-5
        ends = (self.points[:, None] + width, self.points[:, None] - width)
        slope = (SKEWED(ends[0], level) - SKEWED(ends[1], level)) / (2 * width)
        if x_t is not None:
            slope = slope + level.recovery / level.noise_variance * (self.points - x_t)
        transition = self.normal(self.points - 0.5 * s2 * slope, s2)
        for _ in range(steps):
            start = start @ transition
        return start

    def moments(self, probabilities: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean (1,), covariance (1, 1) and third central moment (1,)."""
        assert abs(probabilities.sum() - 1) < 1e-6
        mean = probabilities @ self.points
        centred = self.points - mean
        second, third = (probabilities @ centred**k for k in (2, 3))
        return mean.reshape(1), second.reshape(1, 1), third.reshape(1)


# --- checks of the kernel ------------------------------------------------------------------------

CURVED = NoiseSchedule(step_rule="curvature", step_size=0.8)
X_T = torch.tensor([0.9, -0.7], dtype=torch.float64)


def run_kernel(
    parts: Parts, energy: Energy, level: Level, start: Tensor, steps: int, seed: int = 0
) -> Tensor:
    random = BatchRandom(len(start), torch.Generator().manual_seed(seed))
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


# --- checks of the whole chain -------------------------------------------------------------------


def run_chain(
    parts: Parts,
    schedule: NoiseSchedule,
    data: AnalyticEnergy,
    langevin_steps: int,
    n: int,
    seed: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """x_0 before the last denoising (N, D), the samples (N, D) and their energies (N,)."""
    sampler = CooperativeSampler(
        schedule,
        langevin_steps=langevin_steps,
        kernel=parts.kernel,
        score_scale=parts.score_scale,
    )
    ends: list[LevelEnd] = []
    with patch("cdrl_infer.sampler.RecoveryEnergy", parts.recovery):
        out = sampler.sample(
            parts.prior(data),
            PosteriorMeanProposal(data),
            BatchRandom(n, torch.Generator().manual_seed(seed)),
            shape=data.mean.shape,
            on_level_end=ends.append,
        )
    assert [end.t for end in ends] == list(range(schedule.num_levels, 0, -1))
    return ends[-1].refined, out.samples, out.energies


def gaussian_chain(parts: Parts, schedule: NoiseSchedule, n: int) -> float:
    """(d) K = 15 on Gaussian data: the law of the algorithm is exact, for any schedule.

    The start N(0, I), the proposal's spread, unconverged unadjusted steps and Tweedie's step are
    all in the reference.
    """
    eye = torch.eye(2).double()
    mean, covariance = torch.zeros(2).double(), eye
    for t in range(6, 0, -1):
        level = schedule.level(t)
        law = gaussian_langevin(gaussian_proposal(level), level, steps=15)
        mean, covariance = law.push(mean, covariance)
        mean, covariance = mean / level.scale, covariance / level.scale**2
    target_mean, target = gaussian_at(level)
    precision = torch.linalg.inv(target)
    a, s = level.alpha.double(), level.sigma_bar.double()
    tweedie = Affine((eye - s**2 * precision) / a, s**2 * precision @ target_mean / a, 0 * eye)
    x, samples, energies = run_chain(parts, schedule, GAUSSIAN, langevin_steps=15, n=n)
    shift = mean - target_mean
    energy = 0.5 * (
        torch.trace(precision @ covariance)
        + shift @ precision @ shift
        + torch.logdet(2 * math.pi * level.scale.double() ** 2 * target)
    )
    return max(
        moment_deviation(x, mean, covariance),
        moment_deviation(samples, *tweedie.push(mean, covariance)),
        deviation(energies.double(), float(energy)),
    )


CHAIN_GRID = Grid(torch.linspace(-6.5, 12, 281, dtype=torch.float64))


@cache
def skewed_law(schedule: NoiseSchedule, steps: int) -> Tensor:
    """The algorithm's law of x_0 for the skewed data, on `CHAIN_GRID`."""
    grid = CHAIN_GRID
    x = grid.points
    law = grid.normal(torch.tensor(0.0), 1.0)
    for t in range(schedule.num_levels, 0, -1):
        level = schedule.level(t)
        # y = m_t x_{t-1} lives on a scaled copy of the grid, so that x_{t-1} is on the grid again.
        inner = Grid(x * level.scale)
        centres = PosteriorMeanProposal(SKEWED).mean(x[:, None], level)[:, 0]
        start = inner.normal(centres, level.proposal_variance.item())
        if level.recovery == 0:
            law = inner.langevin(law @ start, level, steps)
        else:
            rows = [
                inner.langevin(start[i], level, steps, x[i]) if law[i] > 1e-9 else 0 * start[i]
                for i in range(len(x))
            ]
            law = law @ torch.stack(rows)
    return law


SKEWED_SCHEDULE = NoiseSchedule(logsnr_max=4.0, step_rule="curvature", step_size=0.5)


def skewed_chain(parts: Parts) -> float:
    """(d) Six levels on skewed data: mean, variance and third moment of x_0."""
    law = skewed_law(SKEWED_SCHEDULE, steps=15)
    x, _, _ = run_chain(parts, SKEWED_SCHEDULE, SKEWED, langevin_steps=15, n=20_000)
    return moment_deviation(x, *CHAIN_GRID.moments(law))


SMALL_STEP = 0.2
SMALL_STEPS = NoiseSchedule(logsnr_max=4.0, step_rule="curvature", step_size=SMALL_STEP)


def small_step_chain(parts: Parts, data: AnalyticEnergy) -> float:
    """(d) Six levels of small steps recover the data's own law, but for `langevin_bias`.

    Mean and covariance of x_0, and its third moments or its components' weights; the mean of x̂.
    """
    level, bias = SMALL_STEPS.level(1), langevin_bias(SMALL_STEP)
    x, samples, _ = run_chain(parts, SMALL_STEPS, data, langevin_steps=90, n=4_000)
    a, s = level.alpha.double(), level.sigma_bar.double()
    covariance = a**2 * data.covariance + s**2 * torch.eye(len(data.mean)).double()
    third = a**3 * data.third_moment if isinstance(data, ExponentialGaussianEnergy) else None
    worst = max(
        moment_deviation(x, a * data.mean, covariance, third, bias),
        deviation(samples.double(), data.mean, bias),
    )
    if isinstance(data, GaussianMixtureEnergy):
        shares = data.log_components(x.double(), a, s).softmax(1)
        worst = max(worst, deviation(shares, data.weights, bias))
    return worst


# --- the tests -----------------------------------------------------------------------------------

Check = Callable[[Parts], float]
COARSE = NoiseSchedule(logsnr_max=4.0, step_rule="curvature", step_size=0.8)
CHECKS: dict[str, tuple[Check, dict[str, Parts]]] = {
    "gaussian prior": (gaussian_prior, PRIOR_ERRORS),
    "gaussian recovery": (gaussian_recovery, ERRORS),
    "mixture recovery": (mixture_recovery, ERRORS),
    "skewed prior": (skewed_prior, PRIOR_ERRORS),
    "skewed recovery": (skewed_recovery, ERRORS),
    "gaussian chain, paper": (lambda parts: gaussian_chain(parts, NoiseSchedule(), 30_000), ERRORS),
    "gaussian chain, coarse": (
        lambda parts: gaussian_chain(parts, COARSE, 20_000),
        LAST_STEP_ERRORS,
    ),
    "skewed chain": (skewed_chain, ERRORS),
    "skewed chain, small steps": (lambda parts: small_step_chain(parts, SKEWED), ERRORS),
    "mixture chain, small steps": (lambda parts: small_step_chain(parts, MIXTURE), ERRORS),
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
        random = BatchRandom(n, torch.Generator().manual_seed(0))
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

    random = BatchRandom(chains, torch.Generator().manual_seed(0))
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
