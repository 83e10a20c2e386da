"""One contract for every kernel; exactness of the adjusted ones; what the warm-up finds.

Statistics and their standard errors are those of `test_distribution`. Chains start from exact draws
of the target, so an exact kernel leaves every mean within `LIMIT` standard errors, however large its
step and however few its steps; no bias is allowed for.
"""

from __future__ import annotations

import importlib
import math
import pkgutil
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from unittest.mock import patch

import pytest
import torch
from test_distribution import CAUGHT, MIXTURE, SKEWED, deviation, moment_deviation
from torch import Tensor

import cdrl_infer.kernels
from cdrl_infer.energies.analytic import (
    AnalyticEnergy,
    ExponentialGaussianEnergy,
    GaussianMixtureEnergy,
    PosteriorMeanProposal,
)
from cdrl_infer.energies.base import Energy
from cdrl_infer.energies.recovery import RecoveryEnergy
from cdrl_infer.errors import InputError, NumericalError
from cdrl_infer.kernels import hmc
from cdrl_infer.kernels.base import Kernel
from cdrl_infer.kernels.hmc import HMC, MALA, HMCState
from cdrl_infer.kernels.langevin import Langevin
from cdrl_infer.proposals import IdentityProposal
from cdrl_infer.random import BatchRandom, PerImageRandom
from cdrl_infer.sampler import CooperativeSampler, LevelEnd
from cdrl_infer.schedule import Level, NoiseSchedule

LIMIT = 4.0  # standard errors

SCHEDULE = NoiseSchedule(step_rule="curvature", step_size=0.8)
EACH = (3.0, 2.5, 2.0, 1.5, 1.0, 0.5)  # t = 6 … 1
KERNELS: dict[str, Kernel] = {
    "langevin": Langevin(step_scale=0.7),
    "langevin, each level": Langevin(step_scale=EACH),
    "mala": MALA(step_scale=2.0),
    "mala, each level": MALA(step_scale=EACH),
    "hmc": HMC(step_scale=2.0, leapfrog_steps=4),
    "hmc, each level": HMC(step_scale=EACH, leapfrog_steps=2),
}
ADJUSTED = [name for name, kernel in KERNELS.items() if isinstance(kernel, HMC)]
LEVELS = {
    "lowest": SCHEDULE.level(1),
    "last": SCHEDULE.level(6),
    "mixed": SCHEDULE.level(torch.tensor([1, 2, 4, 5, 6])),
}
PLANE = ExponentialGaussianEnergy([-0.8, 0.2], [0.3, 0.4], [1.25, 2.0])


def points(batch: int = 5) -> Tensor:
    return torch.randn(batch, 2, generator=torch.Generator().manual_seed(9), dtype=torch.float64)


def streams(*seeds: int) -> PerImageRandom:
    return PerImageRandom.from_seeds(seeds, "cpu")


def batch_random(n: int, seed: int = 0) -> BatchRandom:
    return BatchRandom(n, torch.Generator().manual_seed(seed))


class Counting(Energy):
    """An energy that counts the gradients asked of it."""

    def __init__(self, energy: Energy) -> None:
        self.energy, self.gradients = energy, 0

    def __call__(self, y: Tensor, level: Level) -> Tensor:
        pytest.fail("a kernel needs no energy without its gradient")

    def value_and_grad(self, y: Tensor, level: Level) -> tuple[Tensor, Tensor]:
        self.gradients += 1
        return self.energy.value_and_grad(y, level)


class Bowl(Energy):
    """``½‖y‖²`` on images, and ``outside`` where the first pixel is above 1."""

    def __init__(self, outside: float | None = None) -> None:
        self.outside = outside

    def __call__(self, y: Tensor, level: Level) -> Tensor:
        value = 0.5 * y.square().flatten(1).sum(1)
        if self.outside is None:
            return value
        return value.where(y.flatten(1)[:, 0] <= 1, self.outside)


# --- the contract --------------------------------------------------------------------------------


