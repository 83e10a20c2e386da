"""Normalisers of chains of levels against the truth: closed forms, a grid, and planted errors."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from laws import MIXTURE
from torch import Tensor

from cdrl_infer.energies.analytic import (
    AnalyticEnergy,
    GaussianMixtureEnergy,
    PosteriorMeanProposal,
)
from cdrl_infer.energies.base import Energy, FunctionPotential
from cdrl_infer.energies.neural import NeuralEnergy
from cdrl_infer.errors import NumericalError
from cdrl_infer.likelihood import telescope
from cdrl_infer.likelihood.bar import Works, bar, effective_sample_size, estimate, pareto_k
from cdrl_infer.likelihood.density import decoder_sum, log_density
from cdrl_infer.likelihood.normalisers import Normaliser
from cdrl_infer.likelihood.telescope import Effort, normalise
from cdrl_infer.networks.heads import InnerProductEnergy, ResidualInitializer
from cdrl_infer.networks.mlp import MLP
from cdrl_infer.proposals import make_proposal
from cdrl_infer.schedule import Level, NoiseSchedule

SCHEDULE = NoiseSchedule(logsnr_max=6.0, step_rule="curvature", step_size=0.4)
SMALL = Effort(chains=200, pilots=64, temperatures=60, batch_size=4096)


class Changed(Energy):
    """An energy with something added at one transition."""

    def __init__(self, energy: Energy, t: int, added: Callable[[Tensor], Tensor]) -> None:
        self.energy, self.t, self.added = energy, t, added

    def at(self, level: Level) -> FunctionPotential:
        inner = self.energy.at(level)
        if int(level.t) != self.t:
            return FunctionPotential(inner)
        return FunctionPotential(lambda y: inner(y) + self.added(y))


def run(
    law: AnalyticEnergy,
    energy: Energy | None = None,
    *,
    seed: int = 0,
    effort: Effort = SMALL,
    from_data: bool = True,
) -> Normaliser:
    generator = torch.Generator().manual_seed(seed)
    data = law.sample(effort.points, generator).float() if from_data else None
    return normalise(
        energy or law,
        PosteriorMeanProposal(law),
        SCHEDULE,
        law.mean.shape,
        generator,
        data=data,
        effort=effort,
    )


@pytest.fixture(scope="module")
def plain() -> Normaliser:
    return run(MIXTURE)


def test_bennetts_ratio_is_exact_for_exact_frequencies() -> None:
    """a = (3, 1), b = k (1, 3) on two points: Δ = log k, for as many draws or twice as many."""
    k = 7.0
    at_points = torch.tensor([k / 3, 3 * k], dtype=torch.float64).log()
    forward, reverse = at_points[[0, 0, 0, 1]], at_points[[0, 1, 1, 1]]
    found = estimate(Works(forward, reverse))
    assert float(found.delta) == pytest.approx(math.log(k), abs=1e-12)
    assert float(bar(Works(forward, reverse.repeat(2)))) == pytest.approx(math.log(k), abs=1e-12)
    assert float(found.overlap) == pytest.approx(2 * (2 * 3 / 16), abs=1e-12)
    assert float(found.jeffreys) == pytest.approx(math.log(9) / 2, abs=1e-12)


def test_direction_of_the_bounds_and_error_of_bennetts_ratio() -> None:
    """a = N(0, 1), b = e^c N(μ, 1): w = μx - μ²/2 + c. E log Ẑ ≤ log Z, and the reverse errs upwards."""
    mu, c, repeats, n = 1.5, -3.0, 2000, 20
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, repeats, n, generator=generator, dtype=torch.float64)
    found = estimate(Works(mu * x - mu**2 / 2 + c, mu * (y + mu) - mu**2 / 2 + c))
    for values, side in ((found.lower, -1), (found.upper, 1)):
        error = float(values.std()) / math.sqrt(repeats)
        assert side * (float(values.mean()) - c) > 5 * error
    assert abs(float(found.delta.mean()) - c) < 4 * float(found.delta.std()) / math.sqrt(repeats)
    assert float(found.delta.std()) < float(found.lower.std())
    assert float(found.jeffreys.mean()) == pytest.approx(mu**2, rel=0.05)


def test_diagnostics_of_weights() -> None:
    equal, one = torch.zeros(50, dtype=torch.float64), torch.zeros(50, dtype=torch.float64)
    one[3] = 100.0
    assert float(effective_sample_size(equal)) == pytest.approx(50)
    assert float(effective_sample_size(one)) == pytest.approx(1)
    uniform = torch.rand(4000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for k in (0.2, 1.2):  # weights u^-k have a Pareto tail of index k
        assert pareto_k(-k * uniform.log()) == pytest.approx(k, abs=0.3)
    assert math.isnan(pareto_k(equal)) and math.isnan(pareto_k(equal[:10]))


def test_chain_of_a_mixture(plain: Normaliser) -> None:
    """All levels are normalised and fit each other."""
    assert plain.verdict() == "sound" and len(plain.log_z) == 6
    for value, error, low, high in zip(
        plain.log_z, plain.error, plain.lower, plain.upper, strict=True
    ):
        assert abs(value) < 3 * error and error < 0.02
        assert low < 0 < high
    assert all(abs(r.jeffreys) < 4 * r.jeffreys_error + 0.01 for r in plain.transitions)
    assert all(r.overlap > 0.95 for r in plain.transitions)


def test_log_likelihood_of_points(plain: Normaliser) -> None:
    level = SCHEDULE.level(1)
    x_0 = MIXTURE.sample_level(level, 50, torch.Generator().manual_seed(3)) / level.scale
    truth = MIXTURE.log_density(x_0, level.alpha, level.sigma_bar)
    found = log_density(MIXTURE, level, x_0, plain.log_z[0])
    assert float((found - truth).abs().max()) < 3 * plain.error[0]
    # without d log m_1 it would be wrong by more
    assert 2 * abs(math.log(level.scale)) > 5 * plain.error[0]


@pytest.mark.parametrize("t", [1, 4])
def test_a_constant_moves_one_normaliser(plain: Normaliser, t: int) -> None:
    c = 5.0
    moved = run(MIXTURE, Changed(MIXTURE, t, lambda y: torch.full_like(y[:, 0], c)))
    for k, (before, after) in enumerate(zip(plain.log_z, moved.log_z, strict=True)):
        # float32 rounds other energies differently, so chains may part
        assert after - before == pytest.approx(-c if k == t - 1 else 0, abs=0.02)
    x_0 = torch.zeros(1, 2)
    level = SCHEDULE.level(1)
    shifted = Changed(MIXTURE, t, lambda y: torch.full_like(y[:, 0], c))
    one = log_density(MIXTURE, level, x_0, plain.log_z[0])
    other = log_density(shifted, level, x_0, moved.log_z[0])
    torch.testing.assert_close(one, other, atol=0.02, rtol=0)


def test_levels_that_contradict_each_other_are_measured() -> None:
    """A shift of the density of level 2 by δ: Jeffreys δ²/v of Gaussians, whose log Z stays 0."""
    law = GaussianMixtureEnergy([1.0], [[0.0, 0.0]], [[0.3, 0.3]])
    level = SCHEDULE.level(3)
    variance = float(level.scale**2 * (0.3 * level.alpha**2 + level.sigma_bar**2))
    delta = 1.5 * math.sqrt(variance)

    def added(y: Tensor) -> Tensor:  # moves the first coordinate's mean from 0 to δ
        return ((y[:, 0] - delta) ** 2 - y[:, 0] ** 2) / (2 * variance)

    found = run(law, Changed(law, 3, added), from_data=False)
    assert abs(found.log_z[2]) < 3 * found.error[2] and abs(found.log_z[0]) < 3 * found.error[0]
    result = found.transitions[1]  # x_2 by the shifted density and by noising level 1
    assert result.jeffreys == pytest.approx(1.5**2, abs=4 * result.jeffreys_error)
    assert found.transitions[4].jeffreys < 0.1


def test_a_dropped_jacobian_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(schedule: NoiseSchedule, dim: int) -> Tensor:
        return torch.zeros(schedule.num_levels, dtype=torch.float64)

    monkeypatch.setattr(telescope, "log_volumes", none)
    found = run(MIXTURE)
    assert abs(found.log_z[0]) > 100 * found.error[0]


def test_annealed_paths_where_importance_sampling_fails() -> None:
    """Many dimensions of which some are wide: the weights of single draws contradict each other."""
    spectrum = 8 * torch.arange(1, 101, dtype=torch.float64) ** -1.5 + 1e-3
    rotation = torch.linalg.qr(
        torch.randn(100, 100, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    )[0]
    covariance = rotation @ spectrum.diag() @ rotation.T
    law = GaussianMixtureEnergy(
        [0.6, 0.4],
        torch.stack([rotation[0], -rotation[1]]),
        ((covariance + covariance.T) / 2).repeat(2, 1, 1),
    )
    effort = Effort(chains=24, pilots=16, moves=8, temperatures=60)
    found = run(law, effort=effort)
    assert not found.faults()
    assert found.lower[0] < 0 < found.upper[0] and abs(found.log_z[0]) < 3 * found.error[0]
    assert found.error[0] < 2 and found.transitions[0].temperatures > 5


@pytest.mark.slow
def test_mixture_shaped_like_images() -> None:
    """784 dimensions, a spectrum like that of Fashion-MNIST: the truth is 0."""
    generator = torch.Generator().manual_seed(0)
    spectrum = 20 * torch.arange(1, 785, dtype=torch.float64) ** -1.2 + 1e-4
    rotations = torch.randn(2, 784, 784, generator=generator, dtype=torch.float64)
    axes = torch.linalg.qr(rotations)[0]
    covariances = axes @ spectrum.diag() @ axes.mT
    means = 0.5 * torch.randn(2, 784, generator=generator, dtype=torch.float64)
    law = GaussianMixtureEnergy([0.6, 0.4], means, (covariances + covariances.mT) / 2)
    found = run(law, effort=Effort(chains=16))
    assert found.verdict() == "sound"
    assert all(low < 0 < high for low, high in zip(found.lower, found.upper, strict=True))
    assert abs(found.log_z[0]) < 3 * found.error[0] and found.error[0] < 3


def well(y: Tensor) -> Tensor:
    return -60 * torch.exp(-(y - 3.0).square().sum(1) / (2 * 2.0**2))


def fall(y: Tensor) -> Tensor:
    return -(y.square().sum(1) ** 2)


@pytest.mark.parametrize("t", [1, 2])
@pytest.mark.parametrize("leak", [well, fall])
def test_a_leaky_energy_is_refused(t: int, leak: Callable[[Tensor], Tensor]) -> None:
    """Off the data the energy is lower than on it: in a well, or without a lower bound."""
    effort = Effort(chains=32, pilots=16, moves=12, temperatures=10)
    found = run(MIXTURE, Changed(MIXTURE, t, leak), effort=effort)
    assert found.verdict().startswith(f"refused: at level {t - 1} the energy is lower off the data")


def test_contradiction_is_refused(plain: Normaliser) -> None:
    result = plain.transitions[0]
    assert not result.faults
    crossed = replace(result, lower=2.4, upper=-2.4)
    negative = replace(result, jeffreys=-3.0, jeffreys_error=0.1)
    for wrong in (crossed, negative):
        assert "forward and reverse contradict each other at transition 1" in wrong.faults[0]
    assert not replace(crossed, ess_forward=1.0).faults  # one weight says nothing
    for values, reason in (
        ({"drift": -1.0, "drift_error": 0.1}, "at level 0 the chains are not stationary"),
        ({"starts": 2.0, "starts_error": 0.1}, "at level 0 the chains are not stationary"),
        (
            {"leak": -3.0, "leak_error": 0.1},
            "at level 0 the energy is lower off the data than on it",
        ),
    ):
        wrong = replace(result, chains=replace(result.chains, **values))
        assert wrong.faults[0].startswith(reason)
        unsure = replace(result, chains=replace(result.chains, **dict.fromkeys(values, 1.0)))
        assert not unsure.faults
    few = replace(result, overlap=0.01)
    assert replace(plain, transitions=(few,) * 6).verdict().startswith("bracketed: ")


def test_an_energy_that_is_not_finite() -> None:
    broken = Changed(MIXTURE, 3, lambda y: y[:, 0].log())
    with pytest.raises(
        NumericalError, match="the chains of level 2 are not finite; check the model"
    ):
        run(MIXTURE, broken, effort=Effort(chains=4, pilots=4, moves=8))


def test_small_network_against_a_grid() -> None:
    """A network with random weights: its levels contradict each other, and the sum is still right."""
    torch.manual_seed(0)
    networks = [
        head(MLP(width=32)).requires_grad_(False).eval()
        for head in (InnerProductEnergy, ResidualInitializer)
    ]
    for network in networks:
        for parameter in network.parameters():
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.1)
    energy = NeuralEnergy(networks[0])
    schedule = replace(SCHEDULE, num_levels=3, logsnr_max=3.0)
    found = normalise(
        energy,
        make_proposal(networks[1]),
        schedule,
        (1, 1, 2),
        torch.Generator().manual_seed(0),
        effort=Effort(chains=1000, pilots=64, temperatures=30, batch_size=100_000),
    )
    cells = (torch.arange(400) + 0.5) / 400 * 16 - 8
    grid = torch.cartesian_prod(cells, cells).reshape(-1, 1, 1, 2)
    for k in range(3):
        values = -energy(grid, schedule.level(k + 1)).double()
        truth = float(values.logsumexp(0)) + 2 * math.log(16 / 400)
        assert abs(found.log_z[k] - truth) < 0.03, (k, found.log_z, truth)
        assert abs(found.log_z[k] - truth) < 3 * found.error[k]


@pytest.mark.parametrize(("logsnr", "tight"), [(16.0, True), (6.0, False)])
def test_bound_for_clean_values(logsnr: float, tight: bool) -> None:
    """One pixel of three values: the bound is at most log P(x), and near it at low noise."""
    level = NoiseSchedule(logsnr_max=logsnr).level(1)
    values = torch.tensor([[20.0], [21.0], [200.0]]) / 127.5 - 1
    shares = torch.tensor([0.5, 0.3, 0.2])
    law = GaussianMixtureEnergy(shares, values, torch.full((3, 1), 1e-12))
    generator = torch.Generator().manual_seed(0)
    for value, share in zip(values, shares, strict=True):
        x_0 = level.diffused(value.repeat(2000, 1), torch.randn(2000, 1, generator=generator))
        bound = log_density(law, level, x_0, 0.0) - decoder_sum(x_0, level)
        mean, error = float(bound.mean()), float(bound.std()) / math.sqrt(2000)
        truth = math.log(share)
        if tight:
            assert mean == pytest.approx(truth, abs=0.02)
        else:
            assert mean < truth - 10 * error
