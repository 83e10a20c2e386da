"""The counter, against the same work really done."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from cdrl_infer.energies.neural import NeuralEnergy
from cdrl_infer.errors import ConfigError
from cdrl_infer.model import ImageShape, SamplerDefaults
from cdrl_infer.proposals import InitializerProposal
from cdrl_infer.random import PerImageRandom
from cdrl_infer.sampler import CooperativeSampler
from cdrl_infer.schedule import NoiseSchedule
from cdrl_train.config import CooperativeConfig, DataConfig, PhaseConfig, TrainConfig
from cdrl_train.cost import SAMPLE_BATCH, Tally, count, stand_in_attributes
from cdrl_train.data.image_set import ImageSet
from cdrl_train.data.stream import BatchStream
from cdrl_train.dry_run import dry_run
from cdrl_train.engine.trainer import Trainer
from cdrl_train.networks import build_network

IMAGE = ImageShape(3, 8, 8)
ENERGY_UNET = {
    "class": "InnerProductEnergy",
    "backbone": {"class": "PatchUNet", "widths": [8, 12], "num_blocks": 1, "embedding_dim": 16},
}
PATCH = {
    "class": "ResidualInitializer",
    "backbone": {"class": "PatchUNet", "widths": [8], "num_blocks": 1, "embedding_dim": 16},
}
RESIDUAL = {
    "class": "ResidualEBM",
    "width": 8,
    "num_blocks": 1,
    "width_multipliers": [1, 2],
    "frequencies": 4,
    "embedding_dim": 16,
}
UNET = {
    "class": "ResidualInitializer",
    "backbone": {
        "class": "UNet",
        "widths": [8, 8],
        "num_blocks": 1,
        "attention_levels": [1],
        "frequencies": 4,
        "embedding_dim": 16,
        "groups": 4,
    },
}


def tiny(**changes: Any) -> TrainConfig:
    config = TrainConfig(
        name="tiny",
        ebm=ENERGY_UNET,
        initializer=PATCH,
        schedule=NoiseSchedule(num_levels=3),
        sampler=SamplerDefaults(langevin_steps=2),
        data=DataConfig(dequantise=False),
        warm_start=PhaseConfig(1, 4, "markov", 1e-3, 1e-3),
        cooperative=CooperativeConfig(1, 4, "shared", 1e-3, 1e-3, langevin_steps=4),
    )
    return dataclasses.replace(config, **changes)


PAPER = {"ebm": RESIDUAL, "initializer": UNET, "spectral_norm": True}
BOTH = CooperativeConfig(
    1, 4, "markov", 1e-3, 1e-3, langevin_steps=1, score_matching=1.0, regression=1.0
)
CASES = {
    "small": (tiny(), (3,)),
    "paper": (tiny(**PAPER), ()),
    "drl": (tiny(ebm=RESIDUAL, initializer=None), ()),
    "all losses, in parts": (tiny(cooperative=BOTH, accumulate=2), (2, 3)),
}


def trainer(config: TrainConfig, num_classes: tuple[int, ...], folder: Path) -> Trainer:
    images = torch.randint(256, (4, *IMAGE.shape), dtype=torch.uint8)
    labels = torch.zeros(4, len(num_classes)).long() if num_classes else None
    data = ImageSet(images, labels, stand_in_attributes(num_classes))
    return Trainer(config, BatchStream(data, config.data, 0, "cpu"), folder)


@pytest.mark.parametrize("case", CASES)
def test_a_step_costs_what_the_trainer_spends(case: str, tmp_path: Path) -> None:
    config, num_classes = CASES[case]
    cost = count(config, IMAGE, num_classes)
    run = trainer(config, num_classes, tmp_path)
    assert sum(p.numel() for p in run.ebm.parameters()) == cost.ebm
    assert sum(p.numel() for p in run.initializer.parameters()) == cost.initializer
    for work in (cost.warm_start, cost.cooperative):
        tally = Tally()
        with tally:
            run.train_step()
        assert work is not None and tally.flops == work.flops
        # The trainer's has figures for the log and the optimisers in it.
        assert work.moved < tally.moved


def test_memory_is_what_the_trainer_holds(tmp_path: Path) -> None:
    big = PhaseConfig(1, 64, "markov", 1e-3, 1e-3)  # so that images count, not weights
    config = tiny(warm_start=big, **PAPER)
    cost = count(config, IMAGE, ())
    tally = Tally()
    with tally:
        run = trainer(config, (), tmp_path)
        run.stream.images = run.stream.images.repeat(16, 1, 1, 1)
        before, tally.peak = tally.live, 0
        run.train_step()
    assert cost.warm_start is not None
    assert tally.peak - before == pytest.approx(cost.warm_start.peak, rel=0.02)
    kept = [*run.ebm.state_dict().values(), *run.initializer.state_dict().values()]
    kept += [*run.chain.state_dict().values()]
    for average in (run.ebm_ema, run.initializer_ema):
        kept += list(average.module.parameters())
    for optimizer in run.optimizers:
        states = optimizer.state.values()
        kept += [value for state in states for name, value in state.items() if name != "step"]
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
    config = tiny()
    cost = count(config, IMAGE, (3,))
    longer = dataclasses.replace(
        config,
        warm_start=dataclasses.replace(config.warm_start, steps=10),
        cooperative=dataclasses.replace(config.cooperative, steps=0),
    )
    none = count(longer, IMAGE, (3,))
    assert none.cooperative is None and cost.warm_start is not None
    assert none.flops(longer) == 10 * cost.warm_start.flops
    assert cost.exchanged == 4 * (cost.ebm + cost.initializer)


def test_networks_that_do_not_take_the_images_are_refused() -> None:
    with pytest.raises(ConfigError, match="multiples of 4, got 6 and 6"):
        count(tiny(), ImageShape(3, 6, 6), ())


def test_a_dry_run_counts_and_measures() -> None:
    lines = list(dry_run(tiny(), IMAGE, (3,), torch.device("cpu"), seconds=0.0))
    cost = count(tiny(), IMAGE, (3,))
    text = "\n".join(lines)
    assert f"InnerProductEnergy, {cost.ebm:,} values" in text
    assert f"ResidualInitializer, {cost.initializer:,} values" in text
    assert text.count(" s a step on cpu, by 3 steps with a batch of 1") == 2
    assert "warm_start   1 steps of 4 images" in text
    assert lines[-1].startswith("whole run ") and "on this cpu" in lines[-1]
