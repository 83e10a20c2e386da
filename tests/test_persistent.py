"""Persistent chains find holes of an energy that short chains never see, and fill nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from runs import differing, fit, tiny, trainer
from torch import Tensor, nn

from cdrl_infer.errors import ConfigError
from cdrl_infer.model import ImageShape
from cdrl_infer.random import BatchRandom
from cdrl_infer.schedule import Level, NoiseSchedule
from cdrl_train.data.stream import Batch
from cdrl_train.engine.saving import resume
from cdrl_train.objectives import Models
from cdrl_train.objectives.persistent import Persistent

SCHEDULE = NoiseSchedule(num_levels=3, step_rule="curvature", step_size=0.4)
SHAPE = ImageShape(1, 1, 2)
B = 64


class Holed(nn.Module):
    """The log-density of data x = 0 at a level, plus ``depth · g(y)``: a hole of the energy far away.

    g rises along a slope from the data to a plateau at |y| > 3 noise widths, as a leak does.
    """

    output_unit = "nats"

    def __init__(self, depth: float) -> None:
        super().__init__()
        self.depth = nn.Parameter(torch.tensor(depth))

    def condition(self, level: Level, labels: Tensor | None = None) -> Tensor:
        return level.scale * level.sigma_bar

    def forward(self, y: Tensor, condition: Tensor) -> Tensor:
        size = y.square().flatten(1).sum(1) / condition.square()
        return -0.5 * size.clamp(max=25.0) + self.depth * torch.sigmoid(4 * (size.sqrt() - 2.0))


class Centre(nn.Module):
    """An initializer that proposes the data: 0."""

    def __init__(self) -> None:
        super().__init__()
        self.zero = nn.Parameter(torch.zeros(()))

    def condition(self, level: Level, labels: Tensor | None = None) -> None:
        return None

    def forward(self, x: Tensor, condition: None) -> Tensor:
        return 0 * x + self.zero


def models(depth: float) -> Models:
    ebm, frozen = Holed(depth), Holed(depth).requires_grad_(False)
    return Models(ebm, frozen, Centre(), SCHEDULE)


def objective(**options: Any) -> Persistent:
    made = Persistent(
        **{
            "langevin_steps": 1,
            "score_matching": 0.0,
            "chains": 2 * B,
            "chain_steps": 20,
            **options,
        }
    )
    made.build(SHAPE, ())
    return made


def pushed(made: Persistent, depth: float, steps: int = 12) -> float:
    """The mean gradient of the chains' loss in the depth of the hole, over the last half of the steps."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(steps):
        of_step = models(depth)
        level = SCHEDULE.level(torch.randint(1, 4, (B,), generator=generator))
        batch = Batch(torch.zeros(B, *SHAPE.shape), None)
        losses = made.losses(of_step, batch, level, BatchRandom(B, generator))
        losses.total.backward()
        found.append(float(of_step.ebm.depth.grad))
    return sum(found[steps // 2 :]) / len(found[steps // 2 :])


def test_a_hole_is_found_and_filled() -> None:
    """Descending the gradient makes the hole shallower; one-step chains alone do not see it as well."""
    leaky = pushed(objective(), 8.0)
    short = pushed(objective(chain_weight=0.0), 8.0)
    assert leaky > 3 * max(short, 0.0) and leaky > 0.01


def test_a_hill_is_left_to_the_other_losses() -> None:
    """Chains whose energies are higher than those of data have no loss: the hill is not removed."""
    generator = torch.Generator().manual_seed(0)
    with_chains, without = objective(), objective(chain_weight=0.0)
    for made in (with_chains, without):
        made.gap.fill_(-50.0), made.t.fill_(1)
        made.y.normal_(generator=generator)
    level = SCHEDULE.level(torch.ones(B, dtype=torch.int64))
    batch = Batch(torch.zeros(B, *SHAPE.shape), None)
    totals = [
        made.losses(models(-8.0), batch, level, BatchRandom(B, torch.Generator().manual_seed(3)))
        for made in (with_chains, without)
    ]
    assert torch.equal(*(found.totals["ebm"] for found in totals))
    assert bool((with_chains.gap[:B] != -50.0).all())


def test_chains_go_on_where_they_were_and_take_turns() -> None:
    made = objective(restart=0.0, chain_steps=1)
    generator = torch.Generator().manual_seed(0)
    level = SCHEDULE.level(torch.full((B,), 2))
    batch = Batch(torch.zeros(B, *SHAPE.shape), None)
    points = []
    for _ in range(4):
        made.losses(models(0.0), batch, level, BatchRandom(B, generator))
        points.append(made.y.clone())
    first, second = slice(0, B), slice(B, 2 * B)
    assert torch.equal(points[0][first], points[1][first])
    assert not bool(points[0][second].any()) and bool(points[1][second].any())
    # one more step of the same chain: near, but moved
    moved = (points[2][first] - points[1][first]).square().mean().sqrt()
    fresh = (points[1][second] - points[1][first]).square().mean().sqrt()
    assert 0 < float(moved) < float(fresh)
    assert torch.equal(points[2][second], points[1][second])


def test_a_chain_that_left_the_finite_numbers_starts_anew() -> None:
    made = objective(restart=0.0)
    made.t.fill_(1), made.y.fill_(float("nan"))
    level = SCHEDULE.level(torch.ones(B, dtype=torch.int64))
    batch = Batch(torch.zeros(B, *SHAPE.shape), None)
    found = made.losses(models(0.0), batch, level, BatchRandom(B, torch.Generator()))
    assert bool(found.total.isfinite()) and bool(made.y[:B].isfinite().all())


def run(**changes: Any) -> Any:
    config = tiny(**changes)
    phase = config.phases[-1]
    own = {
        "name": "persistent",
        "langevin_steps": 2,
        "chains": 12,
        "chain_steps": 2,
        "restart": 0.3,
    }
    last = type(phase)(own, 6, 8, 1e-3, 1e-3, label="settle")
    return type(config)(**{**config.__dict__, "phases": (*config.phases, last)})


def test_resuming_goes_on_with_the_same_chains(tmp_path: Path) -> None:
    config = run(checkpoint_every=2, keep_checkpoints=10)
    whole = trainer(config, tmp_path / "whole")
    fit(whole)
    cut = trainer(config, tmp_path / "cut")
    fit(cut, 11)
    second = trainer(config, tmp_path / "cut")
    assert resume(second) and second.step == 11
    fit(second)
    assert differing(whole.state_dict(), second.state_dict()) == []
    chains = whole.state_dict()["memories"][-1]
    assert bool(chains["t"].all()) and chains["y"].shape == (12, 1, 8, 8)


def test_a_run_that_splits_its_batches_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"settle: .* needs one process and accumulate=1, got 1 and"
    ):
        trainer(run(accumulate=2), tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chains": 0}, "chains and chain_steps must be at least 1, got 0 and 20"),
        ({"restart": 1.5}, r"restart must lie in \[0, 1\], got 1.5"),
        ({"chain_weight": -1.0}, "chain_weight must be at least 0"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        objective(**options)


def test_fewer_chains_than_images_are_refused() -> None:
    made = objective(chains=B - 1)
    level = SCHEDULE.level(torch.ones(B, dtype=torch.int64))
    batch = Batch(torch.zeros(B, *SHAPE.shape), None)
    with pytest.raises(ConfigError, match=f"at least the batch size, {B}, got {B - 1}"):
        made.losses(models(0.0), batch, level, BatchRandom(B, torch.Generator()))
