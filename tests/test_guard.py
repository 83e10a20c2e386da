"""Divergence: what is watched, going back at half the rates, and giving up with a diagnosis."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from test_trainer import images, lines_of, tensors, tiny, trainer

from cdrl_infer.errors import NumericalError
from cdrl_train.config import PhaseConfig
from cdrl_train.data.stream import BatchStream
from cdrl_train.engine import checkpoints
from cdrl_train.engine.guard import KINDS, Diverged, Guard
from cdrl_train.engine.state import resume, snapshot
from cdrl_train.engine.trainer import Trainer

NO_WARM_START = PhaseConfig(0, 8, "markov", 1e-3, 1e-3)


def events(folder: Path) -> list[dict[str, Any]]:
    return [line for line in lines_of(folder) if "event" in line]


def rates(run: Trainer) -> list[float]:
    return [optimizer.param_groups[0]["lr"] for optimizer in run.optimizers]


class Failing(Trainer):
    """Blows up at the steps given, as often as given."""

    failures: dict[int, int]

    def train_step(self) -> dict[str, float]:
        if self.failures.get(self.step, 0) > 0:
            self.failures[self.step] -= 1
            torch.rand(3)  # what a step that fails leaves behind
            self.generator.manual_seed(99)
            self.guard.watch("displacement", "2", math.nan)
            self.guard.settle(self.step)
        return super().train_step()


def failing(folder: Path, failures: dict[int, int], **changes: Any) -> tuple[Failing, list[str]]:
    config = tiny(checkpoint_every=2, keep_checkpoints=5, **changes)
    told: list[str] = []
    run = Failing(
        config, BatchStream(images(), config.data, config.seed, "cpu"), folder, told.append
    )
    run.failures = dict(failures)
    return run, told


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [math.nan, math.inf, 1e30])
def test_each_kind_of_figure_is_watched(kind: str, value: float) -> None:
    guard = Guard(tiny())
    guard.watch(kind, "1", 0.5)
    guard.settle(3)
    guard.watch(kind, "1", value)
    if KINDS[kind].limit or not math.isfinite(value):
        with pytest.raises(Diverged, match=f"diverged at step 3: {KINDS[kind].text[:8]}") as caught:
            guard.settle(3)
        assert caught.value.advice == KINDS[kind].advice
        assert json.loads(json.dumps(caught.value.record(), allow_nan=False))["step"] == 3
    guard.settle(4)  # a step's figures end with it


@pytest.mark.parametrize(
    ("option", "kind"),
    [
        ("max_energy_gap", "energy_gap/1"),
        ("max_displacement", "displacement/3"),
        ("max_grad_norm", "grad_norm/ebm"),
    ],
)
def test_the_trainer_shows_the_guard_its_figures(tmp_path: Path, option: str, kind: str) -> None:
    """By level for energies and displacement, by network for gradients."""
    run = trainer(tiny(**{option: 1e-12}, retries=0, warm_start=NO_WARM_START), tmp_path)
    with pytest.raises(NumericalError, match=f"diverged at step .*{option}"):
        run.fit()
    (event,) = events(tmp_path)
    assert event["event"] == "stopped" and kind in event["symptoms"]


def test_the_limits_are_in_the_units_that_the_options_say(tmp_path: Path) -> None:
    run = trainer(tiny(warm_start=NO_WARM_START), tmp_path)
    shown: dict[str, float] = {}
    run.guard.watch = lambda kind, of, value: shown.__setitem__(f"{kind}/{of}", value)  # type: ignore[method-assign]
    run.fit(until=1)
    (line,) = lines_of(tmp_path)
    pixels = 64
    for t in (1, 2, 3):
        if f"displacement/{t}" in line:
            per_pixel = line[f"displacement/{t}"] / math.sqrt(pixels)
            assert shown[f"displacement/{t}"] == pytest.approx(per_pixel, rel=1e-4)
            assert shown[f"energy_gap/{t}"] >= abs(line[f"energy_gap/{t}"]) / pixels * (1 - 1e-4)


def test_a_run_that_blows_up_once_goes_back_and_on_at_half_the_rates(tmp_path: Path) -> None:
    run, told = failing(tmp_path, {5: 1})
    run.fit()
    assert run.step == 8 and run.guard.halvings == 1
    (event,) = events(tmp_path)
    assert (event["step"], event["event"]) == (5, "diverged")
    assert (event["back_to"], event["rate_scale"]) == (4, 0.5)
    assert event["symptoms"] == {"displacement/2": {"value": "nan", "limit": "10"}}
    assert len(told) == 1 and "back to step 4, rates now 0.5 of the run's (try 1 of 3)" in told[0]
    steps = [line["step"] for line in lines_of(tmp_path)]
    assert steps == [1, 2, 3, 4, 5, 5, 5, 6, 7, 8]  # the event in the middle
    calm = trainer(tiny(), tmp_path / "calm")
    calm.fit()
    assert rates(run) == [rate / 2 for rate in rates(calm)]


def test_going_back_is_exact(tmp_path: Path) -> None:
    """The run is then the one that was at half the rates from that checkpoint on."""
    run, _ = failing(tmp_path / "a", {5: 1})
    run.fit()
    other = trainer(tiny(checkpoint_every=2), tmp_path / "b")
    other.fit(until=4)
    other.guard.halvings = 1
    other.fit()
    a, b = tensors(snapshot(run)), tensors(snapshot(other))
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


def test_the_halved_rate_is_part_of_the_state(tmp_path: Path) -> None:
    whole, _ = failing(tmp_path / "whole", {3: 2})
    whole.fit()
    first, _ = failing(tmp_path / "cut", {3: 2})
    first.fit(until=6)
    assert first.guard.halvings == 2
    second, told = failing(tmp_path / "cut", {})
    assert resume(second) and second.guard.halvings == 2
    second.fit()
    assert not told
    a, b = tensors(snapshot(whole)), tensors(snapshot(second))
    assert [name for name in a if not torch.equal(a[name], b[name])] == []
    assert lines_of(tmp_path / "cut") == lines_of(tmp_path / "whole")


def test_a_kill_after_going_back_repeats_it(tmp_path: Path) -> None:
    """The checkpoint that was gone back to is older than the halving: all happens once more."""
    whole, _ = failing(tmp_path / "whole", {3: 1})
    whole.fit()
    first, _ = failing(tmp_path / "cut", {3: 1})

    def kill(line: dict[str, Any]) -> None:
        if first.guard.halvings:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        first.fit(on_log=kill)
    assert len(events(tmp_path / "cut")) == 1
    second, _ = failing(tmp_path / "cut", {3: 1})
    assert resume(second) and second.guard.halvings == 0
    second.fit()
    assert lines_of(tmp_path / "cut") == lines_of(tmp_path / "whole")
    a, b = tensors(snapshot(whole)), tensors(snapshot(second))
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


def test_it_stops_with_a_diagnosis_after_so_many_tries(tmp_path: Path) -> None:
    run, told = failing(tmp_path, {5: 100}, retries=2)
    with pytest.raises(NumericalError) as caught:
        run.fit()
    text = str(caught.value)
    assert "\n" not in text
    assert "diverged at step 5: how far Langevin moves a pixel in transition 2 is nan" in text
    assert "after going back 2 times at half the rates; lower cooperative.step_scale" in text
    assert "last good state: " in text and "step-00000004.pt" in text
    assert len(told) == 2
    assert [line["event"] for line in events(tmp_path)] == ["diverged", "diverged", "stopped"]
    assert [line.get("rate_scale") for line in events(tmp_path)] == [0.5, 0.25, None]
    again = trainer(tiny(), tmp_path)
    assert resume(again) and again.step == 4
    again.fit()
    assert again.step == 8


def test_weights_that_are_no_numbers_are_noticed_and_mended(tmp_path: Path) -> None:
    run = trainer(tiny(), tmp_path)
    run.fit(until=6)
    with torch.no_grad():
        next(run.ebm.parameters()).fill_(math.nan)
    run.fit()
    assert run.step == 8 and run.guard.halvings == 1
    assert all(bool(p.isfinite().all()) for p in run.ebm.parameters())


def test_a_checkpoint_that_is_bad_itself_is_passed_over(tmp_path: Path) -> None:
    """Its first step does not depend on the rates, so going back to it twice is in vain."""
    run, told = failing(tmp_path, {4: 2})
    run.fit()
    assert run.step == 8 and run.guard.halvings == 2
    assert [line["back_to"] for line in events(tmp_path)] == [4, 2]
    assert any("step-00000004.pt blows up at its first step: set aside" in text for text in told)
    assert (tmp_path / "checkpoints" / "step-00000004.pt.aside").is_file()
    assert checkpoints.path_of(tmp_path / "checkpoints", 4).is_file()  # the new one


def test_a_run_that_blows_up_at_once_has_its_first_state(tmp_path: Path) -> None:
    run, _ = failing(tmp_path, {0: 100}, retries=1)
    with pytest.raises(NumericalError, match=r"last good state: .*step-00000000\.pt"):
        run.fit()
