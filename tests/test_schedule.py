"""The schedule against its closed form, recomputed in plain Python by another route.

``λ = -2 log tan θ`` makes ``α = cos θ`` and ``σ̄ = sin θ``, which the implementation does not use.
"""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from cdrl_infer.errors import ConfigError
from cdrl_infer.schedule import Level, NoiseSchedule

FIELDS = [field.name for field in dataclasses.fields(Level) if field.name != "t"]


def closed_form(schedule: NoiseSchedule, t: int) -> dict[str, float]:
    """Every constant of transition t, in Python floats."""
    T = schedule.num_levels
    first = math.atan(math.exp(-schedule.logsnr_max / 2))
    last = math.atan(math.exp(-schedule.logsnr_min / 2))

    def theta(i: int) -> float:
        return first + (last - first) * i / T

    def logsnr(i: int) -> float:
        return 2 * math.log(math.cos(theta(i)) / math.sin(theta(i)))

    alpha_in, sigma_in = math.cos(theta(t)), math.sin(theta(t))
    alpha, sigma = math.cos(theta(t - 1)), math.sin(theta(t - 1))
    kept = (alpha_in / alpha) ** 2
    added = 1 - kept
    scale = 1.0 if t == T else alpha_in / alpha
    recovery = 0.0 if t == T else 1.0
    if schedule.step_rule == "paper":
        step = schedule.step_size * sigma / math.sin(theta(0)) * added
    else:
        step = schedule.step_size / (1 / (scale * sigma) ** 2 + recovery / added)
    return {
        "logsnr_in": logsnr(t),
        "alpha_in": alpha_in,
        "sigma_bar_in": sigma_in,
        "logsnr": logsnr(t - 1),
        "alpha": alpha,
        "sigma_bar": sigma,
        "noise_variance": added,
        "scale": scale,
        "recovery": recovery,
        "step_variance": step,
        "proposal_variance": (sigma / sigma_in) ** 2 * added * scale**2,
    }


SCHEDULES = [
    NoiseSchedule(),
    NoiseSchedule(num_levels=1),
    NoiseSchedule(num_levels=10, logsnr_max=4.0, logsnr_min=-3.0, step_size=2e-4),
    NoiseSchedule(step_rule="curvature", step_size=0.3),
    NoiseSchedule(num_levels=1, step_rule="curvature", step_size=3.0),
]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_every_constant_of_every_level(schedule: NoiseSchedule) -> None:
    for t in range(1, schedule.num_levels + 1):
        level, expected = schedule.level(t), closed_form(schedule, t)
        assert sorted(expected) == sorted(FIELDS)
        for name, value in expected.items():
            got = getattr(level, name)
            assert got.shape == () and got.dtype == torch.float32
            assert got.item() == pytest.approx(value, rel=2e-6, abs=0.0), f"{name} at t={t}"


def test_the_papers_end_points() -> None:
    schedule = NoiseSchedule()
    first, last = schedule.level(1), schedule.level(6)
    assert first.logsnr.item() == pytest.approx(9.8, rel=1e-6)
    assert last.logsnr_in.item() == pytest.approx(-5.1, rel=1e-6)
    assert first.sigma_bar.item() == pytest.approx(1 / math.sqrt(1 + math.exp(9.8)), rel=1e-6)
    # c_1² = 1: at the lowest level the step is 4e-4 of the noise that the level adds.
    assert first.step_variance.item() == pytest.approx(4e-4 * first.noise_variance.item(), rel=1e-6)


def test_last_transition_stands_apart() -> None:
    schedule = NoiseSchedule()
    levels = [schedule.level(t) for t in range(1, 7)]
    assert [level.recovery.item() for level in levels] == [1, 1, 1, 1, 1, 0]
    assert levels[-1].scale.item() == 1
    assert all(level.scale.item() < 1 for level in levels[:-1])


@pytest.mark.parametrize("t", range(1, 7))
def test_levels_are_one_markov_chain(t: int) -> None:
    """Adding σ_t² to ``√r_t x_{t-1}`` gives ``x_t``, and each level starts where another ends."""
    schedule = NoiseSchedule()
    level = schedule.level(t)
    kept = 1 - level.noise_variance.item()
    assert level.alpha.item() ** 2 + level.sigma_bar.item() ** 2 == pytest.approx(1, abs=2e-7)
    assert level.alpha_in.item() ** 2 + level.sigma_bar_in.item() ** 2 == pytest.approx(1, abs=2e-7)
    assert kept * level.alpha.item() ** 2 == pytest.approx(level.alpha_in.item() ** 2, rel=1e-5)
    assert kept * level.sigma_bar.item() ** 2 + level.noise_variance.item() == pytest.approx(
        level.sigma_bar_in.item() ** 2, rel=1e-6
    )
    if t > 1:
        below = schedule.level(t - 1)
        assert torch.equal(level.logsnr, below.logsnr_in)
        assert torch.equal(level.alpha, below.alpha_in)
        assert torch.equal(level.sigma_bar, below.sigma_bar_in)


def test_a_batch_of_levels_is_the_levels_one_by_one() -> None:
    schedule = NoiseSchedule()
    t = torch.tensor([3, 6, 1, 3])
    batch = schedule.level(t)
    assert torch.equal(batch.t, t)
    for row, index in enumerate(t.tolist()):
        one = schedule.level(index)
        for name in FIELDS:
            assert torch.equal(getattr(batch, name)[row], getattr(one, name)), name


def test_expand_broadcasts_over_the_batch_axis() -> None:
    schedule = NoiseSchedule()
    images = torch.ones(2, 3, 4, 5)
    batch = schedule.level(torch.tensor([2, 5]))
    scaled = batch.expand(batch.alpha, images) * images
    assert torch.equal(scaled[:, 2, 3, 4], batch.alpha)
    one = schedule.level(2)
    assert torch.equal((one.expand(one.alpha, images) * images)[1, 0, 0, 0], one.alpha)


@pytest.mark.parametrize("t", [0, 7, -1, torch.tensor([1, 7]), torch.tensor([0])])
def test_a_level_that_is_not_there(t: int | torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"1 … 6"):
        NoiseSchedule().level(t)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"num_levels": 0}, "num_levels"),
        ({"num_levels": True}, "num_levels"),
        ({"num_levels": 2.5}, "num_levels"),
        ({"num_levels": 20_000}, "num_levels"),
        ({"logsnr_max": -6.0}, "logsnr_max=-6.0"),
        ({"logsnr_min": float("nan")}, "logsnr_min=nan"),
        ({"logsnr_max": float("inf")}, "logsnr_max=inf"),
        ({"step_rule": "cosine"}, "'cosine'"),
        ({"step_size": 0.0}, "step_size"),
        ({"step_size": 1.0}, "step_size"),
        ({"step_size": float("nan")}, "step_size"),
        ({"step_rule": "curvature", "step_size": 4.0}, "step_size"),
    ],
)
def test_options_out_of_range(options: dict[str, object], named: str) -> None:
    with pytest.raises(ConfigError, match=named) as caught:
        NoiseSchedule(**options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_config_rebuilds_the_schedule(schedule: NoiseSchedule) -> None:
    assert NoiseSchedule(**schedule.config()) == schedule  # type: ignore[arg-type]
