"""Images a second of the cooperative step, against a straightforward transcription of it, and why.

``python benchmarks/training.py --data fashion_mnist.npz``; see benchmarks/README.md.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import click
import torch
from options import writes
from report import check_target, table, write_json
from torch import Tensor, nn
from transcription import (
    AVERAGES,
    DATA,
    EBM_BACKWARD,
    EBM_FORWARD,
    INITIALIZER_BACKWARD,
    LANGEVIN,
    NORMS,
    PARTS,
    PROPOSAL,
    UPDATE,
    Transcription,
    in_default_layout,
)

import cdrl_train.engine.trainer as trainer_module
from cdrl_infer.cli.command import OneLineErrors
from cdrl_infer.device import usable_device
from cdrl_infer.energies.neural import NeuralEnergy
from cdrl_infer.proposals import InitializerProposal
from cdrl_infer.schedule import Level
from cdrl_infer.version import __version__
from cdrl_train.config import TrainConfig
from cdrl_train.data.image_set import ImageSet
from cdrl_train.data.sources import load_images
from cdrl_train.data.stream import BatchStream
from cdrl_train.engine.trainer import Trainer
from cdrl_train.objectives import losses as objectives
from cdrl_train.presets import preset

OURS = "the trainer"
PLAIN = "transcription"
WASTEFUL = "transcription, Langevin by backward()"
REST = "figures, guard, the rest"
Patch = Callable[[], AbstractContextManager[Any]]
Clock = Callable[[], float]
CLOCKS: dict[str, Clock] = {"wall": time.perf_counter, "cpu": time.process_time}


@dataclass
class Runner:
    """Something with a training step.

    Args:
        work: a `Trainer` or a `Transcription`.
        patch: entered around its steps.
    """

    work: Any
    patch: Patch = nullcontext

    def seconds(self, steps: int, clock: Clock) -> float:
        """Of one of so many steps."""
        with self.patch():
            started = clock()
            for _ in range(steps):
                self.work.train_step()  # ends with the losses as numbers: a GPU is waited for
            return (clock() - started) / steps


# -- the trainer without one of its measures ---------------------------------------------------


class DefaultLayout(Trainer):
    """All networks in the default layout."""

    def _place(self, network: Any) -> Any:
        return in_default_layout(network).to(self.device)


class Live:
    """The network that is trained as the one Langevin differentiates: with its weights in the graph, and
    its conditioning anew in every pass."""

    def __init__(self, network: Any) -> None:
        self.network = network
        self.output_unit = network.output_unit

    def condition(self, level: Level, labels: Tensor | None = None) -> Any:
        """What to compute it from, later."""
        return level, labels

    def __call__(self, y: Tensor, condition: Any) -> Tensor:
        """As the network."""
        density: Tensor = self.network(y, self.network.condition(*condition))
        return density


@contextmanager
def norms_recomputed(network: nn.Module) -> Iterator[None]:
    """In place of `cdrl_train.spectral.normalised`: σ is left alone, W / σ(W) is not kept."""
    network.eval()
    yield


def energy_evaluated_twice(energy: Any, pair: Any, level: Level) -> Any:
    """In place of a score matching loss whose E(y⁺) serves the contrastive loss too."""
    matching = SCORE_MATCHING(energy, pair, level)
    return matching._replace(energy=energy(pair.y, level))


SCORE_MATCHING = objectives.score_matching_loss


def one_by_one(decay: float) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """The moving average of one tensor."""

    def average(averaged: Tensor, current: Tensor, count: Tensor) -> Tensor:
        n = int(count)
        kept = min(decay, (1 + n) / (10 + n))
        return kept * averaged + (1 - kept) * current

    return average


def runners(config: TrainConfig, data: ImageSet, device: torch.device) -> dict[str, Runner]:
    """The trainer, the transcription twice, and the trainer without each measure that it has."""
    folder = Path(tempfile.gettempdir())  # nothing is written: no run is fitted

    def stream() -> BatchStream:
        return BatchStream(data, config.data, config.seed, device)

    def trainer(kind: type[Trainer] = Trainer, changed: TrainConfig = config) -> Trainer:
        return kind(changed, stream(), folder)

    found = {
        PLAIN: Runner(Transcription(config, stream())),
        WASTEFUL: Runner(Transcription(config, stream(), whole_backward=True)),
    }
    if config.precision != "float32":
        # accelerate has one precision at a time, the last that was asked for; float32 needs none.
        found["without bfloat16"] = Runner(trainer(changed=replace(config, precision="float32")))
    found["without channels last"] = Runner(trainer(DefaultLayout))
    live = trainer()
    live._refiner = Live(live.ebm)
    found["without a frozen twin for Langevin"] = Runner(live)
    if config.spectral_norm:
        patch = mock.patch.object
        found["without norms kept for a step"] = Runner(
            trainer(), lambda: patch(trainer_module, "normalised", norms_recomputed)
        )
    if config.cooperative.score_matching:
        patch = mock.patch.object
        found["without E(y⁺) shared by the losses"] = Runner(
            trainer(), lambda: patch(objectives, "score_matching_loss", energy_evaluated_twice)
        )
    averaging = trainer()
    for average in (averaging.ebm_ema, averaging.initializer_ema):
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
    """Seconds of a step of each, round by round, after a round to warm up.

    Every round begins with another one, so that none always comes after the same.
    """
    names = [*found]
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for k in range(rounds + 1):
        first = k % len(names)
        for name in (*names[first:], *names[:first]):
            spent = found[name].seconds(steps if k else 1, clock)
            if k:
                seconds[name].append(spent)
        tell(f"round {k} of {rounds}")
    return seconds


# -- where the time goes ------------------------------------------------------------------------


class Stopwatch:
    """Seconds by part; a part inside another counts as that."""

    def __init__(self, device: torch.device, clock: Clock) -> None:
        self.device = device
        self.clock = clock
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self._running = False

    def now(self) -> float:
        """When a GPU has done what it was asked to."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return self.clock()

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        """Around what belongs to a part."""
        if self._running:
            yield
            return
        self._running, started = True, self.now()
        try:
            yield
        finally:
            self.seconds[part] += self.now() - started
            self._running = False

    def around(self, part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """The function, timed."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self(part):
                return call(*args, **kwargs)

        return timed


def parts_of_trainer(trainer: Trainer, watch: Stopwatch) -> ExitStack:
    """Time the parts of a trainer's steps, until the stack is closed."""
    stack = ExitStack()

    def place(owner: Any, name: str, part: str) -> None:
        original = getattr(owner, name)
        stack.enter_context(mock.patch.object(owner, name, watch.around(part, original)))

    # The two backward passes are told apart by their order.
    backward, order = Tensor.backward, [EBM_BACKWARD, INITIALIZER_BACKWARD]

    def backwards(loss: Tensor) -> None:
        with watch(order[0]):
            backward(loss)
        order.reverse()

    normalised = trainer_module.normalised

    @contextmanager
    def normalised_timed(network: nn.Module) -> Iterator[None]:
        with ExitStack() as inner:
            with watch(NORMS):
                inner.enter_context(normalised(network))
            yield

    place(trainer, "_part", DATA)
    place(trainer_module, "power_iteration", NORMS)
    place(trainer_module, "folded_state", NORMS)
    place(trainer.chain, "load_state_dict", NORMS)
    stack.enter_context(mock.patch.object(trainer_module, "normalised", normalised_timed))
    place(InitializerProposal, "mean", PROPOSAL)
    place(objectives, "refine", LANGEVIN)
    place(NeuralEnergy, "__call__", EBM_FORWARD)
    place(objectives, "score_matching_loss", EBM_FORWARD)
    stack.enter_context(mock.patch.object(Tensor, "backward", backwards))
    place(trainer_module, "_clipped", UPDATE)
    for optimizer in trainer.optimizers:
        place(optimizer, "step", UPDATE)
    for average in (trainer.ebm_ema, trainer.initializer_ema):
        place(average, "update_parameters", AVERAGES)
    return stack


def breakdown(
    runner: Runner, steps: int, device: torch.device, clock: Clock = time.perf_counter
) -> dict[str, float]:
    """Seconds of a step by part, the rest included: they add up to the step."""
    watch, work = Stopwatch(device, clock), runner.work
    with ExitStack() as stack:
        if isinstance(work, Trainer):
            stack.enter_context(parts_of_trainer(work, watch))
        else:
            stack.enter_context(mock.patch.object(work, "watch", watch))
        started = watch.now()
        for _ in range(steps):
            work.train_step()
        whole = watch.now() - started
    seconds = {**watch.seconds, REST: whole - sum(watch.seconds.values())}
    return {part: spent / steps for part, spent in seconds.items()}


# -- tables -------------------------------------------------------------------------------------


def quotients(seconds: dict[str, list[float]], name: str) -> list[float]:
    """How many times as many images a second the trainer does, round by round."""
    return [b / a for a, b in zip(seconds[OURS], seconds[name], strict=True)]


def speed_rows(seconds: dict[str, list[float]], batch: int) -> list[list[str]]:
    """A row for each runner."""
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
    """A row for each part, and their sum."""
    sums = sum(ours.values()), sum(plain.values())
    rows = [
        [part, *_milliseconds(ours[part], sums[0]), *_milliseconds(plain[part], sums[1])]
        for part in ours
    ]
    return [*rows, ["a step", *_milliseconds(sums[0], sums[0]), *_milliseconds(sums[1], sums[1])]]


def _milliseconds(seconds: float, whole: float) -> tuple[str, str]:
    return f"{1e3 * seconds:.1f}", f"{100 * seconds / whole:.1f}"


def configured(name: str, assignments: Sequence[str]) -> TrainConfig:
    """A preset with options changed, from its cooperative phase on."""
    config = preset(name).override(list(assignments))
    return replace(config, warm_start=replace(config.warm_start, steps=0))


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
    """Speed of the cooperative step, as ratios in one run."""
    check_target("--out", out)
    config, place = configured(name, assignments), usable_device(device)
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
    """What the command prints and writes."""
    found = runners(config, data, device)
    seconds = in_turns(found, steps, rounds, CLOCKS[clock], tell)
    ours, plain = (
        breakdown(found[name], steps * rounds, device, CLOCKS[clock]) for name in (OURS, PLAIN)
    )
    phase = config.cooperative
    made = (
        f"cdrl {__version__}, torch {torch.__version__}, {torch.get_num_threads()} threads, {device}, "
        f"{clock} time"
    )
    text = "\n".join(
        [
            f"{config.name}, cooperative steps of {phase.batch_size} images, K = "
            f"{phase.langevin_steps}, {config.precision}; {made}; {rounds} rounds of {steps} steps "
            "each in turns.",
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
