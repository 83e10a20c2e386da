"""One contract for every energy; the neural energy and the recovery energy are what they say."""

from __future__ import annotations

import importlib
import pkgutil
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

import cdrl_infer.energies
from cdrl_infer.energies.analytic import (
    AnalyticEnergy,
    ExponentialGaussianEnergy,
    GaussianMixtureEnergy,
)
from cdrl_infer.energies.base import Energy
from cdrl_infer.energies.composed import ComposedEnergy
from cdrl_infer.energies.neural import EBMNetwork, NeuralEnergy
from cdrl_infer.energies.pinned import PinnedEnergy, PinnedPixels
from cdrl_infer.energies.recovery import RecoveryEnergy
from cdrl_infer.networks.mlp import MLPEnergy
from cdrl_infer.schedule import Level, NoiseSchedule

SCHEDULE = NoiseSchedule()
FULL = GaussianMixtureEnergy(
    weights=[0.5, 0.2, 0.3],
    means=[[-1.0, 0.3], [0.8, 1.0], [1.0, -1.2]],
    covariances=[[[0.3, 0.1], [0.1, 0.2]], [[0.1, 0.0], [0.0, 0.4]], [[0.2, -0.15], [-0.15, 0.3]]],
)
DIAGONAL = GaussianMixtureEnergy([3.0, 1.0], [[-0.5, 0.2], [1.0, 1.0]], [[0.2, 0.5], [0.1, 0.3]])
SKEWED = ExponentialGaussianEnergy(location=[-1.0, 0.2], spread=[0.4, 0.2], rate=[1.0, 2.5])


class StubEBM(nn.Module):
    """``log p(y) = -½ k ‖y - b(label)‖²``, in nats or times the step variance."""

    def __init__(self, output_unit: Literal["nats", "step"]) -> None:
        super().__init__()
        self.output_unit = output_unit
        self.k = nn.Parameter(torch.tensor(3.0, dtype=torch.float64))
        self.calls = 0

    def condition(self, level: Level, labels: Tensor | None = None) -> tuple[Level, Tensor]:
        self.calls += 1
        shift = torch.zeros(1, 1) if labels is None else labels.double()
        return level, shift * self.k

    def forward(self, y: Tensor, condition: tuple[Level, Tensor]) -> Tensor:
        level, shift = condition
        log_density = -0.5 * self.k * (y - shift).square().flatten(1).sum(1)
        return log_density if self.output_unit == "nats" else log_density * level.step_variance


def points(batch: int = 5, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 2, generator=generator, dtype=torch.float64)


COMPOSED = ComposedEnergy(
    StubEBM("step"),
    labels=torch.tensor([[0] * 5, [1, 2, 3, 4, 0], [2, 2, 1, 0, 5]])[..., None],
    log_ratio=lambda r: torch.logsumexp(r, 0) - 0.3 * r[1],
)


