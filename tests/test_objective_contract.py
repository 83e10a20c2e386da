"""One contract for every objective: what the trainer, the counter, the card and the guard rely on."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from conftest import make_model

from cdrl_infer.model import CDRLModel, ImageShape
from cdrl_infer.random import BatchRandom
from cdrl_train.config import Phase
from cdrl_train.cost import Shapes
from cdrl_train.data.stream import Batch
from cdrl_train.objectives import OBJECTIVES, Losses, Models, Objective

T = torch.tensor([1, 2, 3, 3, 2])


def objective(name: str) -> Objective:
    made = Phase({"name": name}, 1, 8, 1e-3, 1e-3).make_objective()
    made.build(ImageShape(1, 8, 8), (3,))
    return made


def models_of(model: CDRLModel) -> Models:
    frozen = copy.deepcopy(model.ebm).requires_grad_(False)
    return Models(model.ebm, frozen, model.initializer, model.schedule)


def losses(name: str, models: Models, seed: int = 0) -> Losses:
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(len(T), 1, 8, 8, generator=generator) * 2 - 1
    batch = Batch(x, torch.tensor([[0], [1], [2], [3], [1]]))
    level = models.schedule.level(T)
    return objective(name).losses(models, batch, level, BatchRandom(len(T), generator))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_losses_are_finite_and_teach_every_network_they_name(name: str) -> None:
    models = models_of(make_model(("a", "b", "c")))
    found = losses(name, models)
    assert found.total.shape == () and bool(found.total.isfinite())
    assert torch.equal(found.total, sum(found.totals.values(), torch.zeros(())))
    found.total.backward()
    for role in found.totals:
        gradients = [p.grad for p in getattr(models, role).parameters()]
        assert any(g is not None and bool(g.any()) for g in gradients), role
    assert not any(p.grad is not None for p in models.frozen_ebm.parameters())
    for key, values in found.by_level.items():
        assert values.shape == T.shape and not values.requires_grad, key


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_same_random_numbers_give_the_same_losses(name: str) -> None:
    models = models_of(make_model(("a", "b", "c")))
    first, again, other = (losses(name, models, seed).total for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_it_can_be_counted_on_the_meta_device(name: str) -> None:
    model = make_model(("a", "b", "c"))
    model.ebm.to("meta"), model.initializer.to("meta")
    batch = Batch(
        torch.empty(5, 1, 8, 8, device="meta"),
        torch.zeros(5, 1, dtype=torch.int64, device="meta"),
    )
    level = model.schedule.level(T, "meta")
    found = objective(name).to("meta").losses(models_of(model), batch, level, Shapes(5))
    assert found.total.device.type == "meta"


@pytest.mark.parametrize("name", OBJECTIVES)
def test_its_options_are_json_and_make_it_again(name: str) -> None:
    phase = Phase({"name": name}, 1, 8, 1e-3, 1e-3)
    assert json.loads(json.dumps(phase.objective)) == phase.objective
    assert Phase(phase.objective, 1, 8, 1e-3, 1e-3) == phase
    made = phase.make_objective()
    assert {"name": name, **made.config} == phase.objective
    assert all(limit.option in made.config for limit in made.limits(64))
    assert "\n" not in made.summary() and set(made.titles) >= {r.result for r in made.limits(64)}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_an_initializer_may_be_missing_unless_it_is_needed(name: str) -> None:
    models = models_of(make_model(("a", "b", "c")))
    models = Models(models.ebm, models.frozen_ebm, None, models.schedule)
    if not OBJECTIVES[name].needs_initializer:
        assert "initializer" not in losses(name, models).totals
