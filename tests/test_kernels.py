"""One contract for every kernel, and each kernel is what it says."""

from __future__ import annotations

import importlib
import math
import pkgutil
from itertools import pairwise

import pytest
import torch
from laws import PLANE, batch_random, deviation, streams
from torch import Tensor

import cdrl_infer.kernels
from cdrl_infer.energies.base import FunctionPotential, Potential
from cdrl_infer.errors import ConfigError, InputError
from cdrl_infer.kernels import KERNELS, hmc
from cdrl_infer.kernels.base import Kernel
from cdrl_infer.kernels.hmc import HMC, MALA, HMCState
from cdrl_infer.kernels.langevin import Langevin
from cdrl_infer.kernels.leimkuhler_matthews import LeimkuhlerMatthews
from cdrl_infer.kernels.sphere import SphereDescent
from cdrl_infer.schedule import Level, NoiseSchedule

SCHEDULE = NoiseSchedule(step_rule="curvature", step_size=0.8)
OWN: dict[str, tuple[Kernel, float]] = {  # and a step scale
    "langevin": (Langevin(), 0.7),
    "leimkuhler-matthews": (LeimkuhlerMatthews(), 0.7),
    "mala": (MALA(), 2.0),
    "hmc": (HMC(leapfrog_steps=4), 2.0),
}
ADJUSTED = [name for name, (kernel, _) in OWN.items() if kernel.optimal_acceptance is not None]
LEVELS = {
    "lowest": SCHEDULE.level(1),
    "last": SCHEDULE.level(6),
    "mixed": SCHEDULE.level(torch.tensor([1, 2, 4, 5, 6])),
}


def points(batch: int = 5) -> Tensor:
    return torch.randn(batch, 2, generator=torch.Generator().manual_seed(9), dtype=torch.float64)


def bowl(outside: float | None = None) -> FunctionPotential:
    """``½‖y‖²`` on images, and ``outside`` where the first pixel is above 1."""

    def energy(y: Tensor) -> Tensor:
        value = 0.5 * y.square().flatten(1).sum(1)
        return value if outside is None else value.where(y.flatten(1)[:, 0] <= 1, outside)

    return FunctionPotential(energy)


class Counting:
    """A potential that counts the gradients asked of it."""

    def __init__(self, potential: Potential) -> None:
        self.potential, self.gradients = potential, 0

    def __call__(self, y: Tensor) -> Tensor:
        pytest.fail("a kernel needs no energy without its gradient")

    def value_and_grad(self, y: Tensor) -> tuple[Tensor, Tensor]:
        self.gradients += 1
        return self.potential.value_and_grad(y)


def prepared(name: str, at: str) -> tuple[Kernel, Potential, Tensor, Level]:
    """A kernel, what it samples at a level, its step size there, and the level."""
    (kernel, scale), level = OWN[name], LEVELS[at]
    return kernel, PLANE.at(level), scale * level.step_variance, level


@pytest.mark.parametrize("at", LEVELS)
@pytest.mark.parametrize("name", OWN)
class TestContract:
    def test_step(self, name: str, at: str) -> None:
        kernel, potential, step_size, _ = prepared(name, at)
        y, random = points(), streams(*range(5))
        before, moved = y.clone(), torch.zeros(5, dtype=torch.bool)
        state = kernel.init(y, potential)
        for _ in range(20):
            previous = state.y
            state, info = kernel.step(state, potential, step_size, random)
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
        kernel, potential, step_size, level = prepared(name, at)
        y = points()
        together = kernel.run(y, potential, step_size, streams(*range(5)), 15)
        for k in range(5):
            own = SCHEDULE.level(int(level.t[k])) if level.t.ndim else level
            size = step_size[k] if step_size.ndim else step_size
            alone = kernel.run(y[k : k + 1], PLANE.at(own), size, streams(k), 15)
            torch.testing.assert_close(together.y[k : k + 1], alone.y, rtol=1e-6, atol=1e-6)
            torch.testing.assert_close(
                together.acceptance[k : k + 1], alone.acceptance, rtol=1e-5, atol=1e-5
            )

    def test_run_is_steps_in_a_row(self, name: str, at: str) -> None:
        kernel, potential, step_size, _ = prepared(name, at)
        random, rates = streams(*range(5)), []
        state = kernel.init(points(), potential)
        for _ in range(7):
            state, info = kernel.step(state, potential, step_size, random)
            rates.append(info.acceptance)
        end = kernel.run(points(), potential, step_size, streams(*range(5)), 7)
        assert torch.equal(end.y, state.y)
        mean = torch.stack(rates).mean(0).float()
        torch.testing.assert_close(end.acceptance.float(), mean)

    def test_no_gradient_is_wasted(self, name: str, at: str) -> None:
        kernel, potential, step_size, _ = prepared(name, at)
        counting = Counting(potential)
        end = kernel.run(points(), counting, step_size, streams(*range(5)), 0)
        assert counting.gradients == 0
        assert torch.equal(end.y, points()) and end.acceptance.isnan().all()
        kernel.run(points(), counting, step_size, streams(*range(5)), 6)
        expected = 6 * kernel.leapfrog_steps + 1 if isinstance(kernel, HMC) else 6
        assert counting.gradients == expected

    def test_images_in_float32(self, name: str, at: str) -> None:
        kernel, _, step_size, _ = prepared(name, at)
        with torch.no_grad():
            end = kernel.run(torch.zeros(5, 3, 4, 4), bowl(), step_size, streams(*range(5)), 3)
        assert end.y.shape == (5, 3, 4, 4) and end.y.dtype == torch.float32
        assert end.acceptance.shape == (5,) and end.y.isfinite().all()


