"""Guidance and composition against Gaussians, where all is known in closed form; and in the pipeline."""

from __future__ import annotations

import math
from typing import Any, Literal
from unittest.mock import patch

import pytest
import torch
from conftest import make_model
from torch import Tensor

from cdrl_infer.conditions.conditions import Composed, Guided
from cdrl_infer.conditions.expressions import Concept, Expression
from cdrl_infer.conditions.parser import parse
from cdrl_infer.energies.analytic import GaussianMixtureEnergy
from cdrl_infer.energies.base import Energy
from cdrl_infer.energies.composed import ComposedEnergy
from cdrl_infer.energies.neural import NeuralEnergy
from cdrl_infer.energies.recovery import RecoveryEnergy, RecoveryPotential
from cdrl_infer.errors import InputError
from cdrl_infer.kernels.langevin import Langevin
from cdrl_infer.pipeline import CDRLPipeline
from cdrl_infer.proposals import ComposedProposal, InitializerProposal
from cdrl_infer.random import BatchRandom, PerImageRandom
from cdrl_infer.sampler import CooperativeSampler, LevelEnd
from cdrl_infer.schedule import Level, NoiseSchedule

LIMIT, CAUGHT = 5.0, 10.0  # standard errors, as in test_distribution.py

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
        drawn = proposal.sample(x, level, PerImageRandom.from_seeds([4, 5, 6], "cpu"))
        noise = PerImageRandom.from_seeds([4, 5, 6], "cpu").normal((1, 2, 2))
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
            BatchRandom(n, torch.Generator().manual_seed(0)),
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
        products = error[:, :, None] * error[:, None, :]
        for draws, expected in ((error, torch.zeros(2)), (products, inflated)):
            excess = (draws.mean(0) - expected).abs() / (draws.std(0) / math.sqrt(n))
            worst = max(worst, float(excess.max()))
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


# --- what images are asked to show -> energies and proposals --------------------------------------

ATTRIBUTES = (("cat", "dog", "cow"), ("day", "night"))


@pytest.fixture(scope="module")
def animals() -> CDRLPipeline:
    return CDRLPipeline(make_model(*ATTRIBUTES, channels=3), "animals")


def bind(pipe: CDRLPipeline, text: str, *seeds: int) -> tuple[ComposedEnergy, ComposedProposal]:
    random = PerImageRandom.from_seeds(seeds, "cpu")
    asked = Composed(parse(text, pipe.concept))
    energy, proposal = asked.bind(pipe.model, slice(0, len(seeds)), random)
    assert isinstance(energy, ComposedEnergy) and isinstance(proposal, ComposedProposal)
    return energy, proposal


def test_a_concept_leaves_the_other_attributes_open(animals: CDRLPipeline) -> None:
    energy, proposal = bind(animals, "dog & ~night^0.5", 1, 2)
    rows = torch.tensor([[0, 0], [2, 0], [0, 2]]).repeat_interleave(2, 0)
    assert energy.energy.labels is not None and torch.equal(energy.energy.labels, rows)
    assert proposal.labels is not None and torch.equal(proposal.labels, rows)
    assert proposal.weights.tolist() == [[1.0, 1.0], [-0.5, -0.5]]


def test_a_branch_is_drawn_by_share_and_by_the_images_own_seed(animals: CDRLPipeline) -> None:
    seeds = range(4_000)
    text = "cow | night & (cat | dog)"  # shares ½, ¼, ¼
    _, proposal = bind(animals, text, *seeds)
    branches = {
        (1.0, 0.0, 0.0, 0.0): 1 / 2,
        (0.0, 1.0, 1.0, 0.0): 1 / 4,
        (0.0, 1.0, 0.0, 1.0): 1 / 4,
    }
    drawn = list(map(tuple, proposal.weights.mT.tolist()))
    for branch, share in branches.items():
        sd = (share * (1 - share) / len(seeds)) ** 0.5
        assert abs(drawn.count(branch) / len(seeds) - share) < LIMIT * sd
    assert set(drawn) == set(branches)
    for seed in (0, 7, 1234):
        _, alone = bind(animals, text, seed)
        assert tuple(alone.weights[:, 0].tolist()) == drawn[seed]


def test_the_energy_of_or_does_not_depend_on_the_branch(animals: CDRLPipeline) -> None:
    y, level = torch.randn(1, 3, 8, 8).expand(20, 3, 8, 8), animals.model.schedule.level(2)
    energy, proposal = bind(animals, "cat | dog", *range(20))
    assert len(proposal.weights.unique(dim=1).mT) == 2
    values = energy(y, level)
    torch.testing.assert_close(values, values[:1].expand(20), rtol=1e-5, atol=1e-4)


def test_one_alternative_draws_nothing(animals: CDRLPipeline) -> None:
    random = PerImageRandom.from_seeds([3], "cpu")
    Composed(parse("cat & ~night", animals.concept)).bind(animals.model, slice(0, 1), random)
    expected = PerImageRandom.from_seeds([3], "cpu").normal((2,))
    assert torch.equal(random.normal((2,)), expected)


