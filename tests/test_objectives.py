"""The losses against closed forms: analytic energies, exact posteriors, known minimisers."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from cdrl_infer.energies.analytic import GaussianMixtureEnergy
from cdrl_infer.energies.base import Energy, FunctionPotential
from cdrl_infer.errors import ConfigError
from cdrl_infer.kernels.base import Kernel
from cdrl_infer.kernels.langevin import Langevin
from cdrl_infer.kernels.leimkuhler_matthews import LeimkuhlerMatthews
from cdrl_infer.proposals import InitializerProposal
from cdrl_infer.random import BatchRandom
from cdrl_infer.schedule import Level, NoiseSchedule
from cdrl_train.data.stream import Batch
from cdrl_train.objectives import Models
from cdrl_train.objectives import losses as objectives
from cdrl_train.objectives.drl import RecoveryLikelihood

N = 40_000
SCHEDULE = NoiseSchedule()
LEVELS = range(1, SCHEDULE.num_levels + 1)


def random_source(seed: int = 0, n: int = N) -> BatchRandom:
    return BatchRandom(n, torch.Generator().manual_seed(seed))


def level_of(t: int) -> Level:
    return SCHEDULE.level(torch.full((N,), t))


@pytest.mark.parametrize("t", LEVELS)
@pytest.mark.parametrize("coupling", ["shared", "markov"])
def test_a_pair_has_the_levels_marginals_and_the_couplings_covariance(
    t: int, coupling: objectives.Coupling
) -> None:
    level = level_of(t)
    x = torch.full((N, 1), 0.7)
    pair = objectives.noised_pair(x, level, coupling, random_source(t))
    alpha, sigma = float(level.alpha[0]), float(level.sigma_bar[0])
    alpha_in, sigma_in = float(level.alpha_in[0]), float(level.sigma_bar_in[0])
    previous = pair.y / level.scale[0]
    error = 5 / math.sqrt(N)
    for values, mean, std in (
        (previous, alpha * 0.7, sigma),
        (pair.x_t, alpha_in * 0.7, sigma_in),
    ):
        assert abs(float(values.mean()) - mean) < error * std
        assert abs(float(values.std()) / std - 1) < error
    correlation = float(torch.corrcoef(torch.cat([previous, pair.x_t], 1).T)[0, 1])
    keep = math.sqrt(1 - float(level.noise_variance[0]))
    expected = 1.0 if coupling == "shared" else keep * sigma / sigma_in
    assert abs(correlation - expected) < error


@pytest.mark.parametrize("t", LEVELS)
def test_posterior_mean_is_the_regression_of_the_markov_pair(t: int) -> None:
    """Given x, (x_{t-1}, x_t) is Gaussian: the mean is linear with slope cov/var."""
    level = level_of(t)
    x = torch.full((N, 1), -0.4)
    pair = objectives.noised_pair(x, level, "markov", random_source(t))
    residual = pair.y - objectives.posterior_mean(x, pair.x_t, level)
    spread = float(residual.std())
    error = 5 / math.sqrt(N)
    assert abs(float(residual.mean())) < error * spread
    assert abs(float(torch.corrcoef(torch.cat([residual, pair.x_t], 1).T)[0, 1])) < error
    # What the regression leaves is the spread of the initializer's proposal, τ_t.
    assert abs(spread / float(level.proposal_variance[0].sqrt()) - 1) < error


class Scaled(Energy):
    def __init__(self, inner: Energy, factor: float) -> None:
        self.inner, self.factor = inner, factor

    def at(self, level: Level) -> FunctionPotential:
        return FunctionPotential(lambda y: self.factor * self.inner(y, level))


@pytest.mark.parametrize("t", LEVELS)
def test_score_matching_is_least_for_the_true_energy_and_has_its_closed_form(t: int) -> None:
    """Data N(0, v): the best loss is the share of y's variance that is data, α²v/(α²v + σ̄²)."""
    v = 0.5
    truth = GaussianMixtureEnergy([1.0], [[0.0]], [[v]])
    level = level_of(t)
    generator = torch.Generator().manual_seed(t)
    x = truth.sample(N, generator).float()
    pair = objectives.noised_pair(x, level, "markov", random_source(t))
    loss = objectives.score_matching_loss(truth, pair, level)
    signal = float(level.alpha[0]) ** 2 * v
    best = signal / (signal + float(level.sigma_bar[0]) ** 2)
    error = 5 * float(loss.per_image.std()) / math.sqrt(N)
    assert abs(float(loss.value.detach()) - best) < error
    for factor in (0.5, 2.0):
        # (1 - factor)² of the predictable part comes on top.
        wrong = objectives.score_matching_loss(Scaled(truth, factor), pair, level)
        expected = best + (factor - 1) ** 2 * (1 - best)
        slack = 5 * float(wrong.per_image.std()) / math.sqrt(N)
        assert abs(float(wrong.value.detach()) - expected) < slack


class Shift(torch.nn.Module):
    """``g(x) = x + shift``, one parameter."""

    def __init__(self, shift: float) -> None:
        super().__init__()
        self.shift = torch.nn.Parameter(torch.tensor(shift))

    def condition(self, level: Level, labels: Tensor | None = None) -> None:
        return None

    def forward(self, x: Tensor, condition: None) -> Tensor:
        return x + self.shift


