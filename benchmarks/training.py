"""The speed of training with Langevin chains, compared with a plain transcription; and the reasons.

``python benchmarks/training.py --data fashion_mnist.npz``; see benchmarks/README.md.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import click
import torch
from options import writes
from parts import Clock, breakdown
from report import check_target, table, write_json
from torch import Tensor, nn
from transcription import Transcription, in_default_layout
from turns import turn

import cdrl_train.engine.trainer as trainer_module
import cdrl_train.objectives.drl as drl_module
from cdrl_infer.cli.command import OneLineErrors
from cdrl_infer.device import resolved_precision, usable_device
from cdrl_infer.errors import InputError, listing
from cdrl_infer.schedule import Level
from cdrl_infer.version import __version__
from cdrl_train.config import TrainConfig
from cdrl_train.data.image_set import ImageSet
from cdrl_train.data.sources import load_images
from cdrl_train.data.stream import BatchStream
from cdrl_train.engine.state import TrainState
from cdrl_train.engine.trainer import Trainer
from cdrl_train.objectives.losses import score_matching_loss
from cdrl_train.presets import preset

OURS = "the trainer"
PLAIN = "transcription"
WASTEFUL = "transcription, Langevin by backward()"
Patch = Callable[[], AbstractContextManager[Any]]
CLOCKS: dict[str, Clock] = {"wall": time.perf_counter, "cpu": time.process_time}


@dataclass
class Runner:
    """Something with a training step.

    Args:
        work: a `Trainer` or a `Transcription`.
        patch: a context around its steps.
    """

    work: Any
    patch: Patch = nullcontext

    def seconds(self, steps: int, clock: Clock) -> float:
        """Mean seconds per step over this number of steps."""
        with self.patch():
            started = clock()
            for _ in range(steps):
                self.work.train_step()  # ends with the losses as numbers: a GPU is waited for
            return (clock() - started) / steps


# -- the trainer without one of its measures ---------------------------------------------------


def placed_in_default_layout(state: TrainState, network: Any) -> Any:
    """Replaces `TrainState._place`: it leaves the network in the default layout."""
    return in_default_layout(network).to(state.device)


class Live:
    """The network in training, used for Langevin. Its weights are in the graph, and every pass computes
    the conditioning again."""

    def __init__(self, network: Any) -> None:
        self.network = network
        self.output_unit = network.output_unit

    def condition(self, level: Level, labels: Tensor | None = None) -> Any:
        """The arguments from which each pass computes the conditioning."""
        return level, labels

    def __call__(self, y: Tensor, condition: Any) -> Tensor:
        """The network's output."""
        density: Tensor = self.network(y, self.network.condition(*condition))
        return density


@contextmanager
def norms_recomputed(network: nn.Module) -> Iterator[None]:
    """Replaces `cdrl_train.spectral.normalised`: it does not update σ and does not keep W / σ(W)."""
    network.eval()
    yield


def energy_evaluated_twice(energy: Any, pair: Any, level: Level) -> Any:
    """Replaces the score matching loss, so that the contrastive loss must compute E(y⁺) again."""
    matching = score_matching_loss(energy, pair, level)
    return matching._replace(energy=energy(pair.y, level))


