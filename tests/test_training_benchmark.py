"""The transcription does the trainer's step, so that their speeds can be compared."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import training
from click.testing import CliRunner
from parts import BACKWARD, LANGEVIN, NORMS, PARTS, REST, breakdown
from runs import SMALL, images, options, tiny, trainer, write_data
from torch import nn
from transcription import Transcription

from cdrl_train.config import Phase, TrainConfig
from cdrl_train.data.stream import BatchStream

COOPERATIVE = {"name": "cooperative", "langevin_steps": 3}
ALL = {
    "name": "cooperative",
    "coupling": "markov",
    "langevin_steps": 2,
    "step_scale": 0.7,
    "weight": "noise",
    "score_matching": 0.5,
    "regression": 0.3,
}


def run_of(objective: dict[str, Any], *assignments: str, **changes: Any) -> TrainConfig:
    """A run of one phase."""
    phase = Phase(objective, 9, 8, 1e-3, 1e-3)
    return tiny(*assignments, **{"phases": (phase,), **changes})


RISING = ("phases.0.lr_warmup_steps=4", "phases.0.initializer_lr_start=0.5")
CASES = {
    "all losses": run_of(ALL, "phases.0.final_lr=0.1"),
    "the paper's": run_of(COOPERATIVE, *RISING, ebm=SMALL, spectral_norm=True),
    "no initializer": run_of({"name": "drl", "langevin_steps": 3}, *RISING, initializer=None),
}


def both(config: TrainConfig, folder: Path, **options: Any) -> tuple[Any, Transcription]:
    """With the same weights, none of them zero: else gradients are, and nothing is compared."""
    run = trainer(config, folder)
    stream = BatchStream(images(), config.data, config.seed, "cpu")
    transcription = Transcription(config, stream, **options)
    generator = torch.Generator().manual_seed(1)
    for mine, other in zip(run.state.trained.values(), transcription.networks, strict=True):
        for parameter in mine.parameters():
            if not parameter.any():
                nn.init.normal_(parameter, std=0.1, generator=generator)
        other.load_state_dict(mine.state_dict())
    return run, transcription


@pytest.fixture
def float64(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Compute in float64: in float32 rounding decides the sign of a tiny gradient, hence Adam's step."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def stem_of(runner: training.Runner) -> Any:
    """The first layer of the EBM."""
    ebm = getattr(runner.work, "state", runner.work).ebm
    return next(layer for name, layer in ebm.named_modules() if name.endswith("stem"))


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
    run, transcription = both(config, tmp_path, whole_backward=whole_backward)
    before = {name: value.clone() for name, value in weights(run.state.ebm).items()}
    for _ in range(2):
        ours, theirs = run.train_step(), transcription.train_step()
        assert theirs == pytest.approx(ours, rel=1e-10)
    averages = (average.module for average in run.state.averages.values())
    pairs = zip(
        (*run.state.trained.values(), *averages),
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
    after = weights(run.state.ebm)
    moved = [name for name, value in after.items() if not value.equal(before[name])]
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
        stem = stem_of(runner)

        def look(_: Any, inputs: Any, output: torch.Tensor, seen: list[bool] = seen) -> None:
            seen.append(output.is_contiguous())

        with stem.register_forward_hook(look):
            runner.work.train_step()
        default = name in (training.PLAIN, training.WASTEFUL, "without channels last")
        assert seen and set(seen) == {default}, name


def test_bfloat16_is_left_out_alone(tmp_path: Path) -> None:
    config = run_of(ALL, precision="bfloat16")
    types: dict[str, set[torch.dtype]] = {}
    for name, runner in training.runners(config, images(), torch.device("cpu")).items():
        seen = types.setdefault(name, set())
        with stem_of(runner).register_forward_hook(
            lambda _, i, output, seen=seen: seen.add(output.dtype)
        ):
            runner.work.train_step()
    plain = ("without bfloat16", training.PLAIN, training.WASTEFUL)
    for name, seen in types.items():
        assert seen == {torch.float32 if name in plain else torch.bfloat16}, name


def test_the_parts_of_a_step_add_up(tmp_path: Path) -> None:
    found = training.runners(CASES["the paper's"], images(), torch.device("cpu"))
    for name in (training.OURS, training.PLAIN):
        seconds = breakdown(found[name].work, 2, torch.device("cpu"))
        assert [*seconds] == [*PARTS, REST]
        assert min(seconds.values()) > 0, name
        assert seconds[REST] < 0.5 * sum(seconds.values())
        # K = 3 gradients in y take longer than a third of the weights' gradient.
        assert seconds[LANGEVIN] > seconds[BACKWARD] / 3
        assert seconds[NORMS] < sum(seconds.values()) / 2


def test_the_command_writes_what_it_prints(tmp_path: Path) -> None:
    small = options("cooperative.langevin_steps=1")
    out = tmp_path / "out.json"
    result = CliRunner().invoke(
        training.main,
        [
            "--data",
            write_data(tmp_path),
            *small,
            "--steps",
            "1",
            "--rounds",
            "2",
            "--out",
            str(out),
        ],
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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--preset", "fashion"], "unknown preset 'fashion'"),
        (["--set", 'phases.1.objective={"name": "score_matching"}'], "got 'score_matching'"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(training.main, ["--data", "nowhere.npz", *arguments])
    assert result.exit_code == 2
    assert message in result.output and result.output.count("\n") == 1
