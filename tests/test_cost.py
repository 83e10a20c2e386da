"""The counter, against the same work really done."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import SMALL, energy, tiny, trainer, unet
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from cdrl_infer.energies.neural import NeuralEnergy
from cdrl_infer.errors import ConfigError
from cdrl_infer.model import ImageShape, SamplerDefaults
from cdrl_infer.proposals import InitializerProposal
from cdrl_infer.random import PerImageRandom
from cdrl_infer.sampler import CooperativeSampler
from cdrl_train.config import DataConfig, TrainConfig
from cdrl_train.cost import SAMPLE_BATCH, Tally, count, stand_in_attributes
from cdrl_train.data.image_set import ImageSet
from cdrl_train.dry_run import dry_run
from cdrl_train.networks import build_network

IMAGE = ImageShape(3, 8, 8)
UNET = unet(widths=[8, 8], attention_levels=[1])
PAPER: dict[str, Any] = {"ebm": SMALL, "initializer": UNET, "spectral_norm": True}
BOTH = ("cooperative.score_matching=1", "cooperative.regression=1", "accumulate=2")


def small(*assignments: str, **changes: Any) -> TrainConfig:
    """One step of four images in each phase."""
    base = tiny(**{"ebm": energy(widths=[8, 12]), "data": DataConfig(dequantise=False), **changes})
    phases = tuple(dataclasses.replace(phase, steps=1, batch_size=4) for phase in base.phases)
    return dataclasses.replace(base, phases=phases).override([*assignments])


CASES = {
    "small": (small(), (3,)),
    "paper": (small(**PAPER), ()),
    "drl": (small('phases.1.objective={"name": "drl"}', "initializer=null"), ()),
    "all losses, in parts": (small(*BOTH), (2, 3)),
}


def trainer_of(config: TrainConfig, num_classes: tuple[int, ...], folder: Path) -> Any:
    images = torch.randint(256, (4, *IMAGE.shape), dtype=torch.uint8)
    labels = torch.zeros(4, len(num_classes)).long() if num_classes else None
    return trainer(config, folder, data=ImageSet(images, labels, stand_in_attributes(num_classes)))


@pytest.mark.parametrize("case", CASES)
def test_a_step_costs_what_the_trainer_spends(case: str, tmp_path: Path) -> None:
    config, num_classes = CASES[case]
    cost = count(config, IMAGE, num_classes)
    run = trainer_of(config, num_classes, tmp_path)
    sizes = {
        role: sum(p.numel() for p in network.parameters())
        for role, network in run.state.trained.items()
    }
    assert (sizes["ebm"], sizes.get("initializer", 0)) == (cost.ebm, cost.initializer)
    for work in cost.phases:
        tally = Tally()
        with tally:
            run.train_step()
        assert work is not None and tally.flops == work.flops
        # The trainer's has results for the log and the optimizer in it.
        assert work.moved < tally.moved


def test_memory_is_what_the_trainer_holds(tmp_path: Path) -> None:
    # A batch so large that images count, not weights.
    config = small("score_matching.batch_size=64", **PAPER)
    cost = count(config, IMAGE, ())
    tally = Tally()
    with tally:
        run = trainer_of(config, (), tmp_path)
        run.stream.images = run.stream.images.repeat(16, 1, 1, 1)
        before, tally.peak = tally.live, 0
        run.train_step()
    assert cost.phases[0] is not None
    assert tally.peak - before == pytest.approx(cost.phases[0].peak, rel=0.02)
    state = run.state
    networks = [*state.trained.values(), state.frozen_ebm]
    kept = [value for network in networks for value in network.state_dict().values()]
    kept += [p for average in state.averages.values() for p in average.module.parameters()]
    moments = state.optimizer.state.values()
    kept += [value for found in moments for name, value in found.items() if name != "step"]
    normed = 4 * cost.ebm  # W / σ(W), while a step lasts
    assert sum(tensor.nbytes for tensor in kept) + normed == cost.state


@pytest.mark.parametrize("case", ["small", "paper"])
def test_a_sample_costs_what_sampling_spends(case: str) -> None:
    config, num_classes = CASES[case]
    config = dataclasses.replace(config, sampler=SamplerDefaults((3, 1, 2)))
    torch.manual_seed(0)
    ebm: Any = build_network("ebm", config.ebm, 3, num_classes)
    initializer: Any = build_network("initializer", config.initializer, 3, num_classes)
    labels = torch.ones(SAMPLE_BATCH, 1).long() if num_classes else None
    tally = Tally()
    with tally:
        CooperativeSampler(config.schedule, (3, 1, 2)).sample(
            NeuralEnergy(ebm.requires_grad_(False), labels),
            InitializerProposal(initializer, labels),
            PerImageRandom.from_seeds(range(SAMPLE_BATCH), "cpu"),
            IMAGE.shape,
        )
    assert count(config, IMAGE, num_classes).sample.flops == tally.flops


class Net(nn.Module):
    """With all that the counter has to tell apart: views, in-place steps, convolutions, products."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, padding=1)
        self.out = nn.Linear(16 * 64, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.out(self.conv(x).mul_(2.0).relu().flatten(1))
        return out


def test_operations_are_those_of_torchs_counter_and_of_arithmetic() -> None:
    net, x = Net(), torch.randn(32, 3, 8, 8)
    tally = Tally()
    with tally:
        net(x).sum().backward()
    with FlopCounterMode(display=False) as theirs:
        net(x).sum().backward()
    assert tally.flops == theirs.get_total_flops()
    conv, linear = 2 * 32 * 64 * 16 * 27, 2 * 32 * 1024 * 5
    assert tally.flops == 2 * conv + 3 * linear  # no gradient in x


def test_bytes_moved_are_those_read_and_written() -> None:
    x = torch.ones(10, 6)
    tally = Tally()
    with tally:
        y = x + 1  # reads and writes 240 bytes
        z = y.view(60)[:30]  # nothing
        z.mul_(2)  # reads and writes 120 bytes
        torch.mm(x, x.T)  # reads 480, writes 400
    assert tally.moved == 480 + 240 + 880


def test_held_memory_is_that_of_the_profiler() -> None:
    net, x = Net(), torch.randn(256, 3, 8, 8)
    net(x).sum().backward()
    net.zero_grad(set_to_none=True)
    tally = Tally()
    with tally:
        net(x).sum().backward()
    net.zero_grad(set_to_none=True)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as theirs:
        net(x).sum().backward()
    held = peak = 0
    for event in theirs.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    assert tally.peak == pytest.approx(peak, rel=0.1)


def test_the_cost_of_a_run_is_that_of_its_steps() -> None:
    cost = count(small(), IMAGE, (3,))
    longer = small("score_matching.steps=10", "cooperative.steps=0")
    none = count(longer, IMAGE, (3,))
    assert none.phases[1] is None and cost.phases[0] is not None
    assert none.flops(longer) == 10 * cost.phases[0].flops
    assert cost.exchanged == 4 * (cost.ebm + cost.initializer)


def test_networks_that_do_not_take_the_images_are_refused() -> None:
    with pytest.raises(ConfigError, match="multiples of 4, got 6 and 6"):
        count(small(), ImageShape(3, 6, 6), ())


def test_a_dry_run_counts_and_measures() -> None:
    lines = list(dry_run(small(), IMAGE, (3,), torch.device("cpu"), seconds=0.0))
    cost = count(small(), IMAGE, (3,))
    text = "\n".join(lines)
    assert f"{small().ebm['class']}, {cost.ebm:,} values" in text
    assert f"{cost.initializer:,} values" in text
    assert text.count(" s a step on cpu, by 3 steps with a batch of 1") == 2
    assert "score_matching 1 steps of 4 images" in text
    assert lines[-1].startswith("whole run ") and "on this cpu" in lines[-1]