def one_by_one(decay: float) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Updates the moving averages tensor by tensor."""

    def average(averaged: Tensor, current: Tensor, count: Tensor) -> Tensor:
        n = int(count)
        kept = min(decay, (1 + n) / (10 + n))
        return kept * averaged + (1 - kept) * current

    return average


def runners(config: TrainConfig, data: ImageSet, device: torch.device) -> dict[str, Runner]:
    """The trainer, the transcription twice, and the trainer without each of its optimisations."""
    folder = Path(tempfile.gettempdir())  # nothing is written there
    patch = mock.patch.object

    def stream() -> BatchStream:
        return BatchStream(data, config.data, config.seed, device)

    def trainer(changed: TrainConfig = config) -> Trainer:
        return Trainer(changed, stream(), folder)

    found = {
        PLAIN: Runner(Transcription(config, stream())),
        WASTEFUL: Runner(Transcription(config, stream(), whole_backward=True)),
    }
    if config.precision != "float32":
        # accelerate has one precision at a time, the last that was asked for; float32 needs none.
        found["without bfloat16"] = Runner(trainer(replace(config, precision="float32")))
    with patch(TrainState, "_place", placed_in_default_layout):
        found["without channels last"] = Runner(trainer())
    live = trainer()
    live.state.models = replace(live.state.models, frozen_ebm=Live(live.state.ebm))
    live.state.refresh_frozen = lambda: None  # type: ignore[method-assign]
    found["without a frozen copy for Langevin"] = Runner(live)
    if config.spectral_norm:
        found["without norms kept for a step"] = Runner(
            trainer(), lambda: patch(trainer_module, "normalised", norms_recomputed)
        )
    if config.phases[-1].objective["score_matching"]:
        found["without E(y⁺) shared by the losses"] = Runner(
            trainer(), lambda: patch(drl_module, "score_matching_loss", energy_evaluated_twice)
        )
    averaging = trainer()
    for average in averaging.state.averages.values():
        average.multi_avg_fn, average.avg_fn = None, one_by_one(config.ema_decay)
    found["without averages all at once"] = Runner(averaging)
    return {OURS: Runner(trainer()), **found}


def in_turns(
    found: dict[str, Runner],
    steps: int,
    rounds: int,
    clock: Clock = time.perf_counter,
    tell: Callable[[str], object] = lambda text: None,
) -> dict[str, list[float]]:
    """Seconds per step of each runner in each round, after a round to warm up.

    Every round starts with another runner, so no runner always follows the same one.
    """
    seconds: dict[str, list[float]] = {name: [] for name in found}
    for k in range(rounds + 1):
        for name in turn(found, k):
            spent = found[name].seconds(steps if k else 1, clock)
            if k:
                seconds[name].append(spent)
        tell(f"round {k} of {rounds}")
    return seconds


# -- tables -------------------------------------------------------------------------------------


def quotients(seconds: dict[str, list[float]], name: str) -> list[float]:
    """The speed of the trainer divided by that of another runner, for each round."""
    return [b / a for a, b in zip(seconds[OURS], seconds[name], strict=True)]


def speed_rows(seconds: dict[str, list[float]], batch: int) -> list[list[str]]:
    """One row for each runner."""
    rows = []
    for name, spent in seconds.items():
        ratios = quotients(seconds, name)
        rows.append(
            [
                name,
                f"{batch / statistics.median(spent):.3g}",
                f"{statistics.median(ratios):.2f}",
                f"{min(ratios):.2f} - {max(ratios):.2f}",
            ]
        )
    return rows


def part_rows(ours: dict[str, float], plain: dict[str, float]) -> list[list[str]]:
    """One row for each part, and their sum."""
    sums = sum(ours.values()), sum(plain.values())
    rows = [
        [part, *_milliseconds(ours[part], sums[0]), *_milliseconds(plain[part], sums[1])]
        for part in ours
    ]
    return [*rows, ["a step", *_milliseconds(sums[0], sums[0]), *_milliseconds(sums[1], sums[1])]]


def _milliseconds(seconds: float, whole: float) -> tuple[str, str]:
    return f"{1e3 * seconds:.1f}", f"{100 * seconds / whole:.1f}"


def configured(name: str, assignments: Sequence[str]) -> TrainConfig:
    """The phase of a preset that the transcription knows, with some options changed.

    Raises:
        InputError: no phase is cooperative training or DRL.
    """
    config = preset(name).override(list(assignments))
    for phase in config.phases:
        objective = phase.make_objective()
        if objective.runs_chains and not objective.one_process:
            return replace(config, phases=(phase,))
    found = listing(repr(phase.name) for phase in config.phases)
    raise InputError(f"{name}: expected a phase of cooperative training or DRL, got {found}")


@click.command("training.py", cls=OneLineErrors, context_settings={"show_default": True})
@click.option("--data", "source", required=True, help="As cdrl-train takes it.")
@click.option("--preset", "name", default="fashion-mnist", metavar="NAME[+VARIATION]")
@click.option("--set", "assignments", multiple=True, metavar="KEY=VALUE", help="Change an option.")
@click.option("--steps", type=click.IntRange(1), default=2, help="Of each in a round.")
@click.option("--rounds", type=click.IntRange(1), default=7)
@click.option("--device", default="cpu")
@click.option(
    "--clock",
    type=click.Choice([*CLOCKS]),
    default="wall",
    help="cpu: of this process, where others run beside it; with one thread.",
)
@writes("training.json")
def main(
    source: str,
    name: str,
    assignments: tuple[str, ...],
    steps: int,
    rounds: int,
    device: str,
    clock: str,
    out: Path,
) -> None:
    """Speed of a step of the preset's last phase, as ratios in one run."""
    check_target("--out", out)
    config, place = configured(name, assignments), usable_device(device)
    config = replace(config, precision=resolved_precision(config.precision, place))
    data = load_images(source, attributes=config.data.attributes)
    text, results = evaluate(
        config, data, steps, rounds, place, clock, lambda line: click.echo(line, err=True)
    )
    click.echo(text)
    write_json(out, {"preset": name, "set": list(assignments), **results})


def evaluate(
    config: TrainConfig,
    data: ImageSet,
    steps: int,
    rounds: int,
    device: torch.device,
    clock: str = "wall",
    tell: Callable[[str], object] = lambda text: None,
) -> tuple[str, dict[str, Any]]:
    """The text that the command prints, and the results that it writes."""
    found = runners(config, data, device)
    seconds = in_turns(found, steps, rounds, CLOCKS[clock], tell)
    ours, plain = (
        breakdown(found[name].work, steps * rounds, device, CLOCKS[clock]) for name in (OURS, PLAIN)
    )
    phase = config.phases[-1]
    made = (
        f"cdrl {__version__}, torch {torch.__version__}, {torch.get_num_threads()} threads, {device}, "
        f"{clock} time"
    )
    text = "\n".join(
        [
            f"{config.name}, {phase.name} steps of {phase.batch_size} images, "
            f"{phase.make_objective().summary()}, {config.precision}; {made}; {rounds} rounds of "
            f"{steps} steps each in turns.",
            "",
            table(
                ["step", "images/s", "the trainer is faster by", "min - max"],
                speed_rows(seconds, phase.batch_size),
            ),
            "",
            table(["part", "trainer, ms", "%", f"{PLAIN}, ms", "%"], part_rows(ours, plain)),
        ]
    )
    return text, {
        "made with": made,
        "batch size": phase.batch_size,
        "precision": config.precision,
        "steps": steps,
        "seconds of a step": seconds,
        "ratios": {name: quotients(seconds, name) for name in seconds},
        "seconds by part": {OURS: ours, PLAIN: plain},
    }


if __name__ == "__main__":
    main()