def test_the_contract_covers_every_kernel_there_is() -> None:
    for module in pkgutil.iter_modules(cdrl_infer.kernels.__path__):
        importlib.import_module(f"cdrl_infer.kernels.{module.name}")
    found = {*Kernel.__subclasses__(), *HMC.__subclasses__()}
    known = {cls for cls in found if cls.__module__.startswith("cdrl_infer.kernels.")}
    known -= {SphereDescent}  # it does not sample exp(-E)
    assert known == {type(kernel) for kernel, _ in OWN.values()} == {KERNELS[name] for name in OWN}


def test_kernels_that_are_not_known() -> None:
    with pytest.raises(
        ConfigError, match=r"unknown kernel 'mela', expected .* did you mean 'mala'"
    ):
        KERNELS.find("mela")


@pytest.mark.parametrize("at", ["last", "mixed"])  # at the lowest, next to nothing is rejected
@pytest.mark.parametrize("name", ADJUSTED)
def test_state_knows_energy_and_gradient_where_it_is(name: str, at: str) -> None:
    kernel, potential, step_size, _ = prepared(name, at)
    random = streams(*range(5))
    state, rejected = kernel.init(points(), potential), 0
    for _ in range(20):
        state, info = kernel.step(state, potential, step_size, random)
        value, grad = potential.value_and_grad(state.y)
        torch.testing.assert_close(state.energy, value, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(state.grad, grad, rtol=1e-12, atol=1e-12)
        rejected += int((~info.accepted).sum())
    assert rejected > 0


@pytest.mark.parametrize("steps", [0, -1, 1.5, True])
def test_bad_leapfrog_steps(steps: int) -> None:
    with pytest.raises(InputError, match=r"leapfrog_steps must be (an integer|at least 1), got"):
        HMC(leapfrog_steps=steps)


def test_optimal_acceptance() -> None:
    assert MALA().optimal_acceptance == HMC(leapfrog_steps=1).optimal_acceptance == 0.574
    assert HMC(leapfrog_steps=2).optimal_acceptance == 0.651
    assert Langevin().optimal_acceptance is None


# --- each kernel is what it says -----------------------------------------------------------------


def test_langevin_draws_one_normal_a_step_and_nothing_else() -> None:
    """Kept bit by bit: images are known by their seeds."""
    level, y, random = SCHEDULE.level(2), points().float(), streams(*range(5))
    potential, s2 = PLANE.at(level), level.step_variance * 0.5
    end = Langevin().run(y, potential, s2, streams(*range(5)), 4).y
    for _ in range(4):
        _, grad = potential.value_and_grad(y)
        y = y - 0.5 * s2 * grad + s2.sqrt() * random.normal((2,))
    assert torch.equal(end, y)


def test_mala_is_metropolis_hastings_on_langevins_proposal() -> None:
    n, level = 200, SCHEDULE.level(3)
    y = PLANE.sample_level(level, n, torch.Generator().manual_seed(0))
    potential, s2 = PLANE.at(level), 6 * level.step_variance.double()
    proposed = Langevin().run(y, potential, s2, batch_random(n), 1).y
    state, info = MALA().step(MALA().init(y, potential), potential, s2, batch_random(n))

    def log_q(to: Tensor, of: Tensor) -> Tensor:
        mean = of - 0.5 * s2 * potential.value_and_grad(of)[1]
        return torch.distributions.Normal(mean, s2.sqrt()).log_prob(to).sum(1)

    ratio = potential(y) - potential(proposed) + log_q(y, proposed) - log_q(proposed, y)
    torch.testing.assert_close(info.acceptance, ratio.clamp(max=0).exp(), rtol=1e-5, atol=1e-6)
    expected = torch.where(info.accepted[:, None], proposed, y)
    torch.testing.assert_close(state.y, expected, rtol=1e-6, atol=1e-6)
    assert 0.3 < info.accepted.double().mean() < 0.9


def test_mala_is_hmc_of_one_leapfrog_step() -> None:
    level = SCHEDULE.level(3)
    one, other = (
        kernel.run(points(), PLANE.at(level), 2 * level.step_variance, streams(*range(5)), 9)
        for kernel in (MALA(), HMC(leapfrog_steps=1))
    )
    assert torch.equal(one.y, other.y) and torch.equal(one.acceptance, other.acceptance)


def test_leapfrog_can_be_run_backwards() -> None:
    potential, y, s = PLANE.at(SCHEDULE.level(4)), points(), torch.tensor(0.3)
    state, p = HMC().init(y, potential), torch.ones_like(y)
    for sign in (1, -1):
        p = sign * p
        for _ in range(6):
            state, p = hmc.leapfrog(state, p, s, potential)
    torch.testing.assert_close(state.y, y, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(p, -torch.ones_like(y), rtol=1e-10, atol=1e-10)


def test_energy_error_of_a_trajectory_falls_with_the_square_of_the_step() -> None:
    potential, y = PLANE.at(SCHEDULE.level(4)), points()
    momentum = points().flip(0)
    errors = []
    for steps in (8, 16, 32):
        state = start = HMC().init(y, potential)
        p = momentum
        for _ in range(steps):
            state, p = hmc.leapfrog(state, p, torch.tensor(0.8 / steps), potential)
        errors.append(hmc.log_ratio(start, state, momentum, p))
    for coarse, fine in pairwise(errors):
        torch.testing.assert_close(coarse / fine, torch.full_like(fine, 4.0), rtol=0.1, atol=0)


def test_log_ratio_keeps_its_digits_in_float32() -> None:
    """On 3,072 values, whose kinetic energies are 1,536 nats."""
    generator = torch.Generator().manual_seed(0)
    p = torch.randn(50, 3072, generator=generator)
    p_new = p + 0.05 * torch.randn(50, 3072, generator=generator)
    old, new = (HMCState(p, torch.full((50,), nats), p) for nats in (500.0, 501.0))
    exact = 0.5 * (p.double().square() - p_new.double().square()).sum(1) - 1
    torch.testing.assert_close(hmc.log_ratio(old, new, p, p_new).double(), exact, rtol=0, atol=2e-5)


@pytest.mark.parametrize("outside", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ADJUSTED)
def test_moves_to_where_the_energy_is_not_finite_are_rejected(name: str, outside: float) -> None:
    (kernel, _, step_size, _), start = prepared(name, "last"), torch.zeros(200, 2)
    end = kernel.run(start, bowl(outside), step_size, batch_random(200), 25)
    free = kernel.run(start, bowl(), step_size, batch_random(200), 25)
    assert (free.y[:, 0] > 1).any()
    assert (end.y[:, 0] <= 1).all() and end.y.isfinite().all()
    assert (end.y != start).all(1).double().mean() > 0.9
    assert end.acceptance.mean() < free.acceptance.mean()


@pytest.mark.parametrize("outside", [math.nan, math.inf])
@pytest.mark.parametrize("name", ADJUSTED)
def test_a_start_where_the_energy_is_not_finite_comes_out_as_nan(name: str, outside: float) -> None:
    (kernel, _, step_size, _), y = prepared(name, "last"), torch.zeros(4, 2)
    y[2, 0] = 1.5
    end = kernel.run(y, bowl(outside), step_size, streams(*range(4)), 5)
    assert end.y.isnan().all(1).tolist() == [False, False, True, False]
    assert end.acceptance[2] == 0
    others = kernel.run(torch.zeros(4, 2), bowl(outside), step_size, streams(*range(4)), 5)
    sound = [0, 1, 3]
    torch.testing.assert_close(end.y[sound], others.y[sound])


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
    assert deviation(drawn.double(), 0.5) < 4
    assert deviation(drawn.double().square(), 1 / 3) < 4


@pytest.mark.parametrize("step", [0.4, 1.6, 3.0])
def test_averaged_noise_makes_the_variance_right_for_long_steps(step: float) -> None:
    """On ½ y² with s² = step: the variance is 1, where Langevin has 1 / (1 - step/4)."""
    count = 200_000
    for kernel, variance in ((LeimkuhlerMatthews(), 1.0), (Langevin(), 1 / (1 - step / 4))):
        start = batch_random(count).normal((1,)) * variance**0.5
        end = kernel.run(start, bowl(), torch.tensor(step), batch_random(count), 40).y
        assert abs(float(end.var()) / variance - 1) < 5 * (2 / count) ** 0.5