def mlp() -> MLPEnergy:
    """Random weights, also where the network starts at zero."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = MLPEnergy(width=8, num_classes=(5,)).double()
        torch.nn.init.normal_(network.mlp.head.weight)
    return network


PINNED = PinnedPixels(
    mask=torch.tensor([[1, 0], [0, 1], [1, 1], [1, 0], [0, 1]]).bool(),
    path=torch.stack([points(seed=k) for k in range(7)]),
)
ENERGIES: dict[str, Energy] = {
    "mixture-full": FULL,
    "mixture-diagonal": DIAGONAL,
    "skewed": SKEWED,
    "neural-nats": NeuralEnergy(StubEBM("nats")),
    "neural-step": NeuralEnergy(StubEBM("step"), labels=torch.arange(5)[:, None]),
    "neural-mlp": NeuralEnergy(mlp(), labels=torch.arange(5)[:, None]),
    "recovery-mixture": RecoveryEnergy(FULL, points(seed=1)),
    "recovery-neural": RecoveryEnergy(NeuralEnergy(StubEBM("step")), points(seed=1)),
    "composed": COMPOSED,
    "recovery-composed": RecoveryEnergy(COMPOSED, points(seed=1)),
    "pinned": PinnedEnergy(FULL, PINNED),
    "pinned-recovery-composed": PinnedEnergy(RecoveryEnergy(COMPOSED, points(seed=1)), PINNED),
}
ONE_LEVEL = {name for name in ENERGIES if "composed" in name or "pinned" in name}
LEVELS = {
    "lowest": SCHEDULE.level(1),
    "middle": SCHEDULE.level(4),
    "last": SCHEDULE.level(6),
    "mixed": SCHEDULE.level(torch.tensor([1, 2, 4, 5, 6])),
}


def plain_subclasses(of: type) -> set[type]:
    children = set(of.__subclasses__())
    return children.union(*(plain_subclasses(child) for child in children))


def central_difference(energy: Energy, y: Tensor, level: Level, width: float = 1e-6) -> Tensor:
    columns = []
    for d in range(y.shape[1]):
        step = torch.zeros_like(y)
        step[:, d] = width
        columns.append((energy(y + step, level) - energy(y - step, level)) / (2 * width))
    return torch.stack(columns, 1).detach()


@pytest.mark.parametrize(
    ("name", "at"),
    [(n, at) for n in ENERGIES for at in LEVELS if at != "mixed" or n not in ONE_LEVEL],
)
class TestContract:
    def test_gradient_is_that_of_the_value(self, name: str, at: str) -> None:
        energy, level, y = ENERGIES[name], LEVELS[at], points()
        value, grad = energy.at(level).value_and_grad(y)
        torch.testing.assert_close(value, energy(y, level).detach(), rtol=1e-12, atol=1e-12)
        leaf = y.clone().requires_grad_(True)
        (by_autograd,) = torch.autograd.grad(energy(leaf, level).sum(), leaf)
        # A level's constants are float32, and the two routes may combine them in another order.
        size = grad.abs().max().item()
        torch.testing.assert_close(grad, by_autograd, rtol=0, atol=5e-7 * size)
        numeric = central_difference(energy, y, level)
        torch.testing.assert_close(grad, numeric, rtol=1e-5, atol=1e-6 * size)

    def test_shapes_types_and_no_graph(self, name: str, at: str) -> None:
        energy, level, y = ENERGIES[name], LEVELS[at], points()
        before = y.clone()
        with torch.no_grad():
            value, grad = energy.at(level).value_and_grad(y)
        assert value.shape == (5,) and grad.shape == (5, 2)
        assert value.dtype == grad.dtype == torch.float64
        assert not value.requires_grad and not grad.requires_grad and not y.requires_grad
        assert torch.equal(y, before)

    def test_a_point_does_not_see_its_batch(self, name: str, at: str) -> None:
        energy, level, y = ENERGIES[name], LEVELS[at], points()
        value, grad = energy.at(level).value_and_grad(y)
        moved = y.clone()
        moved[1:] += 1
        other, other_grad = energy.at(level).value_and_grad(moved)
        torch.testing.assert_close(value[0], other[0], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(grad[0], other_grad[0], rtol=1e-12, atol=1e-12)
        assert not torch.isclose(value[1:], other[1:]).any()


def test_the_contract_covers_every_energy_there_is() -> None:
    for module in pkgutil.iter_modules(cdrl_infer.energies.__path__):
        importlib.import_module(f"cdrl_infer.energies.{module.name}")
    known = {cls for cls in plain_subclasses(Energy) if cls.__module__.startswith("cdrl_infer.")}
    assert known - {AnalyticEnergy} == {type(energy) for energy in ENERGIES.values()}


class TestNeuralEnergy:
    def test_is_minus_the_log_density_in_either_unit(self) -> None:
        y = points()
        for t in (1, 3, 6):
            level = SCHEDULE.level(t)
            for unit in ("nats", "step"):
                value, grad = NeuralEnergy(StubEBM(unit)).at(level).value_and_grad(y)
                torch.testing.assert_close(value, 1.5 * y.square().sum(1), rtol=1e-6, atol=0)
                torch.testing.assert_close(grad, 3 * y, rtol=1e-6, atol=0)

    def test_step_unit_makes_a_langevin_step_half_the_networks_gradient(self) -> None:
        """``½ s² ∇log p = ½ ∇f``: the paper's scaling."""
        level, y = SCHEDULE.level(3), points()
        network = StubEBM("step")
        leaf = y.clone().requires_grad_(True)
        (grad_f,) = torch.autograd.grad(network(leaf, network.condition(level)).sum(), leaf)
        _, grad = NeuralEnergy(network).at(level).value_and_grad(y)
        torch.testing.assert_close(-0.5 * level.step_variance * grad, 0.5 * grad_f)

    def test_condition_is_computed_once(self) -> None:
        network = StubEBM("nats")
        potential = NeuralEnergy(network).at(SCHEDULE.level(1))
        for _ in range(3):
            potential.value_and_grad(points())
            potential(points())
        assert network.calls == 1

    def test_labels_reach_the_network(self) -> None:
        labels = torch.tensor([[0], [2]])
        value = NeuralEnergy(StubEBM("nats"), labels)(torch.zeros(2, 2).double(), SCHEDULE.level(1))
        assert value.tolist() == [0.0, 1.5 * 2 * 6.0**2]

    def test_leaves_no_gradient_in_the_network(self) -> None:
        network = StubEBM("step")
        NeuralEnergy(network).at(SCHEDULE.level(1)).value_and_grad(points())
        assert network.k.grad is None

    @pytest.mark.parametrize("differentiated_first", [False, True])
    def test_training_reaches_the_conditioning(self, differentiated_first: bool) -> None:
        """In `StubEBM` the condition depends on k, as embeddings depend on their weights."""
        y, labels, network = points(), torch.arange(5)[:, None], StubEBM("nats")
        potential = NeuralEnergy(network, labels).at(SCHEDULE.level(2))
        if differentiated_first:
            potential.value_and_grad(y)
        potential(y).sum().backward()
        k = torch.tensor(3.0).double()
        shift = labels.double()  # E = ½ k ‖y - k·label‖²
        away = y - k * shift
        expected = 0.5 * away.square().sum() - k * (away * shift).sum()
        assert network.k.grad is not None
        torch.testing.assert_close(network.k.grad, expected)

    def test_stub_has_the_networks_interface(self) -> None:
        assert isinstance(StubEBM("nats"), EBMNetwork)


