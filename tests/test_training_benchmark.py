"""The transcription does the trainer's step, so that their speeds can be compared."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import training
from click.testing import CliRunner
from ddp_worker import SMALL
from test_trainer import NETWORK, images, tiny
from torch import nn
from transcription import EBM_BACKWARD, LANGEVIN, NORMS, PARTS, Transcription

from cdrl_train.config import CooperativeConfig, PhaseConfig, TrainConfig
from cdrl_train.data.stream import BatchStream
from cdrl_train.engine.trainer import Trainer

COLD = PhaseConfig(0, 8, "markov", 1e-3, 1e-3)
PAPERS = CooperativeConfig(
    9, 8, "shared", 1e-3, 1e-3, warm_up=4, initializer_start=0.5, langevin_steps=3
)
ALL = CooperativeConfig(
    9,
    8,
    "markov",
    1e-3,
    1e-3,
    final_rate=0.1,
    langevin_steps=2,
    step_scale=0.7,
    weight="noise",
    score_matching=0.5,
    regression=0.3,
)
CASES = {
    "all losses": tiny(warm_start=COLD, cooperative=ALL),
    "the paper's": tiny(warm_start=COLD, cooperative=PAPERS, ebm=SMALL, spectral_norm=True),
    "no initializer": tiny(warm_start=COLD, cooperative=PAPERS, initializer=None),
}


def both(config: TrainConfig, folder: Path, **options: Any) -> tuple[Trainer, Transcription]:
    """With the same weights, none of them zero: else gradients are, and nothing is compared."""
    streams = [BatchStream(images(), config.data, config.seed, "cpu") for _ in range(2)]
    trainer = Trainer(config, streams[0], folder)
    transcription = Transcription(config, streams[1], **options)
    generator = torch.Generator().manual_seed(1)
    for network in (trainer.ebm, trainer.initializer):
        for parameter in network.parameters():
            if not parameter.any():
                nn.init.normal_(parameter, std=0.1, generator=generator)
    transcription.ebm.load_state_dict(trainer.ebm.state_dict())
    transcription.initializer.load_state_dict(trainer.initializer.state_dict())
    return trainer, transcription


@pytest.fixture
def float64(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Compute in float64: in float32 rounding decides the sign of a tiny gradient, hence Adam's step."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def weights(network: nn.Module) -> dict[str, torch.Tensor]:
    return dict(network.named_parameters())


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("whole_backward", [False, True], ids=["grad", "backward"])
@pytest.mark.parametrize("case", CASES)
def test_the_transcription_does_the_trainers_step(
    case: str, whole_backward: bool, tmp_path: Path
) -> None:
    # A new schedule, so that its constants are float64 too.
    config = replace(CASES[case], schedule=replace(CASES[case].schedule))
    trainer, transcription = both(config, tmp_path, whole_backward=whole_backward)
    before = {name: value.clone() for name, value in weights(trainer.ebm).items()}
    for _ in range(2):
        ours, theirs = trainer.train_step(), transcription.train_step()
        assert theirs == pytest.approx(ours, rel=1e-10)
    averages = (trainer.ebm_ema.module, trainer.initializer_ema.module)
    pairs = zip(
        (trainer.ebm, trainer.initializer, *averages),
        (*transcription.networks, *transcription.averages),
        strict=True,
    )
    for mine, other in pairs:
        found, expected = weights(other), weights(mine)
        assert found.keys() == expected.keys()
        for name, value in found.items():
            assert value.dtype == torch.float64
            torch.testing.assert_close(value, expected[name], rtol=1e-9, atol=1e-11)
            if value.grad is not None:
                torch.testing.assert_close(value.grad, expected[name].grad, rtol=1e-9, atol=1e-12)
    moved = [name for name, value in weights(trainer.ebm).items() if not value.equal(before[name])]
    assert len(moved) == len(before)


@pytest.mark.parametrize("case", CASES)
def test_a_measure_changes_nothing_but_speed(case: str, tmp_path: Path) -> None:
    stream = images()
    found = training.runners(CASES[case], stream, torch.device("cpu"))
    assert ("without norms kept for a step" in found) == (case == "the paper's")
    assert ("without E(y⁺) shared by the losses" in found) == (case == "all losses")
    losses = {}
    for name, runner in found.items():
        with runner.patch():
            losses[name] = [runner.work.train_step() for _ in range(2)]
    for step in range(2):
        for name, steps in losses.items():
            assert steps[step] == pytest.approx(losses[training.OURS][step], rel=1e-4), name


def test_layouts(tmp_path: Path) -> None:
    """What comes out of the EBM's stem, step by step."""
    config = CASES["all losses"]
    found = training.runners(config, images(), torch.device("cpu"))
    for name, runner in found.items():
        seen: list[bool] = []
        stem = runner.work.ebm.backbone.stem

        def look(_: Any, inputs: Any, output: torch.Tensor, seen: list[bool] = seen) -> None:
            seen.append(output.is_contiguous())

        with stem.register_forward_hook(look):
            runner.work.train_step()
        default = name in (training.PLAIN, training.WASTEFUL, "without channels last")
        assert seen and set(seen) == {default}, name


