"""Is the whole chain right in distribution? As in `test_distribution`, level after level."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from unittest.mock import patch

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
    gaussian_at,
    gaussian_langevin,
    gaussian_proposal,
    langevin_bias,
    moment_deviation,
)
from planted import ERRORS, LAST_STEP_ERRORS, RIGHT, Parts
from torch import Tensor

from cdrl_infer.energies.analytic import (
    AnalyticEnergy,
    ExponentialGaussianEnergy,
    GaussianMixtureEnergy,
    PosteriorMeanProposal,
)
from cdrl_infer.sampler import CooperativeSampler, LevelEnd
from cdrl_infer.schedule import NoiseSchedule


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
            batch_random(n, seed),
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


Check = Callable[[Parts], float]
COARSE = NoiseSchedule(logsnr_max=4.0, step_rule="curvature", step_size=0.8)
CHECKS: dict[str, tuple[Check, dict[str, Parts]]] = {
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