# --- in the pipeline ------------------------------------------------------------------------------


def values(output: Any) -> Tensor:
    assert isinstance(output.images, Tensor)
    return output.images


LABELS = ["Bag", 0, None, 2, "Sneaker", "Shirt"]


def test_guidance_of_1_is_plain_to_the_bit(pipe: CDRLPipeline) -> None:
    call: dict[str, Any] = {"class_labels": LABELS, "seeds": range(6), "output_type": "pt"}
    plain, guided = pipe(**call), pipe(**call, guidance_scale=1)
    assert torch.equal(values(plain), values(guided))
    assert torch.equal(plain.energies, guided.energies)


def test_guidance_draws_the_same_noise_as_plain_sampling(pipe: CDRLPipeline) -> None:
    """A scale that is 1 in all but name gives the same images, by the other way."""
    call: dict[str, Any] = {"class_labels": LABELS, "seeds": range(6), "output_type": "pt"}
    almost = pipe(**call, guidance_scale=1 + 1e-7)
    assert (values(pipe(**call)) - values(almost)).abs().max() < 1e-3
    assert almost.labels == pipe(**call).labels


def test_guidance_of_0_is_unconditional(pipe: CDRLPipeline) -> None:
    free = pipe(num_images=2, seeds=5, output_type="pt")
    zero = pipe(class_labels=["Bag", "Shirt"], seeds=5, guidance_scale=0, output_type="pt")
    assert (values(free) - values(zero)).abs().max() < 1e-3


@pytest.mark.parametrize("g", [3.0, -0.5])
def test_guided_energies_are_those_of_the_images(pipe: CDRLPipeline, g: float) -> None:
    ends: list[LevelEnd] = []
    labels = torch.tensor([[3], [1], [0]])
    out = pipe(
        class_labels=["Bag", "Shirt", None],
        seeds=0,
        guidance_scale=g,
        callback_on_level_end=lambda end, _: ends.append(end),
    )
    level = pipe.model.schedule.level(1)
    y = level.scale * ends[-1].refined
    with torch.no_grad():
        e0, e1 = (NeuralEnergy(pipe.model.ebm, r)(y, level) for r in (0 * labels, labels))
    torch.testing.assert_close(out.energies, (1 - g) * e0 + g * e1, rtol=1e-4, atol=1e-3)


def test_guidance_moves_images_and_each_one_alone(pipe: CDRLPipeline) -> None:
    call: dict[str, Any] = {"class_labels": LABELS, "seeds": range(6), "output_type": "pt"}
    plain, guided = values(pipe(**call)), values(pipe(**call, guidance_scale=4))
    moved = (plain - guided).abs().flatten(1).amax(1)
    assert moved[2] < 1e-3  # has no label
    assert (moved[[0, 1, 3, 4, 5]] > 1e-2).all()
    parts = values(pipe(**call, guidance_scale=4, batch_size=4))
    assert (guided - parts).abs().max() <= 1 / 255


def test_a_weighted_concept_is_guidance(pipe: CDRLPipeline) -> None:
    guided = pipe(class_labels="Bag", guidance_scale=2.5, seeds=[1, 2], output_type="pt")
    said_so = pipe.compose("bag^2.5", restarts=0, seeds=[1, 2], output_type="pt")
    assert pipe.compose("bag", seeds=[1]).info.restarts == 1
    assert (values(guided) - values(said_so)).abs().max() < 1e-3
    torch.testing.assert_close(guided.energies, said_so.energies, rtol=1e-4, atol=1e-3)
    assert said_so.labels is None and guided.labels == ["Bag", "Bag"]
    assert (said_so.info.expression, guided.info.expression) == ("Bag^2.5", None)


def test_text_and_operators_draw_the_same_images(animals: CDRLPipeline) -> None:
    concept = animals.concept
    expression = (concept("cat") | concept("dog") ** 1.5) & ~concept("night")
    call: dict[str, Any] = {"seeds": range(4), "output_type": "pt"}
    text = animals.compose("(cat | dog^1.5) & ~night", **call)
    assert torch.equal(values(text), values(animals.compose(expression, **call)))
    assert text.info.expression == "(cat | dog^1.5) & ~night" == str(expression)
    again = animals.compose(text.info.expression, **call)
    assert torch.equal(values(text), values(again))


@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_composed_image_does_not_depend_on_its_batch(
    animals: CDRLPipeline, batch_size: int
) -> None:
    call: dict[str, Any] = {"seeds": range(6), "output_type": "pt"}
    whole = animals.compose("cow | night & (cat | dog)", **call)
    parts = animals.compose("cow | night & (cat | dog)", **call, batch_size=batch_size)
    assert (values(whole) - values(parts)).abs().max() <= 1 / 255
    torch.testing.assert_close(whole.energies, parts.energies, rtol=1e-4, atol=1e-3)


