"""The adjusted kernels are exact at any step size; their classic errors, planted, are caught.

Chains start from exact draws of the target, so an exact kernel leaves every mean within `LIMIT` standard
errors, however large its step and however few its steps; no bias is allowed for.
"""

from __future__ import annotations

from collections.abc import Callable
from unittest.mock import patch

import pytest
import test_kernels
import torch
from laws import CAUGHT, MIXTURE, PLANE, SKEWED, batch_random, deviation, moment_deviation, streams
from test_kernels import ADJUSTED, OWN, SCHEDULE
from torch import Tensor

from cdrl_infer.energies.analytic import (
    AnalyticEnergy,
    ExponentialGaussianEnergy,
    GaussianMixtureEnergy,
    PosteriorMeanProposal,
)
from cdrl_infer.energies.base import Potential
from cdrl_infer.energies.recovery import RecoveryEnergy
from cdrl_infer.kernels import hmc
from cdrl_infer.kernels.base import Kernel
from cdrl_infer.kernels.hmc import HMC, MALA, HMCState
from cdrl_infer.kernels.langevin import Langevin
from cdrl_infer.sampler import CooperativeSampler, LevelEnd
from cdrl_infer.schedule import Level, NoiseSchedule

LIMIT = 4.0  # standard errors


def skewed(kernel: Kernel, step_scale: float) -> float:
    """Mean, variance and third moment of a skewed law, from exact draws of it."""
    n, level = 8_000, SCHEDULE.level(3)
    y = SKEWED.sample_level(level, n, torch.Generator().manual_seed(1))
    y = kernel.run(y, SKEWED.at(level), step_scale * level.step_variance, batch_random(n), 20).y
    return moment_deviation(y, *skewed_moments(level))


def skewed_moments(level: Level) -> tuple[Tensor, Tensor, Tensor]:
    gain = (level.scale * level.alpha).double()
    covariance = gain**2 * SKEWED.covariance + (level.scale * level.sigma_bar).double() ** 2
    return gain * SKEWED.mean, covariance, gain**3 * SKEWED.third_moment


def mixture(kernel: Kernel, step_scale: float) -> float:
    """Mean, covariance and components' shares of a mixture of three, from exact draws of it."""
    n, level = 8_000, SCHEDULE.level(4)
    signal, noise = (v.double() for v in (level.scale * level.alpha, level.scale * level.sigma_bar))
    y = MIXTURE.sample_level(level, n, torch.Generator().manual_seed(1))
    y = kernel.run(y, MIXTURE.at(level), step_scale * level.step_variance, batch_random(n), 20).y
    covariance = signal**2 * MIXTURE.covariance + noise**2 * torch.eye(2).double()
    return max(
        moment_deviation(y, signal * MIXTURE.mean, covariance),
        deviation(MIXTURE.log_components(y, signal, noise).softmax(1), MIXTURE.weights),
    )


def joint(kernel: Kernel, step_scale: float) -> float:
    """y and x_t drawn in turn, each given the other, keep their joint law (Geweke 2004).

    ``x_t = y + σ_t ε`` given y; y given x_t by one step on the recovery energy.
    """
    n, level = 8_000, SCHEDULE.level(3)
    random, variance = batch_random(n), level.noise_variance.double()
    y = SKEWED.sample_level(level, n, torch.Generator().manual_seed(1))
    x_t = y
    for _ in range(20):
        x_t = y + variance.sqrt() * random.normal((1,))
        potential = RecoveryEnergy(SKEWED, x_t).at(level)
        y = kernel.run(y, potential, step_scale * level.step_variance, random, 1).y
    mean, covariance, third = skewed_moments(level)
    both = covariance.expand(2, 2) + torch.diag(torch.stack([0 * variance, variance]))
    return moment_deviation(torch.cat([y, x_t], 1), mean.expand(2), both, third.expand(2))


Check = Callable[[Kernel, float], float]
# With a large step: MALA accepts from 0.5 to 0.7, HMC from 0.3 to 0.6.
CHECKS: dict[str, tuple[Check, float]] = {
    "skewed": (skewed, 12.0),
    "mixture": (mixture, 8.0),
    "joint": (joint, 8.0),
}
EXACT: dict[str, Kernel] = {"mala": MALA(), "hmc": HMC(leapfrog_steps=3)}


def at_a_large_step(kernel: Kernel, check: str) -> float:
    measure, step_scale = CHECKS[check]
    return measure(kernel, step_scale)


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("name", EXACT)
def test_adjusted_kernels_are_exact_at_a_large_step(name: str, check: str) -> None:
    assert at_a_large_step(EXACT[name], check) < LIMIT


@pytest.mark.parametrize("check", CHECKS)
def test_langevin_is_not(check: str) -> None:
    assert at_a_large_step(Langevin(), check) > CAUGHT


REAL_RATIO, REAL_CHOOSE, REAL_LEAPFROG = hmc.log_ratio, hmc.choose, hmc.leapfrog


def one_ratio_for_all(*args: HMCState | Tensor) -> Tensor:
    ratio = REAL_RATIO(*args)
    return ratio.mean().expand(ratio.shape)


