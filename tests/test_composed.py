"""Guidance and composition against Gaussians, where everything is known in closed form."""

from __future__ import annotations

from typing import Literal
from unittest.mock import patch

import pytest
import torch
from laws import CAUGHT, LIMIT, batch_random, moment_deviation, streams
from torch import Tensor

from cdrl_infer.conditions.expressions import Concept, Expression
from cdrl_infer.conditions.parser import parse
from cdrl_infer.energies.analytic import GaussianMixtureEnergy
from cdrl_infer.energies.composed import ComposedEnergy
from cdrl_infer.energies.neural import NeuralEnergy
from cdrl_infer.energies.recovery import RecoveryEnergy, RecoveryPotential
from cdrl_infer.kernels.langevin import Langevin
from cdrl_infer.proposals import ComposedProposal, InitializerProposal
from cdrl_infer.sampler import CooperativeSampler, LevelEnd
from cdrl_infer.schedule import Level, NoiseSchedule

# One Gaussian for no concept and one for each of three; the first is the widest.
GAUSSIANS = [
    GaussianMixtureEnergy([1.0], [mean], [covariance])
    for mean, covariance in (
        ([0.1, -0.2], [[1.2, 0.2], [0.2, 1.5]]),
        ([0.9, 0.3], [[0.5, 0.1], [0.1, 0.9]]),
        ([-0.2, 0.8], [[0.8, -0.3], [-0.3, 0.6]]),
        ([0.4, -0.9], [[0.9, 0.0], [0.0, 0.3]]),
    )
]
A, B, C = (Concept(name, 0, k + 1) for k, name in enumerate("abc"))
SCHEDULE = NoiseSchedule(logsnr_max=5.0, step_rule="curvature", step_size=0.4)
EYE = torch.eye(2).double()


class GaussianNetwork:
    """The EBM: the log-density of the Gaussian that each image's label (B, 1) names."""

    def __init__(self, output_unit: Literal["nats", "step"] = "nats") -> None:
        self.output_unit = output_unit
        self.batches: list[int] = []

    def condition(self, level: Level, labels: Tensor | None = None) -> tuple[Level, Tensor]:
        assert labels is not None
        return level, labels[:, 0]

    def __call__(self, y: Tensor, condition: tuple[Level, Tensor]) -> Tensor:
        level, label = condition
        self.batches.append(len(y))
        each = torch.stack([-gaussian(y, level) for gaussian in GAUSSIANS])
        log_density = each[label, torch.arange(len(y))]
        return log_density if self.output_unit == "nats" else log_density * level.step_variance