def test_bfloat16_is_left_out_alone(tmp_path: Path) -> None:
    config = tiny(warm_start=COLD, cooperative=ALL, precision="bfloat16")
    types: dict[str, set[torch.dtype]] = {}
    for name, runner in training.runners(config, images(), torch.device("cpu")).items():
        seen = types.setdefault(name, set())
        stem = runner.work.ebm.backbone.stem
        with stem.register_forward_hook(lambda _, i, output, seen=seen: seen.add(output.dtype)):
            runner.work.train_step()
    plain = ("without bfloat16", training.PLAIN, training.WASTEFUL)
    for name, seen in types.items():
        assert seen == {torch.float32 if name in plain else torch.bfloat16}, name


def test_the_parts_of_a_step_add_up(tmp_path: Path) -> None:
    found = training.runners(CASES["the paper's"], images(), torch.device("cpu"))
    for name in (training.OURS, training.PLAIN):
        seconds = training.breakdown(found[name], 2, torch.device("cpu"))
        assert [*seconds] == [*PARTS, training.REST]
        assert min(seconds.values()) > 0, name
        assert seconds[training.REST] < 0.5 * sum(seconds.values())
        # K = 3 gradients take longer than the weights' one, and that longer than a norm or two.
        assert seconds[LANGEVIN] > seconds[EBM_BACKWARD] / 3
        assert seconds[NORMS] < sum(seconds.values()) / 2


def test_the_command_writes_what_it_prints(tmp_path: Path) -> None:
    data = tmp_path / "data.npz"
    pixels = np.random.default_rng(0).integers(0, 256, (16, 8, 8), dtype=np.uint8)
    np.savez(data, train_images=pixels, train_labels=np.arange(16, dtype=np.uint8) % 3)
    changes = [f"ebm.backbone.{name}={json.dumps(value)}" for name, value in NETWORK.items()]
    changes += [text.replace("ebm", "initializer") for text in changes]
    changes += ["cooperative.batch_size=4", "cooperative.langevin_steps=1"]
    options = [part for text in changes for part in ("--set", text)]
    out = tmp_path / "out.json"
    result = CliRunner().invoke(
        training.main,
        ["--data", str(data), *options, "--steps", "1", "--rounds", "2", "--out", str(out)],
    )
    assert result.exit_code == 0, result.output
    written = json.loads(out.read_text(encoding="utf-8"))
    assert written["batch size"] == 4 and written["precision"] == "bfloat16"
    seconds, ratios = written["seconds of a step"], written["ratios"]
    assert ratios[training.OURS] == [1, 1]
    for name, spent in seconds.items():
        assert len(spent) == 2 and ratios[name][0] == spent[0] / seconds[training.OURS][0]
        assert f"| {name} " in result.output
    for parts in written["seconds by part"].values():
        assert all(math.isfinite(value) for value in parts.values())


def test_bad_input_is_one_line(tmp_path: Path) -> None:
    result = CliRunner().invoke(training.main, ["--data", "nowhere.npz", "--preset", "fashion"])
    assert result.exit_code == 2
    assert "unknown preset 'fashion'" in result.output and result.output.count("\n") == 1