def no_reverse_proposal(old: HMCState, new: HMCState, p: Tensor, p_new: Tensor) -> Tensor:
    return old.energy - new.energy


def wrong_sign(*args: HMCState | Tensor) -> Tensor:
    return -REAL_RATIO(*args)


def stale_gradient(accepted: Tensor, new: HMCState, old: HMCState) -> HMCState:
    """After a rejection, that of the point not taken."""
    return REAL_CHOOSE(accepted, new, old)._replace(grad=new.grad)


def stale_energy(accepted: Tensor, new: HMCState, old: HMCState) -> HMCState:
    """After an acceptance, that of the point left."""
    return REAL_CHOOSE(accepted, new, old)._replace(energy=old.energy)


def last_kick_missing(
    state: HMCState, p: Tensor, s: Tensor, potential: Potential
) -> tuple[HMCState, Tensor]:
    end, p = REAL_LEAPFROG(state, p, s, potential)
    return end, p + 0.5 * s * end.grad


ERRORS: dict[str, tuple[str, Callable]] = {
    "one ratio for all": ("log_ratio", one_ratio_for_all),
    "no reverse proposal": ("log_ratio", no_reverse_proposal),
    "wrong sign": ("log_ratio", wrong_sign),
    "stale gradient": ("choose", stale_gradient),
    "stale energy": ("choose", stale_energy),
    "last kick missing": ("leapfrog", last_kick_missing),
}


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("name", EXACT)
def test_each_classic_error_is_caught(name: str, error: str) -> None:
    """By one check at least: which errors show depends on the target."""
    part, wrong = ERRORS[error]
    with patch.object(hmc, part, wrong):
        assert max(at_a_large_step(EXACT[name], check) for check in ("skewed", "mixture")) > CAUGHT


@pytest.mark.parametrize("error", ["stale gradient", "stale energy"])
@pytest.mark.parametrize("name", ADJUSTED)
def test_the_contract_catches_stale_states(name: str, error: str) -> None:
    with patch.object(hmc, *ERRORS[error]), pytest.raises(AssertionError, match="not close"):
        test_kernels.test_state_knows_energy_and_gradient_where_it_is(name, "last")


@pytest.mark.parametrize("name", ADJUSTED)
def test_the_contract_catches_one_ratio_for_all(name: str) -> None:
    wrong = patch.object(hmc, "log_ratio", one_ratio_for_all)
    with wrong, pytest.raises(AssertionError, match="not close"):
        test_kernels.TestContract().test_an_image_does_not_see_its_batch(name, "mixed")


# --- in the sampler ------------------------------------------------------------------------------

CHAIN = NoiseSchedule(logsnr_max=4.0, step_rule="curvature", step_size=0.8)


def chain(kernel: Kernel, step_scale: float, data: AnalyticEnergy) -> float:
    """Six levels: mean and covariance of x_0, and its third moments or its components' shares."""
    n, level, ends = 4_000, CHAIN.level(1), list[LevelEnd]()
    CooperativeSampler(CHAIN, 15, kernel, step_scale).sample(
        data, PosteriorMeanProposal(data), batch_random(n), data.mean.shape, ends.append
    )
    x, a, s = ends[-1].refined.double(), level.alpha.double(), level.sigma_bar.double()
    covariance = a**2 * data.covariance + s**2 * torch.eye(len(data.mean)).double()
    third = a**3 * data.third_moment if isinstance(data, ExponentialGaussianEnergy) else None
    worst = moment_deviation(x, a * data.mean, covariance, third)
    if isinstance(data, GaussianMixtureEnergy):
        worst = max(worst, deviation(data.log_components(x, a, s).softmax(1), data.weights))
    return worst


@pytest.mark.parametrize("data", [SKEWED, MIXTURE], ids=["skewed", "mixture"])
def test_a_chain_of_exact_kernels_recovers_the_data_and_langevin_does_not(
    data: AnalyticEnergy,
) -> None:
    assert chain(HMC(leapfrog_steps=3), 3.0, data) < LIMIT
    assert chain(Langevin(), 3.0, data) > CAUGHT


@pytest.mark.parametrize("name", OWN)
def test_sampler_tells_acceptance_by_image_and_level(name: str) -> None:
    (kernel, scale), steps, ends = OWN[name], (3, 1, 0, 2, 4, 1), list[LevelEnd]()
    out = CooperativeSampler(SCHEDULE, steps, kernel, scale).sample(
        PLANE, PosteriorMeanProposal(PLANE), streams(*range(5)), (2,), ends.append
    )
    assert out.acceptance.shape == (5, 6)
    assert out.acceptance.isnan().all(0).tolist() == [False, False, True, False, False, False]
    for end in ends:
        assert torch.equal(end.acceptance.isnan(), torch.full((5,), end.t == 4))
        torch.testing.assert_close(out.acceptance[:, 6 - end.t], end.acceptance, equal_nan=True)
    rates = out.acceptance[:, [0, 1, 3, 4, 5]]
    assert (rates >= 0).all() and (rates <= 1).all()
    assert (rates == 1).all() if kernel.optimal_acceptance is None else (rates < 1).any()