def test_a_value_of_two_attributes_is_asked_by_both_names() -> None:
    pipe = CDRLPipeline(make_model(("plain", "bold"), ("plain", "dotted")))
    asked = pipe.concept("attribute 1:plain")
    assert (asked.attribute, asked.label) == (1, 1)
    out = pipe.compose(asked & pipe.concept("bold"), seeds=[1], output_type="pt")
    assert out.info.expression == "attribute 1:plain & bold"
    text = pipe.compose(out.info.expression, seeds=[1], output_type="pt")
    assert torch.equal(values(out), values(text))


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("cat & dgo", r"unknown concept 'dgo', .*did you mean 'dog'\? \(at character 7 of"),
        ("cat &", "expected a concept, found the end at character 6 of 'cat &'"),
        ("cat & ~cat", "cancels out: cat is asked and denied with equal weight in 'cat & ~cat'"),
        (" & ".join(["(cat | dog)"] * 7), "may have 64 alternatives, OR multiplied out, got 128"),
        (5, "expected a text or an expression of pipe.concept"),
        (None, "expected a text or an expression of pipe.concept"),
        (Concept("cat", 0, 2), "the concept 'cat' is of another model"),
        (Concept("dog", 1, 2) & Concept("cat", 0, 1), "the concept 'dog' is of another model"),
        (Concept("horse", 0, 1), "unknown concept 'horse'"),
    ],
)
def test_bad_expressions_are_told_before_any_work(
    animals: CDRLPipeline, monkeypatch: pytest.MonkeyPatch, expression: Any, message: str
) -> None:
    monkeypatch.setattr(CooperativeSampler, "sample", lambda *a, **k: pytest.fail("sampled"))
    with pytest.raises(InputError, match=message) as caught:
        animals.compose(expression)
    assert "\n" not in str(caught.value)


def test_guidance_is_the_weight_of_the_whole_expression(animals: CDRLPipeline) -> None:
    call: dict[str, Any] = {"seeds": [1, 2], "output_type": "pt"}
    out = animals.compose("cat | dog", guidance_scale=2, **call)
    assert out.info.expression == "(cat | dog)^2"
    assert torch.equal(values(out), values(animals.compose("(cat | dog)^2", **call)))
    assert not torch.equal(values(out), values(animals.compose("cat | dog", **call)))
    for scale in (0, -1):
        with pytest.raises(InputError, match="guidance_scale of an expression must be positive"):
            animals.compose("cat", guidance_scale=scale)


def test_an_unconditional_model_knows_no_concepts() -> None:
    pipe = CDRLPipeline(make_model(), "plain")
    for ask in (lambda: pipe.compose("dog"), lambda: pipe.concept("dog")):
        with pytest.raises(
            InputError, match="'plain' is unconditional, it knows no concepts; got 'dog'"
        ):
            ask()
    with pytest.raises(InputError, match="'plain' is unconditional"):
        pipe.compose(Concept("dog", 0, 1))


def test_names_of_concepts_are_texts(animals: CDRLPipeline) -> None:
    with pytest.raises(InputError, match="expected the name of a concept, got 3"):
        animals.concept(3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"guidance_scale": 2.0}, "guidance_scale 2 needs class_labels to guide to"),
        ({"guidance_scale": 2.0, "class_labels": [None, None]}, "needs class_labels to guide to"),
        (
            {"guidance_scale": math.nan, "class_labels": "cat"},
            "guidance_scale must be a finite number, got nan",
        ),
        ({"guidance_scale": math.inf}, "guidance_scale must be a finite number, got inf"),
        ({"guidance_scale": "3"}, "guidance_scale must be a finite number, got '3'"),
        ({"guidance_scale": None}, "guidance_scale must be a finite number, got None"),
    ],
)
def test_bad_guidance_is_told_before_any_work(
    animals: CDRLPipeline,
    monkeypatch: pytest.MonkeyPatch,
    arguments: dict[str, Any],
    message: str,
) -> None:
    monkeypatch.setattr(CooperativeSampler, "sample", lambda *a, **k: pytest.fail("sampled"))
    with pytest.raises(InputError, match=message):
        animals(**arguments)


def test_an_unconditional_model_cannot_be_guided() -> None:
    pipe = CDRLPipeline(make_model())
    with pytest.raises(InputError, match="guidance_scale 2 needs class_labels"):
        pipe(guidance_scale=2.0)
    with pytest.raises(InputError, match="is unconditional, got class_labels"):
        pipe(guidance_scale=2.0, class_labels="Bag")


def test_guided_labels_are_kept_as_asked() -> None:
    labels = torch.tensor([[1], [0]])
    assert torch.equal(Guided(labels, 2.0).labels, labels)


def test_gradients_do_not_reach_the_networks(animals: CDRLPipeline) -> None:
    energy: Energy = bind(animals, "cat | night", 1)[0]
    _, grad = energy.at(animals.model.schedule.level(1)).value_and_grad(torch.randn(1, 3, 8, 8))
    assert not grad.requires_grad and bool(grad.any())
