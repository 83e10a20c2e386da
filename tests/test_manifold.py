"""Negatives of MPDR at the cleanest level: where they lie, what they teach, and what bounds them."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_model
from runs import differing, fit, tiny, trainer
from torch import Tensor, nn

from cdrl_infer.errors import ConfigError
from cdrl_infer.model import ImageShape
from cdrl_infer.random import BatchRandom
from cdrl_infer.schedule import Level
from cdrl_train.config import Phase, TrainConfig
from cdrl_train.data.stream import Batch
from cdrl_train.engine.saving import resume
from cdrl_train.objectives import Models
from cdrl_train.objectives.losses import Loss
from cdrl_train.objectives.manifold import Manifold, Reconstruction

B = 6


def made(**options: Any) -> Manifold:
    torch.manual_seed(0)
    objective = Manifold(**{"chains": 8, "chain_steps": 1, "langevin_steps": 1, **options})
    objective.build(ImageShape(1, 8, 8), (3,))
    return objective


def models() -> Models:
    model = make_model(("a", "b", "c"))
    return Models(model.ebm, model.ebm, model.initializer, model.schedule)


def batch_random(seed: int = 0) -> BatchRandom:
    return BatchRandom(B, torch.Generator().manual_seed(seed))


def pictures() -> Tensor:
    return torch.rand(B, 1, 8, 8, generator=torch.Generator().manual_seed(3)) * 2 - 1


def lowest(of: Models) -> Level:
    return of.schedule.level(torch.ones(B, dtype=torch.int64))


def test_negatives_are_noised_images_of_the_autoencoder() -> None:
    """Without steps and nearly without spread a negative is the reconstruction at the lowest level."""
    objective, of, x = made(latent_steps=0), models(), pictures()
    objective.walk = dataclasses.replace(objective.walk, spread_min=1e-7, spread_max=1e-7)
    objective.chain_steps = 0
    level = lowest(of)
    found = objective._negatives(
        of.frozen_energy(torch.zeros(B, 1).long()), x, level, batch_random()
    )
    image = objective.autoencoder.reconstruct(x).detach()
    noise = batch_random().normal((1, 8, 8))
    expected = level.expand(level.scale, x) * level.diffused(image, noise)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_the_walk_goes_downhill_on_the_energy_of_noised_images() -> None:
    of, x = models(), pictures()
    level, blind = lowest(of), torch.zeros(B, 1).long()
    energy = of.frozen_energy(blind)

    def mean_energy(length: float) -> float:
        objective = made(latent_steps=20, latent_step=length, latent_noise=1e-4)
        objective.chain_steps = 0
        end = objective._negatives(energy, x, level, batch_random())
        return float(energy(end, level).mean().detach())

    assert mean_energy(0.1) < mean_energy(0.0)


class Bowl(nn.Module):
    """The energy ``steepness ‖y‖²``, lowest at 0."""

    output_unit = "nats"

    def __init__(self) -> None:
        super().__init__()
        self.steepness = nn.Parameter(torch.tensor(50.0))

    def condition(self, level: Level, labels: Tensor | None = None) -> None:
        return None

    def forward(self, y: Tensor, condition: None) -> Tensor:
        return -self.steepness * y.square().flatten(1).sum(1)


def loss_at_the_bottom(margin: float | None) -> tuple[Loss, float]:
    """The loss where all images are 0, and negatives lie higher, and its gradient by the steepness."""
    bowl = Bowl()
    of = Models(bowl, bowl, None, models().schedule)
    batch = Batch(torch.zeros(B, 1, 8, 8), None)
    found = made(margin=margin, latent_steps=0).manifold_loss(of, batch, lowest(of), batch_random())
    (gradient,) = torch.autograd.grad(found.value, bowl.steepness)
    return found, float(gradient)


def test_beyond_the_margin_a_negative_teaches_nothing() -> None:
    free, gradient = loss_at_the_bottom(None)
    gaps = free.per_image
    assert bool((gaps < -1).all()) and gradient < 0
    wide, alike = loss_at_the_bottom(margin=-2 * float(gaps.min()))
    assert alike == gradient and torch.equal(wide.value, free.value)
    assert loss_at_the_bottom(margin=-float(gaps.max()) / 2)[1] == 0
    level = lowest(models())
    middle = -float(gaps.median())
    some, _ = loss_at_the_bottom(middle)
    expected = (level.scale * level.sigma_bar * gaps.clamp(min=-middle)).mean()
    torch.testing.assert_close(some.value.detach(), expected)


def test_labels_of_the_batch_do_not_matter_to_the_negatives() -> None:
    """The scores that these negatives are for do not see labels."""
    objective, of = made(), models()
    found = [
        objective.manifold_loss(of, Batch(pictures(), labels), lowest(of), batch_random()).per_image
        for labels in (torch.ones(B, 1).long(), torch.full((B, 1), 3))
    ]
    assert torch.equal(*found)


def test_it_begins_with_the_autoencoder_of_an_earlier_phase() -> None:
    torch.manual_seed(5)
    earlier = Reconstruction()
    earlier.build(ImageShape(1, 8, 8), ())
    objective = made()
    before = objective.autoencoder.state_dict()["leave.weight"].clone()
    objective.begin([], models())
    assert torch.equal(objective.autoencoder.leave.weight, before)
    objective.begin([earlier], models())
    theirs = earlier.autoencoder.state_dict()
    for name, tensor in objective.autoencoder.state_dict().items():
        assert torch.equal(tensor, theirs[name]), name


def run() -> TrainConfig:
    """Three steps of reconstruction, then four with the negatives."""
    slow = {"batch_size": 8, "ebm_lr": 1e-4, "initializer_lr": 1e-4}
    chains = {"chains": 8, "chain_steps": 1, "langevin_steps": 1}
    return tiny(
        phases=(
            Phase({"name": "reconstruction"}, 3, 8, 0.0, 0.0, objective_lr=1e-3),
            Phase({"name": "manifold", **chains}, 4, **slow),
        )
    )


def test_the_first_phase_teaches_the_autoencoder_alone(tmp_path: Path) -> None:
    training = trainer(run(), tmp_path)
    state = training.state
    networks = {"ebm": state.models.ebm, "initializer": state.models.initializer}
    networks["autoencoder"] = state.objectives[0].autoencoder
    before = {name: copy.deepcopy(network.state_dict()) for name, network in networks.items()}
    fit(training, 3)
    for name, network in networks.items():
        moved = [k for k, v in network.state_dict().items() if not torch.equal(before[name][k], v)]
        assert bool(moved) == (name == "autoencoder"), name


def test_a_run_resumes_to_the_bit_in_both_phases(tmp_path: Path) -> None:
    whole = trainer(run(), tmp_path / "whole")
    fit(whole)
    for k in (2, 5):
        fit(trainer(run(), tmp_path / f"part{k}"), k)
        again = trainer(run(), tmp_path / f"part{k}")
        assert resume(again) and again.step == k
        fit(again)
        assert not differing(whole.state_dict(), again.state_dict()), k


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"margin": -1.0}, "margin must be at least 0, got -1.0"),
        ({"latent_noise": 0.0}, "latent_noise must be positive, got 0.0"),
        ({"latent_steps": -1}, "latent_steps must be at least 0, got -1"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        made(**options)


def test_an_image_that_no_autoencoder_fits_is_refused() -> None:
    with pytest.raises(ConfigError, match="multiples of 4"):
        Reconstruction().build(ImageShape(1, 9, 9), ())
