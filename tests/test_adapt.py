"""Step sizes: those of each transition, and what the warm-up finds."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from laws import batch_random, streams

from cdrl_infer.energies.analytic import GaussianMixtureEnergy, PosteriorMeanProposal
from cdrl_infer.energies.base import Energy, FunctionPotential
from cdrl_infer.errors import InputError, NumericalError
from cdrl_infer.kernels.base import Kernel
from cdrl_infer.kernels.hmc import HMC, MALA
from cdrl_infer.kernels.langevin import Langevin
from cdrl_infer.proposals import IdentityProposal
from cdrl_infer.sampler import CooperativeSampler
from cdrl_infer.schedule import Level, NoiseSchedule

DIM = 50
WIDE = GaussianMixtureEnergy(
    [1.0], [[0.3] * DIM], [torch.linspace(0.05, 1.0, DIM, dtype=torch.float64).tolist()]
)
THREE = NoiseSchedule(num_levels=3, logsnr_max=4.0, step_rule="curvature", step_size=1.0)


def test_step_scales_are_in_the_order_in_which_transitions_run() -> None:
    sampler = CooperativeSampler(THREE, step_scale=(3.0, 2.0, 1.0))
    assert [sampler.scale_at(t) for t in (1, 2, 3)] == [1, 2, 3]
    assert CooperativeSampler(THREE, step_scale=0.5).scale_at(2) == 0.5


@pytest.mark.parametrize("scale", [0.0, -1.0, math.inf, math.nan, (), (1.0, 0.0, 1.0), (1.0, 2.0)])
def test_bad_step_scales(scale: float) -> None:
    with pytest.raises(InputError) as caught:
        CooperativeSampler(THREE, 1, MALA(), scale)
    expected = "step_scale must be one positive, finite number, or 3, one per transition, got "
    assert str(caught.value) == f"{expected}{scale}"


def adapted(sampler: CooperativeSampler, **options: float) -> tuple[float, ...]:
    """The scales found, having checked that other noise accepts as much with them, within 0.05."""
    proposal = PosteriorMeanProposal(WIDE)
    found = sampler.adapt(WIDE, proposal, batch_random(64), (DIM,), **options)
    assert len(found.step_scale) == len(found.acceptance) == 3
    fixed = replace(sampler, step_scale=found.step_scale)
    out = fixed.sample(WIDE, proposal, batch_random(128, seed=1), (DIM,))
    target = options.get("target", sampler.kernel.optimal_acceptance)
    expected = torch.tensor([target] * 3)
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
        adapted(CooperativeSampler(THREE, 5, kernel, step_scale=guess))
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
    sampler = CooperativeSampler(THREE, (2, 0, 1), MALA(), (1, 7, 3))
    found = [
        sampler.adapt(WIDE, IdentityProposal(), batch_random(4), (DIM,), steps=8) for _ in range(2)
    ]
    assert found[0].step_scale == found[1].step_scale
    assert found[0].step_scale[1] == 7  # no step, no change
    assert math.isnan(found[0].acceptance[1])


@pytest.mark.parametrize(
    ("kernel", "options", "message"),
    [
        (
            Langevin(),
            {},
            "needs a kernel that can reject a move, such as MALA or HMC, got Langevin",
        ),
        (MALA(), {"target": 1.0}, "target in (0, 1) and steps of at least 1, got target=1.0"),
        (MALA(), {"target": 0.0}, "got target=0.0, steps=60"),
        (MALA(), {"steps": 0}, "got target=0.574, steps=0"),
    ],
)
def test_bad_warm_ups(kernel: Kernel, options: dict[str, float], message: str) -> None:
    with pytest.raises(InputError) as caught:
        CooperativeSampler(THREE, 1, kernel).adapt(
            WIDE, IdentityProposal(), streams(0), (DIM,), **options
        )
    assert message in str(caught.value)


def test_warm_up_on_an_energy_that_is_not_finite() -> None:
    class Broken(Energy):
        def at(self, level: Level) -> FunctionPotential:
            return FunctionPotential(lambda y: math.nan * y.sum(1))

    with pytest.raises(NumericalError, match="the chains became infinite or NaN at transition 3"):
        CooperativeSampler(THREE, 2, MALA()).adapt(
            Broken(), IdentityProposal(), streams(0, 1), (2,), steps=3
        )