@pytest.mark.parametrize("at", LEVELS)
@pytest.mark.parametrize("name", KERNELS)
class TestContract:
    def test_step(self, name: str, at: str) -> None:
        kernel, level, y = KERNELS[name], LEVELS[at], points()
        before, random = y.clone(), streams(*range(5))
        moved = torch.zeros(5, dtype=torch.bool)
        state = kernel.init(y, PLANE, level)
        for _ in range(20):
            previous = state.y
            state, info = kernel.step(state, PLANE, level, random)
            assert state.y.shape == y.shape and state.y.dtype == y.dtype
            assert not state.y.requires_grad
            assert info.acceptance.shape == info.accepted.shape == (5,)
            assert info.accepted.dtype == torch.bool
            assert (info.acceptance >= 0).all() and (info.acceptance <= 1).all()
            assert torch.equal((state.y != previous).all(1), info.accepted)
            assert torch.equal((state.y != previous).any(1), info.accepted)
            moved |= info.accepted
        assert moved.all()
        assert torch.equal(y, before)

    def test_an_image_does_not_see_its_batch(self, name: str, at: str) -> None:
        kernel, level, y = KERNELS[name], LEVELS[at], points()
        together = kernel.run(y, PLANE, level, streams(*range(5)), 15)
        for k in range(5):
            own = SCHEDULE.level(int(level.t[k])) if level.t.ndim else level
            alone = kernel.run(y[k : k + 1], PLANE, own, streams(k), 15)
            torch.testing.assert_close(together.y[k : k + 1], alone.y, rtol=1e-6, atol=1e-6)
            torch.testing.assert_close(
                together.acceptance[k : k + 1], alone.acceptance, rtol=1e-5, atol=1e-5
            )

    def test_run_is_steps_in_a_row(self, name: str, at: str) -> None:
        kernel, level, y = KERNELS[name], LEVELS[at], points()
        random, rates = streams(*range(5)), []
        state = kernel.init(y, PLANE, level)
        for _ in range(7):
            state, info = kernel.step(state, PLANE, level, random)
            rates.append(info.acceptance)
        end = kernel.run(y, PLANE, level, streams(*range(5)), 7)
        assert torch.equal(end.y, state.y)
        mean = torch.stack(rates).mean(0).float()
        torch.testing.assert_close(end.acceptance.float(), mean)

    def test_no_gradient_is_wasted(self, name: str, at: str) -> None:
        kernel, level, energy = KERNELS[name], LEVELS[at], Counting(PLANE)
        end = kernel.run(points(), energy, level, streams(*range(5)), 0)
        assert energy.gradients == 0
        assert torch.equal(end.y, points()) and end.acceptance.isnan().all()
        kernel.run(points(), energy, level, streams(*range(5)), 6)
        expected = 6 * kernel.leapfrog_steps + 1 if isinstance(kernel, HMC) else 6
        assert energy.gradients == expected

    def test_images_in_float32(self, name: str, at: str) -> None:
        kernel, level = KERNELS[name], LEVELS[at]
        with torch.no_grad():
            end = kernel.run(torch.zeros(5, 3, 4, 4), Bowl(), level, streams(*range(5)), 3)
        assert end.y.shape == (5, 3, 4, 4) and end.y.dtype == torch.float32
        assert end.acceptance.shape == (5,) and end.y.isfinite().all()


def test_the_contract_covers_every_kernel_there_is() -> None:
    for module in pkgutil.iter_modules(cdrl_infer.kernels.__path__):
        importlib.import_module(f"cdrl_infer.kernels.{module.name}")
    found = {*Kernel.__subclasses__(), *HMC.__subclasses__()}
    known = {cls for cls in found if cls.__module__.startswith("cdrl_infer.")}
    assert known == {type(kernel) for kernel in KERNELS.values()}