def test_imitation_has_the_value_of_the_proposal_and_the_gradient_of_its_mean() -> None:
    network = Shift(0.3)
    x_t, end = torch.tensor([[1.0], [2.0]]), torch.tensor([[1.5], [2.0]])
    mean = InitializerProposal(network).mean(x_t, SCHEDULE.level(1))
    start = mean.detach() + torch.tensor([[0.1], [-0.2]])
    loss = objectives.imitation_loss(mean, objectives.Refined(start, end))
    assert float(loss.value.detach()) == pytest.approx(float((end - start).square().mean()))
    loss.value.backward()
    assert network.shift.grad is not None
    assert float(network.shift.grad) == pytest.approx(float(-2 * (end - start).mean()))


@pytest.mark.parametrize("t", [1, 3, 6])
def test_regression_weighs_the_error_by_the_noise_variance(t: int) -> None:
    network = Shift(0.0)
    level = level_of(t)
    pair = objectives.noised_pair(torch.zeros(N, 1), level, "markov", random_source(t))
    loss = objectives.regression_loss(InitializerProposal(network), pair, level)
    target = objectives.posterior_mean(pair.x, pair.x_t, level)
    expected = (pair.x_t - target).square().mean() / level.noise_variance[0]
    assert float(loss.value.detach()) == pytest.approx(float(expected), rel=1e-5)


def test_contrastive_weights() -> None:
    levels = SCHEDULE.level(torch.arange(1, 7))
    sigma_1 = float(levels.noise_variance[0].sqrt())
    paper = objectives.contrastive_weight(levels, SCHEDULE, "paper")
    # In units of f = -s² E the paper's weight is σ_1/σ_t.
    assert torch.allclose(
        paper / levels.step_variance, sigma_1 / levels.noise_variance.sqrt(), rtol=1e-6
    )
    noise = objectives.contrastive_weight(levels, SCHEDULE, "noise")
    assert torch.equal(noise, levels.scale * levels.sigma_bar)


class Quadratic(Energy):
    """``E(y) = ½ k y²`` with one parameter."""

    def __init__(self, k: float) -> None:
        self.k = torch.tensor(k, requires_grad=True)

    def at(self, level: Level) -> FunctionPotential:
        return FunctionPotential(lambda y: 0.5 * self.k * y.square().sum(1))


def test_the_contrastive_gradient_points_to_the_data() -> None:
    """An energy too narrow (k too large) draws too narrow samples: the gradient must lower k."""
    generator = torch.Generator().manual_seed(0)
    true_k = 4.0
    for k, sign in ((8.0, 1.0), (2.0, -1.0)):
        energy = Quadratic(k)
        positive = torch.randn(N, 1, generator=generator) / math.sqrt(true_k)
        negative = torch.randn(N, 1, generator=generator) / math.sqrt(k)
        level = level_of(6)
        loss = objectives.contrastive_loss(
            energy(positive, level), energy(negative, level), torch.ones(N)
        )
        loss.value.backward()
        assert energy.k.grad is not None
        # d/dk mean ½ y² : ½ (1/true_k - 1/k)
        expected = 0.5 * (1 / true_k - 1 / k)
        assert float(energy.k.grad) == pytest.approx(expected, abs=5 * 0.5 / math.sqrt(N))
        assert math.copysign(1, float(energy.k.grad)) == sign


class Flat(torch.nn.Module):
    """``f(y) = 0``: no prior."""

    output_unit = "nats"

    def condition(self, level: Level, labels: Tensor | None = None) -> None:
        return None

    def forward(self, y: Tensor, condition: None) -> Tensor:
        return 0.0 * y.sum(1)


def test_chains_of_training_sample_the_recovery_energy() -> None:
    """A strong pull to x_t and no prior: chains end at x_t, wherever they start."""
    schedule = NoiseSchedule(step_rule="curvature", step_size=0.5)
    level = schedule.level(torch.full((N,), 2))
    x_t = torch.full((N, 1), 1.5)
    models, pair = Models(None, Flat(), None, schedule), objectives.NoisedPair(*[x_t] * 4)
    objective = RecoveryLikelihood(langevin_steps=400)
    batch = Batch(x_t, None)
    refined = objective.refine(models, batch, pair, x_t - 3.0, level, random_source())
    variance = float(level.noise_variance[0])
    step = float(level.step_variance[0])
    expected = variance / (1 - step / (4 * variance))  # ULA on N(x_t, σ²)
    assert torch.equal(refined.start, x_t - 3.0)
    assert abs(float(refined.end.mean()) - 1.5) < 5 * math.sqrt(expected / N)
    assert abs(float(refined.end.var()) / expected - 1) < 5 * math.sqrt(2 / N)


@pytest.mark.parametrize(
    ("kernel", "expected"),
    [
        ("langevin", Langevin()),
        ("leimkuhler-matthews", LeimkuhlerMatthews()),
        ({"name": "langevin", "noise_scale": 0.9}, Langevin(0.9)),
    ],
)
def test_chains_use_the_kernel_of_the_options(
    kernel: str | dict[str, Any], expected: Kernel[Any]
) -> None:
    assert RecoveryLikelihood(kernel=kernel).kernel == expected


@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        ("nuts", "unknown kernel 'nuts'"),
        ({"noise_scale": 0.9}, "unknown kernel None"),
        ({"name": "langevin", "noise": 0.9}, "did you mean 'noise_scale'"),
    ],
)
def test_a_wrong_kernel_is_told(kernel: str | dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RecoveryLikelihood(kernel=kernel)
