"""The benchmark of composed concepts: its truth values, and a run on a tiny model."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import composition
import numpy as np
import pytest
import torch
from classifier import Recipe
from conftest import make_model

from cdrl_infer.conditions.expressions import Concept
from cdrl_infer.conditions.parser import parse
from cdrl_infer.pipeline import CDRLPipeline
from cdrl_infer.storage.folder import save_model
from cdrl_train.data.coloured import ATTRIBUTES, HELD_OUT


@pytest.fixture(scope="module")
def pipe() -> CDRLPipeline:
    model = make_model(*(a.values for a in ATTRIBUTES), channels=3)
    return CDRLPipeline(dataclasses.replace(model, labels=ATTRIBUTES))


@pytest.mark.parametrize(
    ("text", "true_of"),
    [
        ("red", [0, 1]),
        ("~red", [2, 3]),
        ("sneaker & red", [0]),
        ("sneaker | red", [0, 1, 2]),
        ("~(sneaker | red)", [3]),
        ("~(sneaker & red)", [1, 2, 3]),
        ("bag & (red^2 | ~dark)", [1, 3]),
    ],
)
def test_truth_of_an_expression(pipe: CDRLPipeline, text: str, true_of: list[int]) -> None:
    sneaker, bag, red, blue, dark, light = 7, 8, 0, 3, 0, 1
    labels = torch.tensor(
        [(sneaker, red, dark), (bag, red, dark), (sneaker, blue, light), (bag, blue, light)]
    )
    truth = composition.holds(parse(text, pipe.concept), labels)
    assert truth.nonzero().flatten().tolist() == true_of


def test_chance_is_the_share_of_combinations(pipe: CDRLPipeline) -> None:
    by_name = {q.name: q for q in composition.questions(pipe.concept)}
    sizes = tuple(len(a.values) for a in ATTRIBUTES)
    for name, expected in (
        ("garment & colour, held out", 1 / 40),
        ("garment & colour & background, seen", 1 / 80),
        ("colour | colour", 1 / 2),
        ("colour & (garment | garment)", 1 / 20),
        ("~garment", 9 / 10),
        ("garment & ~colour", 3 / 40),
    ):
        assert composition.chance(by_name[name], sizes) == pytest.approx(expected)
    held_out = by_name["garment & colour, held out"].expressions
    assert {tuple(c.name for c in e.concepts) for e in held_out} == set(HELD_OUT)
    for question in by_name.values():
        pairs = [composition.alternatives_of(e) for e in question.expressions]
        assert all(pairs) if "|" in question.name else not any(pairs)


def test_a_run_on_a_tiny_model(pipe: CDRLPipeline, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (40, 8, 8), dtype=np.uint8)
    labels = np.arange(40) % 10
    np.savez(
        tmp_path / "clothes.npz",
        train_images=images,
        train_labels=labels,
        test_images=images,
        test_labels=labels,
    )
    save_model(pipe.model, tmp_path / "tiny")
    text, results = composition.evaluate(
        model=str(tmp_path / "tiny"),
        data=f"coloured:{tmp_path / 'clothes.npz'}",
        samples=3,
        langevin_steps="1",
        restarts=1,
        guidance_scale=2.0,
        batch_size=8,
        device="cpu",
        cache=tmp_path,
        recipe=Recipe(widths=(4,), epochs=1, batch_size=20),
    )
    assert len(results["questions"]) == 10
    for name, row in results["questions"].items():
        assert f"| {name} " in text
        assert 0 <= row["composed"] <= 1 and ("joint label" in row) == (
            "|" not in name and "~" not in name
        )


def test_alternatives_are_counted_by_which_is_true(pipe: CDRLPipeline) -> None:
    red, blue = pipe.concept("red"), pipe.concept("blue")
    assert composition.alternatives_of(red | blue) == (red, blue)
    assert composition.alternatives_of(pipe.concept("bag") & (red | blue)) == (red, blue)
    assert composition.alternatives_of(red & blue) is None
    assert composition.alternatives_of(red | blue | Concept("green", 1, 3)) is None