@pytest.mark.parametrize("at", ["last", "mixed"])  # at the lowest, next to nothing is rejected
@pytest.mark.parametrize("name", ADJUSTED)
def test_state_knows_energy_and_gradient_where_it_is(name: str, at: str) -> None:
    kernel, level, random = KERNELS[name], LEVELS[at], streams(*range(5))
    state, rejected = kernel.init(points(), PLANE, level), 0
    for _ in range(20):
        state, info = kernel.step(state, PLANE, level, random)
        value, grad = PLANE.value_and_grad(state.y, level)
        torch.testing.assert_close(state.energy, value, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(state.grad, grad, rtol=1e-12, atol=1e-12)
        rejected += int((~info.accepted).sum())
    assert rejected > 0


# --- step sizes ----------------------------------------------------------------------------------


def test_step_scale_of_each_level_is_in_the_order_in_which_levels_run() -> None:
    kernel, t = Langevin(step_scale=(6.0, 5.0, 4.0, 3.0, 2.0, 1.0)), torch.tensor([3, 1, 6, 3])
    for index in range(1, 7):
        level = SCHEDULE.level(index)
        assert kernel.step_variance(level) == index * level.step_variance
    level = SCHEDULE.level(t)
    assert torch.equal(kernel.step_variance(level), t * level.step_variance)


@pytest.mark.parametrize("scale", [0.0, -1.0, math.inf, math.nan, (), (1.0, 0.0)])
@pytest.mark.parametrize("kernel", [Langevin, MALA, HMC])
def test_step_scales_that_are_none(kernel: type[Kernel], scale: float) -> None:
    with pytest.raises(InputError, match="step_scale must be positive and finite, one number or"):
        kernel(step_scale=scale)


@pytest.mark.parametrize("steps", [0, -1, 1.5, True])
def test_leapfrog_steps_that_are_none(steps: int) -> None:
    with pytest.raises(InputError, match="leapfrog_steps must be an integer of at least 1, got"):
        HMC(leapfrog_steps=steps)


def test_step_scales_are_counted_when_a_sampler_is_made() -> None:
    CooperativeSampler(SCHEDULE, 1, MALA(step_scale=EACH))
    with pytest.raises(InputError, match="one number or 6, one per level, got 2"):
        CooperativeSampler(SCHEDULE, 1, MALA(step_scale=(1.0, 2.0)))


# --- each kernel is what it says -----------------------------------------------------------------


def test_langevin_draws_one_normal_a_step_and_nothing_else() -> None:
    """Kept bit by bit: images are known by their seeds."""
    level, y, random = SCHEDULE.level(2), points().float(), streams(*range(5))
    end = Langevin(step_scale=0.5).run(y, PLANE, level, streams(*range(5)), 4).y
    for _ in range(4):
        _, grad = PLANE.value_and_grad(y, level)
        s2 = level.step_variance * 0.5
        y = y - 0.5 * s2 * grad + s2.sqrt() * random.normal((2,))
    assert torch.equal(end, y)


def test_mala_is_metropolis_hastings_on_langevins_proposal() -> None:
    n, level = 200, SCHEDULE.level(3)
    y = PLANE.sample_level(level, n, torch.Generator().manual_seed(0))
    langevin = Langevin(step_scale=6.0)
    s2 = langevin.step_variance(level).double()
    proposed = langevin.run(y, PLANE, level, batch_random(n), 1).y
    mala = MALA(step_scale=6.0)
    state, info = mala.step(mala.init(y, PLANE, level), PLANE, level, batch_random(n))

    def log_q(to: Tensor, of: Tensor) -> Tensor:
        mean = of - 0.5 * s2 * PLANE.value_and_grad(of, level)[1]
        return torch.distributions.Normal(mean, s2.sqrt()).log_prob(to).sum(1)

    ratio = PLANE(y, level) - PLANE(proposed, level) + log_q(y, proposed) - log_q(proposed, y)
    torch.testing.assert_close(info.acceptance, ratio.clamp(max=0).exp(), rtol=1e-5, atol=1e-6)
    expected = torch.where(info.accepted[:, None], proposed, y)
    torch.testing.assert_close(state.y, expected, rtol=1e-6, atol=1e-6)
    assert 0.3 < info.accepted.double().mean() < 0.9


def test_mala_is_hmc_of_one_leapfrog_step() -> None:
    level = SCHEDULE.level(3)
    one, other = (
        kernel.run(points(), PLANE, level, streams(*range(5)), 9)
        for kernel in (MALA(step_scale=2.0), HMC(step_scale=2.0, leapfrog_steps=1))
    )
    assert torch.equal(one.y, other.y) and torch.equal(one.acceptance, other.acceptance)


def test_leapfrog_can_be_run_backwards() -> None:
    level, y, s = SCHEDULE.level(4), points(), torch.tensor(0.3)
    start = HMC().init(y, PLANE, level)
    state, p = start, torch.ones_like(y)
    for sign in (1, -1):
        p = sign * p
        for _ in range(6):
            state, p = hmc.leapfrog(state, p, s, PLANE, level)
    torch.testing.assert_close(state.y, y, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(p, -torch.ones_like(y), rtol=1e-10, atol=1e-10)


def test_energy_error_of_a_trajectory_falls_with_the_square_of_the_step() -> None:
    level, y = SCHEDULE.level(4), points()
    momentum = points().flip(0)
    errors = []
    for steps in (8, 16, 32):
        state = start = HMC().init(y, PLANE, level)
        p = momentum
        for _ in range(steps):
            state, p = hmc.leapfrog(state, p, torch.tensor(0.8 / steps), PLANE, level)
        errors.append(hmc.log_ratio(start, state, momentum, p))
    for coarse, fine in pairwise(errors):
        torch.testing.assert_close(coarse / fine, torch.full_like(fine, 4.0), rtol=0.1, atol=0)


def test_log_ratio_keeps_its_digits_in_float32() -> None:
    """On 3,072 values, whose kinetic energies are 1,536 nats."""
    generator = torch.Generator().manual_seed(0)
    p = torch.randn(50, 3072, generator=generator)
    p_new = p + 0.05 * torch.randn(50, 3072, generator=generator)
    old, new = (
        HMCState(p, torch.full((50,), 500.0), p),
        HMCState(p, torch.full((50,), 501.0), p),
    )
    exact = 0.5 * (p.double().square() - p_new.double().square()).sum(1) - 1
    torch.testing.assert_close(hmc.log_ratio(old, new, p, p_new).double(), exact, rtol=0, atol=2e-5)


@pytest.mark.parametrize("outside", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ADJUSTED)
def test_moves_to_where_the_energy_is_not_finite_are_rejected(name: str, outside: float) -> None:
    n, level, start = 200, SCHEDULE.level(6), torch.zeros(200, 2)
    kernel, wall = replace(KERNELS[name], step_scale=2.0), Bowl(outside)
    end = kernel.run(start, wall, level, batch_random(n), 25)
    free = kernel.run(start, Bowl(), level, batch_random(n), 25)
    assert (free.y[:, 0] > 1).any()
    assert (end.y[:, 0] <= 1).all() and end.y.isfinite().all()
    assert (end.y != start).all(1).double().mean() > 0.9
    assert end.acceptance.mean() < free.acceptance.mean()


@pytest.mark.parametrize("outside", [math.nan, math.inf])
@pytest.mark.parametrize("name", ADJUSTED)
def test_a_start_where_the_energy_is_not_finite_comes_out_as_nan(name: str, outside: float) -> None:
    kernel, level, y = KERNELS[name], SCHEDULE.level(6), torch.zeros(4, 2)
    y[2, 0] = 1.5
    end = kernel.run(y, Bowl(outside), level, streams(*range(4)), 5)
    assert end.y.isnan().all(1).tolist() == [False, False, True, False]
    assert end.acceptance[2] == 0
    others = kernel.run(torch.zeros(4, 2), Bowl(outside), level, streams(*range(4)), 5)
    sound = [0, 1, 3]
    torch.testing.assert_close(end.y[sound], others.y[sound])


# --- exactness -----------------------------------------------------------------------------------


def skewed(kernel: Kernel) -> float:
    """Mean, variance and third moment of a skewed law, from exact draws of it."""
    n, level = 8_000, SCHEDULE.level(3)
    y = SKEWED.sample_level(level, n, torch.Generator().manual_seed(1))
    y = kernel.run(y, SKEWED, level, batch_random(n), 20).y
    return moment_deviation(y, *skewed_moments(level))


def skewed_moments(level: Level) -> tuple[Tensor, Tensor, Tensor]:
    gain = (level.scale * level.alpha).double()
    covariance = gain**2 * SKEWED.covariance + (level.scale * level.sigma_bar).double() ** 2
    return gain * SKEWED.mean, covariance, gain**3 * SKEWED.third_moment


def mixture(kernel: Kernel) -> float:
    """Mean, covariance and components' shares of a mixture of three, from exact draws of it."""
    n, level = 8_000, SCHEDULE.level(4)
    signal, noise = (v.double() for v in (level.scale * level.alpha, level.scale * level.sigma_bar))
    y = MIXTURE.sample_level(level, n, torch.Generator().manual_seed(1))
    y = kernel.run(y, MIXTURE, level, batch_random(n), 20).y
    covariance = signal**2 * MIXTURE.covariance + noise**2 * torch.eye(2).double()
    return max(
        moment_deviation(y, signal * MIXTURE.mean, covariance),
        deviation(MIXTURE.log_components(y, signal, noise).softmax(1), MIXTURE.weights),
    )


def joint(kernel: Kernel) -> float:
    """y and x_t drawn in turn, each given the other, keep their joint law (Geweke 2004).

    ``x_t = y + σ_t ε`` given y; y given x_t by one step on the recovery energy.
    """
    n, level = 8_000, SCHEDULE.level(3)
    random, variance = batch_random(n), level.noise_variance.double()
    y = SKEWED.sample_level(level, n, torch.Generator().manual_seed(1))
    x_t = y
    for _ in range(20):
        x_t = y + variance.sqrt() * random.normal((1,))
        y = kernel.run(y, RecoveryEnergy(SKEWED, x_t), level, random, 1).y
    mean, covariance, third = skewed_moments(level)
    both = covariance.expand(2, 2) + torch.diag(torch.stack([0 * variance, variance]))
    return moment_deviation(torch.cat([y, x_t], 1), mean.expand(2), both, third.expand(2))


Check = Callable[[Kernel], float]
# With a large step: MALA accepts from 0.5 to 0.7, HMC from 0.3 to 0.6.
CHECKS: dict[str, tuple[Check, float]] = {
    "skewed": (skewed, 12.0),
    "mixture": (mixture, 8.0),
    "joint": (joint, 8.0),
}
EXACT: dict[str, Kernel] = {"mala": MALA(), "hmc": HMC(leapfrog_steps=3)}


def at_a_large_step(kernel: Kernel, check: str) -> float:
    measure, step_scale = CHECKS[check]
    return measure(replace(kernel, step_scale=step_scale))


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
    state: HMCState, p: Tensor, s: Tensor, energy: Energy, level: Level
) -> tuple[HMCState, Tensor]:
    end, p = REAL_LEAPFROG(state, p, s, energy, level)
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
        test_state_knows_energy_and_gradient_where_it_is(name, "last")


@pytest.mark.parametrize("name", ADJUSTED)
def test_the_contract_catches_one_ratio_for_all(name: str) -> None:
    wrong = patch.object(hmc, "log_ratio", one_ratio_for_all)
    with wrong, pytest.raises(AssertionError, match="not close"):
        TestContract().test_an_image_does_not_see_its_batch(name, "mixed")


# --- in the sampler ------------------------------------------------------------------------------

CHAIN = NoiseSchedule(logsnr_max=4.0, step_rule="curvature", step_size=0.8)


def chain(kernel: Kernel, data: AnalyticEnergy) -> float:
    """Six levels: mean and covariance of x_0, and its third moments or its components' shares."""
    n, level, ends = 4_000, CHAIN.level(1), list[LevelEnd]()
    CooperativeSampler(CHAIN, 15, kernel).sample(
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
    assert chain(HMC(step_scale=3.0, leapfrog_steps=3), data) < LIMIT
    assert chain(Langevin(step_scale=3.0), data) > CAUGHT


@pytest.mark.parametrize("name", KERNELS)
def test_sampler_tells_acceptance_by_image_and_level(name: str) -> None:
    kernel, steps, ends = KERNELS[name], (3, 1, 0, 2, 4, 1), list[LevelEnd]()
    out = CooperativeSampler(SCHEDULE, steps, kernel).sample(
        PLANE, PosteriorMeanProposal(PLANE), streams(*range(5)), (2,), ends.append
    )
    assert out.acceptance.shape == (5, 6)
    assert out.acceptance.isnan().all(0).tolist() == [False, False, True, False, False, False]
    for end in ends:
        assert torch.equal(end.acceptance.isnan(), torch.full((5,), end.t == 4))
        torch.testing.assert_close(out.acceptance[:, 6 - end.t], end.acceptance, equal_nan=True)
    rates = out.acceptance[:, [0, 1, 3, 4, 5]]
    assert (rates >= 0).all() and (rates <= 1).all()
    assert (rates == 1).all() if isinstance(kernel, Langevin) else (rates < 1).any()


# --- the warm-up ---------------------------------------------------------------------------------

DIM = 50
WIDE = GaussianMixtureEnergy(
    [1.0], [[0.3] * DIM], [torch.linspace(0.05, 1.0, DIM, dtype=torch.float64).tolist()]
)
THREE = NoiseSchedule(num_levels=3, logsnr_max=4.0, step_rule="curvature", step_size=1.0)


def adapted(sampler: CooperativeSampler, **options: float) -> tuple[float, ...]:
    """The scales found, having checked that other noise accepts as much with them, within 0.05."""
    assert isinstance(sampler.kernel, HMC)
    proposal = PosteriorMeanProposal(WIDE)
    found = sampler.adapt(WIDE, proposal, batch_random(64), (DIM,), **options)
    assert len(found.step_scale) == len(found.acceptance) == 3
    fixed = replace(sampler, kernel=replace(sampler.kernel, step_scale=found.step_scale))
    out = fixed.sample(WIDE, proposal, batch_random(128, seed=1), (DIM,))
    target = options.get("target", sampler.kernel.optimal_acceptance)
    expected = torch.full((3,), target)
    torch.testing.assert_close(out.acceptance.mean(0), expected, rtol=0, atol=0.05)
    torch.testing.assert_close(torch.tensor(found.acceptance), expected, rtol=0, atol=0.08)
    return found.step_scale


@pytest.mark.parametrize("kernel", [MALA(), HMC(leapfrog_steps=3)], ids=["mala", "hmc"])
def test_warm_up_reaches_its_target_from_any_first_guess(kernel: HMC) -> None:
    """50 dimensions whose variances differ by a factor of 20; three levels.

    At the last level, where all variances are nearly one, HMC's acceptance falls, rises and falls
    again with the step, and so reaches the target at more than one.
    """
    found = [
        adapted(CooperativeSampler(THREE, 5, replace(kernel, step_scale=guess)))
        for guess in (0.01, 1.0, 100.0)
    ]
    once = slice(0 if isinstance(kernel, MALA) else 1, 3)
    for scales in found[1:]:
        assert scales[once] == pytest.approx(found[0][once], rel=0.05)
    assert max(found[0]) > 2 * min(found[0])  # one scale would not do for all levels


def test_warm_up_reaches_another_target() -> None:
    sampler = CooperativeSampler(THREE, 5, MALA())
    assert adapted(sampler, target=0.8) < adapted(sampler, target=0.4)


def test_same_noise_finds_the_same_scales() -> None:
    sampler = CooperativeSampler(THREE, (2, 0, 1), MALA(step_scale=(1, 7, 3)))
    found = [
        sampler.adapt(WIDE, IdentityProposal(), batch_random(4), (DIM,), steps=8) for _ in range(2)
    ]
    assert found[0].step_scale == found[1].step_scale
    assert found[0].step_scale[1] == pytest.approx(7)  # no step, no change
    assert math.isnan(found[0].acceptance[1])


def test_optimal_acceptance() -> None:
    assert MALA().optimal_acceptance == HMC(leapfrog_steps=1).optimal_acceptance == 0.574
    assert HMC(leapfrog_steps=2).optimal_acceptance == 0.651


@pytest.mark.parametrize(
    ("kernel", "options", "message"),
    [
        (Langevin(), {}, "needs a kernel that can reject a move, MALA or HMC, got Langevin"),
        (MALA(), {"target": 1.0}, "target in (0, 1) and steps of at least 1, got target=1.0"),
        (MALA(), {"target": 0.0}, "got target=0.0, steps=60"),
        (MALA(), {"steps": 0}, "got target=0.574, steps=0"),
    ],
)
def test_warm_ups_that_are_none(kernel: Kernel, options: dict[str, float], message: str) -> None:
    with pytest.raises(InputError) as caught:
        CooperativeSampler(THREE, 1, kernel).adapt(
            Bowl(), IdentityProposal(), streams(0), (DIM,), **options
        )
    assert message in str(caught.value)


def test_warm_up_on_an_energy_that_is_not_finite() -> None:
    class Broken(Energy):
        def __call__(self, y: Tensor, level: Level) -> Tensor:
            return math.nan * y.sum(1)

    with pytest.raises(NumericalError, match="adapting left the finite numbers at level 3"):
        CooperativeSampler(THREE, 2, MALA()).adapt(
            Broken(), IdentityProposal(), streams(0, 1), (2,), steps=3
        )


# --- uniform numbers -----------------------------------------------------------------------------


def test_uniform_of_an_image_is_from_its_own_stream() -> None:
    together = streams(3, 4, 5)
    assert together.uniform().shape == (3,)
    drawn = together.uniform()
    for k, seed in enumerate((3, 4, 5)):
        alone = streams(seed)
        alone.uniform()
        assert drawn[k] == alone.uniform()[0]
    assert len(set(drawn.tolist())) == 3


def test_uniform_of_a_batch_is_uniform() -> None:
    n = 10_000
    drawn = batch_random(n).uniform()
    assert drawn.shape == (n,) and (drawn >= 0).all() and (drawn < 1).all()
    assert deviation(drawn.double(), 0.5) < LIMIT
    assert deviation(drawn.double().square(), 1 / 3) < LIMIT
