"""DRL, the ancestor: no initializer, from training to the pipeline."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path

import pytest
import torch
from conftest import make_model

from cdrl_infer.energies.neural import NeuralEnergy
from cdrl_infer.kernels.langevin import Langevin
from cdrl_infer.model import CDRLModel
from cdrl_infer.pipeline import CDRLPipeline
from cdrl_infer.proposals import IdentityProposal, make_proposal
from cdrl_infer.random import BatchRandom, PerImageRandom
from cdrl_infer.schedule import NoiseSchedule
from cdrl_infer.storage.folder import load_model, save_model
from cdrl_train.config import CooperativeConfig, PhaseConfig, TrainConfig
from cdrl_train.cost import stand_in_attributes
from cdrl_train.data.image_set import ImageSet
from cdrl_train.data.stream import BatchStream
from cdrl_train.engine.state import resume
from cdrl_train.engine.trainer import Trainer
from cdrl_train.export import to_model
from cdrl_train.objectives import losses as objectives

BACKBONE = {"class": "PatchUNet", "widths": [8], "num_blocks": 1, "embedding_dim": 16}
ENERGY = {"class": "InnerProductEnergy", "backbone": BACKBONE}


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
    config = TrainConfig(
        name="drl",
        ebm=ENERGY,
        initializer=None,
        schedule=NoiseSchedule(num_levels=2),
        warm_start=PhaseConfig(warm_steps, 4, "markov", 1e-3, 1e-3),
        cooperative=CooperativeConfig(2, 4, "markov", 1e-3, 1e-3, langevin_steps=3),
        log_every=1,
    )
    images = torch.randint(256, (8, 1, 8, 8), dtype=torch.uint8)
    data = ImageSet(images, torch.zeros(8, 1).long(), stand_in_attributes((3,)))

    def trainer() -> Trainer:
        return Trainer(config, BatchStream(data, config.data, 0, "cpu"), tmp_path)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run = trainer()
        weights = copy.deepcopy(run.ebm.state_dict())
        run.fit(until=warm_steps + 1)
        again = trainer()
        assert resume(again)
        again.fit()
    assert any(not torch.equal(w, again.ebm.state_dict()[k]) for k, w in weights.items())
    pipe = CDRLPipeline(to_model(again))
    pipe.save_pretrained(tmp_path / "model")
    loaded = CDRLPipeline.from_pretrained(tmp_path / "model")
    assert loaded.model.initializer is None
    assert len(loaded(num_images=2, seeds=[0, 1], langevin_steps=1).images) == 2


def test_training_starts_its_chains_at_x_t() -> None:
    model = make_model(("a", "b"))
    x_t, level = torch.randn(5, 1, 8, 8), model.schedule.level(torch.tensor([1, 2, 3, 1, 2]))
    proposal = IdentityProposal()
    mean = proposal.mean(x_t, level)
    labels = torch.zeros(5, 1).long()
    random = BatchRandom(5, torch.Generator().manual_seed(0))
    energy = NeuralEnergy(model.ebm, labels)
    refined = objectives.refine(
        energy, proposal, mean, Langevin(), level.step_variance, 2, x_t, level, random
    )
    assert torch.equal(refined.start, x_t) and not torch.equal(refined.end, x_t)
    assert not objectives.imitation_loss(mean, refined).value.requires_grad
