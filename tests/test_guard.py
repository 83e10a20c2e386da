"""Divergence: what is watched, going back at half the learning rates, and giving up with a diagnosis."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import differing, fit, lines_of, tiny, trainer

from cdrl_infer.errors import NumericalError
from cdrl_train.engine import checkpoints
from cdrl_train.engine.guard import Diverged, Guard
from cdrl_train.engine.saving import resume
from cdrl_train.engine.trainer import Trainer
from cdrl_train.objectives import Limit

MOVED = Limit("displacement", 10.0, 1.0, "max_displacement", "a pixel in transition {}", "less")
WATCHES: dict[str, tuple[Callable[[Guard, float], None], float]] = {
    "a pixel in transition 2": (lambda guard, value: guard.watch(MOVED, "2", value), 10.0),
    "the loss of the ebm": (lambda guard, value: guard.watch_loss("ebm", value), math.inf),
    "the gradient norm of the ebm": (lambda guard, x: guard.watch_gradient("ebm", x, 1e6), 1e6),
}


def events(folder: Path) -> list[dict[str, Any]]:
    return [line for line in lines_of(folder) if "event" in line]


class Failing(Trainer):
    """Diverges at the steps given, as often as given."""

    failures: dict[int, int]

    def train_step(self) -> dict[str, float]:
        if self.failures.get(self.step, 0) > 0:
            self.failures[self.step] -= 1
            torch.rand(3)  # what a step that fails leaves behind
            self.state.generator.manual_seed(99)
            self.guard.watch(MOVED, "2", math.nan)
            self.guard.settle(self.step)
        return super().train_step()


def failing(folder: Path, failures: dict[int, int], **changes: Any) -> tuple[Any, list[str]]:
    config = tiny(checkpoint_every=2, keep_checkpoints=5, **changes)
    told: list[str] = []
    run = trainer(config, folder, Failing, tell=told.append)
    run.failures = dict(failures)
    return run, told


@pytest.mark.parametrize("what", WATCHES)
@pytest.mark.parametrize("value", [math.nan, math.inf, 1e30])
def test_each_kind_of_result_is_watched(what: str, value: float) -> None:
    guard = Guard(retries=3)
    watch, limit = WATCHES[what]
    watch(guard, 0.5)
    guard.settle(3)
    watch(guard, value)
    if not value < limit:
        with pytest.raises(Diverged, match=f"diverged at step 3: {what} is ") as caught:
            guard.settle(3)
        assert caught.value.advice
        assert json.loads(json.dumps(caught.value.record(), allow_nan=False))["step"] == 3
    guard.settle(4)  # a step's results end with it


@pytest.mark.parametrize(
    ("option", "kind"),
    [
        ("cooperative.max_energy_gap", "energy_gap_size/1"),
        ("cooperative.max_displacement", "displacement/3"),
        ("max_grad_norm", "grad_norm/ebm"),
    ],
)
def test_the_trainer_shows_the_guard_its_results(tmp_path: Path, option: str, kind: str) -> None:
    """By transition for energies and displacement, by network for gradients."""
    run = trainer(tiny(f"{option}=1e-12", "score_matching.steps=0", retries=0), tmp_path)
    with pytest.raises(NumericalError, match=f"diverged at step .*{option.rpartition('.')[2]}"):
        fit(run)
    (event,) = events(tmp_path)
    assert event["event"] == "stopped" and kind in event["symptoms"]


def test_the_limits_are_in_the_units_that_the_options_say(tmp_path: Path) -> None:
    run = trainer(tiny("score_matching.steps=0"), tmp_path)
    shown: dict[str, float] = {}
    run.guard.watch = lambda limit, of, value: shown.update({f"{limit.result}/{of}": value})
    fit(run, 1)
    (line,) = lines_of(tmp_path)
    pixels = 64
    logged = [t for t in (1, 2, 3) if f"displacement/{t}" in line]
    for t in logged:
        per_pixel = line[f"displacement/{t}"] / math.sqrt(pixels)
        assert shown[f"displacement/{t}"] == pytest.approx(per_pixel, rel=1e-4)
        per_pixel = line[f"energy_gap_size/{t}"] / pixels
        assert shown[f"energy_gap_size/{t}"] == pytest.approx(per_pixel, rel=1e-4)
    assert logged


def test_a_run_that_diverges_once_goes_back_and_on_at_half_the_rates(tmp_path: Path) -> None:
    run, told = failing(tmp_path, {5: 1})
    fit(run)
    assert run.step == 8 and run.guard.halvings == 1
    (event,) = events(tmp_path)
    assert (event["step"], event["event"]) == (5, "diverged")
    assert (event["back_to"], event["lr_scale"]) == (4, 0.5)
    assert event["symptoms"] == {"displacement/2": {"value": "nan", "limit": "10"}}
    assert len(told) == 1 and "back to step 4, learning rates now 0.5 of the run's" in told[0]
    assert "(try 1 of 3)" in told[0]
    steps = [line["step"] for line in lines_of(tmp_path)]
    assert steps == [1, 2, 3, 4, 5, 5, 5, 6, 7, 8]  # the event in the middle
    calm = trainer(tiny(), tmp_path / "calm")
    fit(calm)
    rates, calm_rates = run.state.learning_rates(), calm.state.learning_rates()
    assert rates == {name: rate / 2 for name, rate in calm_rates.items()}


def test_going_back_is_exact(tmp_path: Path) -> None:
    """The run is then the one that was at half the rates from that checkpoint on."""
    run, _ = failing(tmp_path / "a", {5: 1})
    fit(run)
    other = trainer(tiny(checkpoint_every=2), tmp_path / "b")
    fit(other, 4)
    other.guard.halvings = 1
    fit(other)
    assert differing(run.state_dict(), other.state_dict()) == []


def test_the_halved_rate_is_part_of_the_state(tmp_path: Path) -> None:
    whole, _ = failing(tmp_path / "whole", {3: 2})
    fit(whole)
    first, _ = failing(tmp_path / "cut", {3: 2})
    fit(first, 6)
    assert first.guard.halvings == 2
    second, told = failing(tmp_path / "cut", {})
    assert resume(second) and second.guard.halvings == 2
    fit(second)
    assert not told
    assert differing(whole.state_dict(), second.state_dict()) == []
    assert lines_of(tmp_path / "cut") == lines_of(tmp_path / "whole")


def test_a_kill_after_going_back_repeats_it(tmp_path: Path) -> None:
    """The checkpoint that was gone back to is older than the halving: all happens once more."""
    whole, _ = failing(tmp_path / "whole", {3: 1})
    fit(whole)
    first, _ = failing(tmp_path / "cut", {3: 1})

    def kill(line: dict[str, Any]) -> None:
        if first.guard.halvings:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(first, on_log=kill)
    assert len(events(tmp_path / "cut")) == 1
    second, _ = failing(tmp_path / "cut", {3: 1})
    assert resume(second) and second.guard.halvings == 0
    fit(second)
    assert lines_of(tmp_path / "cut") == lines_of(tmp_path / "whole")
    assert differing(whole.state_dict(), second.state_dict()) == []


def test_it_stops_with_a_diagnosis_after_so_many_tries(tmp_path: Path) -> None:
    run, told = failing(tmp_path, {5: 100}, retries=2)
    with pytest.raises(NumericalError) as caught:
        fit(run)
    text = str(caught.value)
    assert "\n" not in text
    assert "diverged at step 5: a pixel in transition 2 is nan" in text
    assert "after going back 2 times at half the learning rates; less" in text
    assert "last good state: " in text and "step-00000004.pt" in text
    assert len(told) == 2
    assert [line["event"] for line in events(tmp_path)] == ["diverged", "diverged", "stopped"]
    assert [line.get("lr_scale") for line in events(tmp_path)] == [0.5, 0.25, None]
    again = trainer(tiny(), tmp_path)
    assert resume(again) and again.step == 4
    fit(again)
    assert again.step == 8


def test_weights_that_are_no_numbers_are_noticed_and_mended(tmp_path: Path) -> None:
    run = trainer(tiny(), tmp_path)
    fit(run, 6)
    with torch.no_grad():
        next(run.state.ebm.parameters()).fill_(math.nan)
    fit(run)
    assert run.step == 8 and run.guard.halvings == 1
    assert all(bool(p.isfinite().all()) for p in run.state.ebm.parameters())


def test_a_checkpoint_that_is_bad_itself_is_passed_over(tmp_path: Path) -> None:
    """Its first step does not depend on the rates, so going back to it twice is in vain."""
    run, told = failing(tmp_path, {4: 2})
    fit(run)
    assert run.step == 8 and run.guard.halvings == 2
    assert [line["back_to"] for line in events(tmp_path)] == [4, 2]
    assert any("step-00000004.pt diverges at its first step" in text for text in told)
    assert (tmp_path / "checkpoints" / "step-00000004.pt.aside").is_file()
    assert checkpoints.path_of(tmp_path / "checkpoints", 4).is_file()  # the new one


def test_a_run_that_diverges_at_once_has_its_first_state(tmp_path: Path) -> None:
    run, _ = failing(tmp_path, {0: 100}, retries=1)
    with pytest.raises(NumericalError, match=r"last good state: .*step-00000000\.pt"):
        fit(run)
