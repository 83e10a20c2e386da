"""How far adjacent levels contradict each other: closed forms, and the curve of a run."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from runs import TINY, differing, fit, lines_of, tiny, trainer, write_data
from torch import Tensor

from cdrl_infer.energies.analytic import GaussianMixtureEnergy, PosteriorMeanProposal
from cdrl_infer.energies.base import Energy, FunctionPotential
from cdrl_infer.likelihood.contradiction import contradictions
from cdrl_infer.schedule import Level, NoiseSchedule
from cdrl_train.cli import main
from cdrl_train.contradiction import contradiction_curve
from cdrl_train.engine.saving import resume

SCHEDULE = NoiseSchedule(num_levels=4, step_rule="curvature", step_size=0.4)
VARIANCE, COUNT = 0.3, 1000
LAW = GaussianMixtureEnergy([1.0], [[0.1, -0.2]], [[VARIANCE, VARIANCE]])


def variance_at(level: Level, scale: Tensor) -> float:
    """Of one coordinate of ``scale`` times the noised data below the transition."""
    return float(scale**2 * (VARIANCE * level.alpha**2 + level.sigma_bar**2))


class Shifted(Energy):
    """The truth, with the first coordinate's mean of one level moved by ``size`` deviations."""

    def __init__(self, t: int, size: float) -> None:
        self.t, self.size = t, size

    def at(self, level: Level) -> FunctionPotential:
        inner = LAW.at(level)
        if int(level.t) != self.t:
            return FunctionPotential(inner)
        variance = variance_at(level, level.scale)
        mean, shift = float(level.scale * level.alpha) * 0.1, self.size * math.sqrt(variance)

        def energy(y: Tensor) -> Tensor:
            moved = y[:, 0] - mean
            return inner(y) + ((moved - shift) ** 2 - moved**2) / (2 * variance)

        return FunctionPotential(energy)


def estimate(energy: Energy, particles: int = 8) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    data = LAW.sample(COUNT, generator).float()
    return contradictions(
        energy,
        PosteriorMeanProposal(LAW),
        SCHEDULE,
        data,
        generator,
        particles=particles,
        batch_size=COUNT * 16,
    )


def test_levels_that_fit_have_none() -> None:
    found = estimate(LAW)
    assert found.shape == (4,) and float(found.abs().max()) < 2e-3


@pytest.mark.parametrize("t", [1, 2, 4])
def test_a_moved_level_contradicts_both_neighbours(t: int) -> None:
    """Jeffreys of two Gaussians of variance v whose means differ by δ: δ²/v."""
    size = 0.5
    found = estimate(Shifted(t, size), particles=32)
    level = SCHEDULE.level(t)
    expected = torch.zeros(4, dtype=torch.float64)
    # The transition t noises the moved level: its δ and its v shrink to those of x_t.
    noised = VARIANCE * level.alpha_in**2 + level.sigma_bar_in**2
    keep = (1 - level.noise_variance) / level.scale**2
    expected[t - 1] = size**2 * variance_at(level, level.scale) * float(keep / noised)
    if t > 1:  # the transition below compares the moved level itself with the noised one under it
        expected[t - 2] = size**2
    error = expected * math.sqrt(2 / COUNT) + 2e-3
    assert bool(((found - expected).abs() < 4 * error).all()), (found, expected)


def test_a_constant_is_no_contradiction() -> None:
    class Raised(Shifted):
        def at(self, level: Level) -> FunctionPotential:
            inner = LAW.at(level)
            return FunctionPotential(lambda y: inner(y) + (9.0 if int(level.t) == self.t else 0.0))

    torch.testing.assert_close(estimate(Raised(2, 0)), estimate(LAW), atol=2e-3, rtol=0)


def test_the_curve_changes_nothing_and_resumes_exactly(tmp_path: Path) -> None:
    def begun(name: str, every: int) -> Any:
        return trainer(tiny(log_every=4, contradiction_every=every), tmp_path / name)

    plain, asked, stopped, resumed = (
        begun(n, k) for n, k in zip("abcc", (0, 3, 3, 3), strict=True)
    )
    fit(plain)
    fit(asked, on_measure=contradiction_curve)
    assert not differing(plain.state_dict(), asked.state_dict())
    lines, names = lines_of(asked.folder), {f"contradiction/{t}" for t in (1, 2, 3)}
    assert [line["step"] for line in lines if names <= line.keys()] == [3, 6]
    assert all(math.isfinite(line[name]) for line in lines if line["step"] == 6 for name in names)
    assert [line["step"] for line in lines_of(plain.folder)] == [4, 8]
    fit(stopped, 4, on_measure=contradiction_curve)
    assert resume(resumed) and resumed.step == 4
    fit(resumed, on_measure=contradiction_curve)
    assert lines_of(resumed.folder) == lines


def test_the_command_shows_it(tmp_path: Path) -> None:
    data, out = write_data(tmp_path), tmp_path / "run"
    asked = ["--data", data, "--out", str(out), *TINY, "--set", "contradiction_every=2"]
    result = CliRunner().invoke(main, ["--preset", "mnist", *asked])
    assert result.exit_code == 0, result.output
    found = {line["step"] for line in lines_of(out) if "contradiction/1" in line}
    assert found == {2, 4}
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "How far adjacent levels contradict each other, nats" in page
