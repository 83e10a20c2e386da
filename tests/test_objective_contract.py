"""One contract for every objective: what the trainer, the counter, the card and the guard rely on."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from conftest import make_model, make_mpdr

from cdrl_infer.model import CDRLModel, ImageShape
from cdrl_infer.networks.distributions import GaussianDistribution, MixtureDistribution
from cdrl_infer.networks.tilted import TiltedEnergy
from cdrl_infer.networks.vae import VAEEnergy
from cdrl_infer.random import BatchRandom
from cdrl_infer.schedule import NoiseSchedule
from cdrl_train.config import Phase
from cdrl_train.cost import Shapes
from cdrl_train.data.stream import Batch
from cdrl_train.objectives import OBJECTIVES, Losses, Models, Objective
from cdrl_train.objectives.snelbo import SelfNormalisedELBO

T = torch.tensor([1, 2, 3, 3, 2])


def objective(name: str) -> Objective:
    made = Phase({"name": name}, 1, 8, 1e-3, 1e-3).make_objective()
    torch.manual_seed(0)
    made.build(ImageShape(1, 8, 8), (3,))
    return made


def model_for(name: str) -> CDRLModel:
    """A model that the objective can train, for images of 8 x 8."""
    if name in ("autoencoder", "mpdr"):
        return make_mpdr()
    torch.manual_seed(0)
    if issubclass(OBJECTIVES[name], SelfNormalisedELBO):
        vae = VAEEnergy(1, 64, 4, 8, 1, prior_width=8)
        return CDRLModel(vae, None, NoiseSchedule(num_levels=1), ImageShape(1, 8, 8))
    if not OBJECTIVES[name].needs_normaliser:
        return make_model(("a", "b", "c"))
    ebm = TiltedEnergy(GaussianDistribution(num_pixels=64), width=8)
    torch.nn.init.normal_(ebm.mlp.head.weight)
    proposal = MixtureDistribution(num_pixels=64, components=2, covariance="diagonal")
    return CDRLModel(ebm, proposal, NoiseSchedule(num_levels=1), ImageShape(1, 8, 8))


def models_of(model: CDRLModel) -> Models:
    frozen = copy.deepcopy(model.ebm).requires_grad_(False)
    return Models(model.ebm, frozen, model.initializer, model.schedule)


def losses(name: str, models: Models, seed: int = 0, made: Objective | None = None) -> Losses:
    made = objective(name) if made is None else made
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(len(T), 1, 8, 8, generator=generator) * 2 - 1
    labels = torch.tensor([[0], [1], [2], [3], [1]]) if models.ebm.num_classes else None
    batch, level = Batch(x, labels), models.schedule.level(T.clamp(max=models.schedule.num_levels))
    return made.losses(models, batch, level, BatchRandom(len(T), generator))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_losses_are_finite_and_teach_every_network_they_name(name: str) -> None:
    models, made = models_of(model_for(name)), objective(name)
    found = losses(name, models, made=made)
    assert found.total.shape == () and bool(found.total.isfinite())
    assert torch.equal(found.total, sum(found.totals.values(), torch.zeros(())))
    found.total.backward()
    for role in found.totals:
        network = getattr(models if hasattr(models, role) else made, role)
        gradients = [p.grad for p in network.parameters()]
        assert any(g is not None and bool(g.any()) for g in gradients), role
    assert not any(p.grad is not None for p in models.frozen_ebm.parameters())
    for key, values in found.by_level.items():
        assert values.shape == T.shape and not values.requires_grad, key


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_same_random_numbers_give_the_same_losses(name: str) -> None:
    models = models_of(model_for(name))
    first, again, other = (losses(name, models, seed).total for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_it_can_be_counted_on_the_meta_device(name: str) -> None:
    model = model_for(name)
    for network in model.networks.values():
        network.to("meta")
    labels = torch.zeros(5, 1, dtype=torch.int64, device="meta") if model.labels else None
    batch = Batch(torch.empty(5, 1, 8, 8, device="meta"), labels)
    level = model.schedule.level(T.clamp(max=model.schedule.num_levels), "meta")
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
    models = models_of(model_for(name))
    models = Models(models.ebm, models.frozen_ebm, None, models.schedule)
    if not (OBJECTIVES[name].needs_initializer or OBJECTIVES[name].needs_density):
        assert "initializer" not in losses(name, models).totals
