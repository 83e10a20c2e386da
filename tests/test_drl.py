"""DRL, the ancestor: no initializer, from training to the pipeline."""

from __future__ import annotations

import copy
import dataclasses
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_model
from runs import fit, tiny, trainer

from cdrl_infer.model import CDRLModel
from cdrl_infer.pipeline import CDRLPipeline
from cdrl_infer.proposals import make_proposal
from cdrl_infer.random import BatchRandom, PerImageRandom
from cdrl_infer.schedule import NoiseSchedule
from cdrl_infer.storage.folder import load_model, save_model
from cdrl_train.config import Phase
from cdrl_train.data.stream import Batch
from cdrl_train.engine.saving import resume
from cdrl_train.export import to_model
from cdrl_train.objectives import Models
from cdrl_train.objectives.drl import RecoveryLikelihood
from cdrl_train.objectives.losses import Refined


@pytest.fixture
def drl() -> CDRLModel:
    model = make_model(("Shirt", "Sneaker"), ("red", "blue"))
    model.initializer = None
    return model


def test_chains_start_at_the_noisier_image_itself() -> None:
    level = NoiseSchedule().level(torch.tensor([1, 3, 6]))
    x_t = torch.randn(3, 1, 4, 4)
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    proposal = make_proposal(None, torch.ones(3, 1).long())
    assert torch.equal(proposal.sample(x_t, level, BatchRandom(3, generator)), x_t)
    assert torch.equal(generator.get_state(), before)  # and draws nothing


def test_a_proposal_with_weights_keeps_its_noise() -> None:
    model = make_model(("a", "b"))
    level = model.schedule.level(2)
    proposal = make_proposal(model.initializer, torch.ones(4, 1).long())
    x_t = torch.zeros(4, 1, 8, 8)
    drawn = proposal.sample(x_t, level, PerImageRandom.from_seeds(range(4), "cpu"))
    noise = PerImageRandom.from_seeds(range(4), "cpu").normal((1, 8, 8))
    with torch.no_grad():
        expected = proposal.mean(x_t, level) + level.proposal_variance.sqrt() * noise
    assert torch.equal(drawn, expected)


def test_a_folder_without_an_initializer_is_opened(drl: CDRLModel, tmp_path: Path) -> None:
    pipe = CDRLPipeline(copy.deepcopy(drl))
    pipe.save_pretrained(tmp_path / "drl")
    loaded = CDRLPipeline.from_pretrained(tmp_path / "drl")
    assert loaded.model.initializer is None
    a, b = (
        p(class_labels=[("Shirt", "red"), None], seeds=[1, 2], output_type="pt").images
        for p in (pipe, loaded)
    )
    assert torch.equal(torch.as_tensor(a), torch.as_tensor(b))
    assert len(loaded.compose("Shirt & ~red", seeds=[1]).images) == 1
    assert len(loaded(class_labels=[("Shirt", "red")], guidance_scale=2.0, seeds=[1]).images) == 1


def test_variants_of_it_live_side_by_side(drl: CDRLModel, tmp_path: Path) -> None:
    drl.ebm.half().float()  # so that both variants hold the same
    save_model(drl, tmp_path / "drl")
    save_model(drl, tmp_path / "drl", variant="fp16")
    assert not (tmp_path / "drl" / "initializer").exists()
    for variant in (None, "fp16"):
        assert load_model(tmp_path / "drl", variant=variant).initializer is None


@pytest.mark.parametrize("warm_steps", [0, 2])
def test_it_trains_resumes_and_is_exported(tmp_path: Path, warm_steps: int) -> None:
    warm, _ = tiny().phases
    main = Phase({"name": "drl", "langevin_steps": 3}, 2, 8, 1e-3, 0.0)
    phases = (dataclasses.replace(warm, steps=warm_steps), main)
    config = tiny(initializer=None, phases=phases)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run = trainer(config, tmp_path)
        weights = copy.deepcopy(run.state.ebm.state_dict())
        fit(run, warm_steps + 1)
        again = trainer(config, tmp_path)
        assert resume(again)
        fit(again)
    assert any(not torch.equal(w, again.state.ebm.state_dict()[k]) for k, w in weights.items())
    pipe = CDRLPipeline(to_model(again))
    pipe.save_pretrained(tmp_path / "model")
    loaded = CDRLPipeline.from_pretrained(tmp_path / "model")
    assert loaded.model.initializer is None
    assert len(loaded(num_images=2, seeds=[0, 1], langevin_steps=1).images) == 2


def test_training_starts_its_chains_at_x_t(monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = make_model(("a", "b")), []

    def refine(*arguments: Any, _refine: Any = RecoveryLikelihood.refine) -> Refined:
        seen.append((arguments, _refine(*arguments)))
        return seen[-1][1]

    monkeypatch.setattr(RecoveryLikelihood, "refine", refine)
    models = Models(model.ebm, model.ebm, None, model.schedule)
    level = model.schedule.level(torch.tensor([1, 2, 3, 1, 2]))
    batch = Batch(torch.randn(5, 1, 8, 8), torch.zeros(5, 1).long())
    random = BatchRandom(5, torch.Generator().manual_seed(0))
    losses = RecoveryLikelihood(langevin_steps=2).losses(models, batch, level, random)
    (((_, _, _, pair, *_), refined),) = seen
    assert torch.equal(refined.start, pair.x_t) and not torch.equal(refined.end, pair.x_t)
    assert losses.totals.keys() == {"ebm"}  # nobody imitates the chain