class TestRecoveryEnergy:
    x_t = points(seed=1)

    @pytest.mark.parametrize("t", range(1, 6))
    def test_adds_the_gaussian_that_ties_y_to_x_t(self, t: int) -> None:
        level, y = SCHEDULE.level(t), points()
        sd = level.noise_variance.double().sqrt()
        log_likelihood = torch.distributions.Normal(y, sd).log_prob(self.x_t).sum(1)
        constant = 2 * torch.log(sd * (2 * torch.pi) ** 0.5)
        added = RecoveryEnergy(FULL, self.x_t)(y, level) - FULL(y, level)
        torch.testing.assert_close(added, -log_likelihood - constant, rtol=1e-6, atol=1e-6)

    def test_is_off_at_the_last_transition(self) -> None:
        level, y = SCHEDULE.level(6), points()
        value, grad = RecoveryEnergy(FULL, self.x_t).at(level).value_and_grad(y)
        prior, prior_grad = FULL.at(level).value_and_grad(y)
        assert torch.equal(value, prior) and torch.equal(grad, prior_grad)

    def test_pulls_towards_x_t(self) -> None:
        level, y = SCHEDULE.level(3), points()
        _, grad = RecoveryEnergy(FULL, self.x_t).at(level).value_and_grad(y)
        _, prior = FULL.at(level).value_and_grad(y)
        assert (((self.x_t - y) * -(grad - prior)).sum(1) > 0).all()
