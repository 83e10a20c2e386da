"""Guidance and composition in the pipeline: conditions, energies of the images, and users' errors."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from conftest import make_model
from laws import LIMIT, streams
from torch import Tensor

from cdrl_infer.conditions.conditions import Composed, Guided
from cdrl_infer.conditions.expressions import Concept
from cdrl_infer.conditions.parser import parse
from cdrl_infer.energies.base import Energy
from cdrl_infer.energies.composed import ComposedEnergy
from cdrl_infer.energies.neural import NeuralEnergy
from cdrl_infer.errors import InputError
from cdrl_infer.pipeline import CDRLPipeline
from cdrl_infer.proposals import ComposedProposal
from cdrl_infer.sampler import CooperativeSampler, LevelEnd

ATTRIBUTES = (("cat", "dog", "cow"), ("day", "night"))


@pytest.fixture(scope="module")
def animals() -> CDRLPipeline:
    return CDRLPipeline(make_model(*ATTRIBUTES, channels=3), "animals")


def bind(pipe: CDRLPipeline, text: str, *seeds: int) -> tuple[ComposedEnergy, ComposedProposal]:
    random = streams(*seeds)
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
    random = streams(3)
    Composed(parse("cat & ~night", animals.concept)).bind(animals.model, slice(0, 1), random)
    expected = streams(3).normal((2,))
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
    free = pipe(class_labels=[None], num_images=2, seeds=5, output_type="pt")
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
        ("cat & ~cat", "cancels out: 'cat & ~cat' asks for and denies cat with equal weight"),
        (" & ".join(["(cat | dog)"] * 7), "may have at most 64 alternatives .*, got 128"),
        (5, "expected a text or an expression of pipe.concept"),
        (None, "expected a text or an expression of pipe.concept"),
        (Concept("cat", 0, 2), "the concept 'cat' belongs to another model"),
        (Concept("dog", 1, 2) & Concept("cat", 0, 1), "the concept 'dog' belongs to another model"),
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
        with pytest.raises(InputError, match="guidance_scale must be positive for an expression"):
            animals.compose("cat", guidance_scale=scale)


def test_an_unconditional_model_knows_no_concepts() -> None:
    pipe = CDRLPipeline(make_model(), "plain")
    for ask in (lambda: pipe.compose("dog"), lambda: pipe.concept("dog")):
        with pytest.raises(
            InputError, match="'plain' is unconditional and knows no concepts, got 'dog'"
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
        ({"guidance_scale": 2.0}, "guidance_scale 2 needs class_labels"),
        ({"guidance_scale": 2.0, "class_labels": [None, None]}, "needs class_labels"),
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