class ShiftNetwork:
    """An initializer: ``(1 + label) x_t + label²``."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def condition(self, level: Level, labels: Tensor | None = None) -> Tensor:
        assert labels is not None
        return labels

    def __call__(self, x: Tensor, condition: Tensor) -> Tensor:
        self.batches.append(len(x))
        label = condition.reshape(-1, *[1] * (x.ndim - 1))
        return (1 + label) * x + label**2


def labels_of(expression: Expression, n: int) -> Tensor:
    """(1 + k, n, 1), the unconditional ones first."""
    return torch.tensor([0, *(c.label for c in expression.concepts)])[:, None, None].expand(
        -1, n, 1
    )


def composed(
    expression: Expression, n: int, network: GaussianNetwork | None = None
) -> ComposedEnergy:
    concepts = expression.concepts
    return ComposedEnergy(
        network or GaussianNetwork(),
        labels_of(expression, n),
        lambda r: expression.log_ratio(dict(zip(concepts, r, strict=True))),
    )


def said(text: str) -> Expression:
    return parse(text, {"a": A, "b": B, "c": C}.__getitem__)


def at_level(k: int, level: Level) -> tuple[Tensor, Tensor]:
    """Mean and precision of y for the k-th Gaussian."""
    m, a, s = (v.double() for v in (level.scale, level.alpha, level.sigma_bar))
    precision = torch.linalg.inv(m**2 * (a**2 * GAUSSIANS[k].covariances[0] + s**2 * EYE))
    return m * a * GAUSSIANS[k].means[0], precision


def product(weights: dict[int, float], level: Level) -> tuple[Tensor, Tensor]:
    """Mean and precision of ``p_0 Π (p_k/p_0)^w``, a Gaussian: natural parameters add."""
    coefficients = {0: 1 - sum(weights.values()), **weights}
    parts = {k: at_level(k, level) for k in coefficients}
    precision = sum((w * parts[k][1] for k, w in coefficients.items()), torch.zeros(2, 2).double())
    pull = sum(
        (w * parts[k][1] @ parts[k][0] for k, w in coefficients.items()), torch.zeros(2).double()
    )
    return torch.linalg.solve(precision, pull), precision


def points(n: int = 6) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return 1.5 * torch.randn(n, 2, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("unit", ["nats", "step"])
@pytest.mark.parametrize("t", [1, 4, 6])
@pytest.mark.parametrize(
    ("text", "weights"),
    [
        ("a", {1: 1.0}),
        ("a & b", {1: 1.0, 2: 1.0}),
        ("a & b^0.5 & c", {1: 1.0, 2: 0.5, 3: 1.0}),
        ("a^3", {1: 3.0}),
        ("~a^0.4", {1: -0.4}),
        ("b & ~a^0.4", {1: -0.4, 2: 1.0}),
        ("~(a | b)^0.3", {1: -0.3, 2: -0.3}),
    ],
)
def test_products_of_gaussians(
    text: str, weights: dict[int, float], t: int, unit: Literal["nats", "step"]
) -> None:
    level, y = SCHEDULE.level(t), points()
    mean, precision = product(weights, level)
    value, grad = composed(said(text), len(y), GaussianNetwork(unit)).at(level).value_and_grad(y)
    pull = (y - mean) @ precision
    expected = 0.5 * (pull * (y - mean)).sum(1)
    torch.testing.assert_close(grad, pull, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(value - value[0], expected - expected[0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("t", [1, 4, 6])
def test_or_is_the_mixture_and_in_nats(t: int) -> None:
    """The Gaussians are normalised, so OR is their mixture, its constant included."""
    level, y = SCHEDULE.level(t), points()
    mixture = GaussianMixtureEnergy(
        [1, 1, 1],
        torch.cat([g.means for g in GAUSSIANS[1:]]),
        torch.cat([g.covariances for g in GAUSSIANS[1:]]),
    )
    for unit in ("nats", "step"):
        found = (
            composed(said("a | b | c"), len(y), GaussianNetwork(unit)).at(level).value_and_grad(y)
        )
        for value, expected in zip(found, mixture.at(level).value_and_grad(y), strict=True):
            torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("t", [1, 5])
def test_or_within_and(t: int) -> None:
    """``(a | b) & ~c^0.3`` from the definition: the densities' mean, times ``(p_0/p_c)^0.3``."""
    level, y = SCHEDULE.level(t), points()
    e = [gaussian(y, level) for gaussian in GAUSSIANS]
    expected = -torch.log(0.5 * (-e[1]).exp() + 0.5 * (-e[2]).exp()) - 0.3 * (e[3] - e[0])
    energy = composed(said("(a | b) & ~c^0.3"), len(y))
    torch.testing.assert_close(energy(y, level), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("g", [0.0, 0.5, 1.0, 1.7, 3.0])
def test_guidance_weighs_two_energies(g: float) -> None:
    level, y = SCHEDULE.level(3), points(4)
    labels = torch.tensor([[0, 0, 0, 0], [1, 2, 3, 0]])[..., None]
    network = GaussianNetwork()
    value, grad = ComposedEnergy(network, labels, lambda r: g * r[0]).at(level).value_and_grad(y)
    assert network.batches == [8]  # all in one batch
    free, asked = (NeuralEnergy(network, part).at(level).value_and_grad(y) for part in labels)
    for found, e0, e1 in zip((value, grad), free, asked, strict=True):
        torch.testing.assert_close(found, (1 - g) * e0 + g * e1, rtol=1e-10, atol=1e-10)


def test_the_network_is_called_once_for_each_concept_and_once_more() -> None:
    network = GaussianNetwork()
    composed(said("a & (b | c) & ~a^0.2"), 5, network).at(SCHEDULE.level(2)).value_and_grad(
        points(5)
    )
    assert network.batches == [4 * 5]


class TestComposedProposal:
    labels = torch.tensor([[0, 0, 0], [1, 1, 2], [2, 3, 3]])[..., None]
    weights = torch.tensor([[1.0, 0.5, -2.0], [1.0, 0.0, 0.25]], dtype=torch.float64)

    def test_means_are_combined_with_each_images_weights(self) -> None:
        network, level = ShiftNetwork(), SCHEDULE.level(3)
        x = torch.randn(3, 1, 2, 2, generator=torch.Generator().manual_seed(1)).double()
        found = ComposedProposal(network, self.labels, self.weights).mean(x, level)
        assert network.batches == [9]
        for b in range(3):
            expected = x[b].clone()  # the network's answer to no label
            for k in range(2):
                label = self.labels[1 + k, b].item()
                expected += self.weights[k, b] * (label * x[b] + label**2)
            torch.testing.assert_close(found[b], expected)

    def test_noise_is_added_once(self) -> None:
        level, x = SCHEDULE.level(3), torch.zeros(3, 1, 2, 2)
        proposal = ComposedProposal(ShiftNetwork(), self.labels, self.weights.float())
        drawn = proposal.sample(x, level, streams(4, 5, 6))
        noise = streams(4, 5, 6).normal((1, 2, 2))
        expected = proposal.mean(x, level) + level.proposal_variance.sqrt() * noise
        torch.testing.assert_close(drawn, expected)

    def test_a_single_weight_of_one_is_the_plain_proposal(self) -> None:
        level, x = SCHEDULE.level(3), torch.randn(3, 1, 2, 2)
        labels = self.labels[:2]
        plain = InitializerProposal(ShiftNetwork(), labels[1]).mean(x, level)
        found = ComposedProposal(ShiftNetwork(), labels, torch.ones(1, 3)).mean(x, level)
        torch.testing.assert_close(found, plain)


# --- the chain on composed Gaussians: recovery is added once --------------------------------------


# Noise and steps so large that 60 steps forget any start at every level.
NOISY = NoiseSchedule(num_levels=5, logsnr_max=4.0, step_rule="curvature", step_size=2.4)


class RecoveryPerConcept(RecoveryEnergy):
    """The classic error: each of two energies that are summed has brought its own recovery term."""

    def at(self, level: Level) -> RecoveryPotential:
        return RecoveryPotential(super().at(level), self.x_t, level)


def chain_deviation(
    text: str, target: dict[int, float], recovery: type[RecoveryEnergy] = RecoveryEnergy
) -> float:
    """Of ``y - E[y | x_t]`` at all levels of a chain, where 60 steps have forgotten their start.

    The reference is the posterior of the target's product, with the inflation by unadjusted steps that
    is known for a Gaussian of precision P: ``(P - s²P²/4)⁻¹``.
    """
    n, expression = 5_000, said(text)
    (branch,) = expression.branches()
    table = torch.tensor([[branch.weights[c]] * n for c in expression.concepts])
    ends: list[LevelEnd] = []
    with patch("cdrl_infer.sampler.RecoveryEnergy", recovery):
        CooperativeSampler(NOISY, 60, Langevin()).sample(
            composed(expression, n),
            ComposedProposal(ShiftNetwork(), labels_of(expression, n), table),
            batch_random(n),
            (2,),
            ends.append,
        )
    worst, x_t = 0.0, torch.zeros(n, 2).double()
    for end in ends:
        level = NOISY.level(end.t)
        mean, prior = product(target, level)
        tie = (level.recovery / level.noise_variance).double()
        precision = prior + tie * EYE
        inflated = torch.linalg.inv(
            precision - level.step_variance.double() / 4 * precision @ precision
        )
        centre = torch.linalg.solve(precision, (prior @ mean + tie * x_t).mT).mT
        x_t = end.refined.double()
        error = level.scale.double() * x_t - centre
        worst = max(worst, moment_deviation(error, torch.zeros(2), inflated))
    return worst


BOTH = {1: 1.0, 2: 1.0}


@pytest.mark.parametrize(("text", "target"), [("a & b", BOTH), ("b & ~a^0.4", {1: -0.4, 2: 1.0})])
def test_every_level_has_the_posterior_of_the_product(text: str, target: dict[int, float]) -> None:
    assert chain_deviation(text, target) < LIMIT


@pytest.mark.parametrize(
    ("text", "recovery"),
    [("a & b", RecoveryPerConcept), ("a & b^2", RecoveryEnergy)],
    ids=["recovery twice", "a weight off"],
)
def test_the_chain_shows_errors(text: str, recovery: type[RecoveryEnergy]) -> None:
    assert chain_deviation(text, BOTH, recovery) > CAUGHT
