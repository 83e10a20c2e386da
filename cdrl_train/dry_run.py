"""What a run will cost, told before it starts: counted, and timed over a few steps."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from cdrl_infer.model import ImageShape
from cdrl_train.config import TrainConfig
from cdrl_train.cost import SAMPLE_BATCH, Work, count, stand_in_attributes
from cdrl_train.data.image_set import ImageSet
from cdrl_train.data.stream import BatchStream
from cdrl_train.engine.recording import PLAIN_STEPS
from cdrl_train.engine.trainer import Trainer

STEPS = 3  # timed, after one to warm up
PREFIXES = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


@dataclass(frozen=True)
class Timing:
    """How long the steps of a phase take.

    Args:
        batch_size: images in the steps that were timed; fewer than the run's where those take long.
        seconds: time of a step with the run's whole batch, in proportion.
        allocated: the most bytes that a GPU held meanwhile; None elsewhere.
    """

    batch_size: int
    seconds: float
    allocated: int | None


def dry_run(
    config: TrainConfig,
    image: ImageShape,
    num_classes: tuple[int, ...],
    device: torch.device,
    seconds: float = 10.0,
) -> Iterator[str]:
    """The lines of a report, one after the other.

    Args:
        config: the run.
        image, num_classes: shape and labels of its data; noise takes the data's place.
        device: device to time on.
        seconds: about how long the timing of a phase may take.

    Raises:
        ConfigError: networks that cannot be built, or not for these images.
    """
    width = max(12, *map(len, config.labels))

    def line(name: str, text: str) -> str:
        return f"{name:<{width}} {text}"

    yield line("images", f"{' x '.join(map(str, image.shape))}, {_attributes(num_classes)}")
    yield line("precision", config.precision)
    cost = count(config, image, num_classes)
    for role, network, size in (
        ("ebm", config.ebm, cost.ebm),
        ("initializer", config.initializer, cost.initializer),
    ):
        backbone = network.get("backbone") if network else None
        on = f", on a {backbone['class']}" if backbone else ""
        yield line(role, f"{network['class']}, {size:,} values{on}" if network else "none")
    if cost.objectives:
        yield line("objectives", f"{cost.objectives:,} values of their own")
    yield line("sampling", f"{_work(cost.sample)} for {SAMPLE_BATCH} images at once")
    yield line("training", f"{amount(cost.state, 'B')} from step to step, beside it:")
    finish = 0.0
    for k, (label, phase, work) in enumerate(
        zip(config.labels, config.phases, cost.phases, strict=True)
    ):
        if work is None:
            yield line(label, "no steps")
            continue
        yield line(label, f"{phase.steps:,} steps of {phase.batch_size} images, each {_work(work)}")
        timing = time_phase(config, k, image, num_classes, device, seconds)
        finish += phase.steps * timing.seconds
        allocated = f", {amount(timing.allocated, 'B')} allocated" if timing.allocated else ""
        yield line(
            "",
            f"{_three(timing.seconds)} s a step on {device}, by {STEPS} steps with a batch "
            f"of {timing.batch_size}: {_three(phase.batch_size / timing.seconds)} images/s, "
            f"{amount(work.flops / timing.seconds, 'FLOP/s')}{allocated}",
        )
    whole = f"{amount(cost.flops(config), 'FLOP')}, {duration(finish)} on this {device.type}"
    yield line("whole run", whole)


def time_phase(
    config: TrainConfig,
    index: int,
    image: ImageShape,
    num_classes: tuple[int, ...],
    device: torch.device,
    seconds: float,
) -> Timing:
    """Time a few steps of a phase on noise, with as many images of its batch as the time allows.

    Args:
        config: the run.
        index: number of the phase, from 0.
        image, num_classes: shape and labels of its data.
        device: device to time on.
        seconds: about how long that may take.
    """
    phase = config.phases[index]
    batch_size, per_step = 1, time_steps(config, index, 1, image, num_classes, device).seconds
    while batch_size < phase.batch_size:
        affordable = int(batch_size * seconds / ((STEPS + 1) * per_step))
        if affordable < 2 * batch_size:
            break
        # In small strides: a large batch takes less time an image than a small one, or no memory is left.
        batch_size = min(phase.batch_size, affordable, 8 * batch_size)
        per_step = time_steps(config, index, batch_size, image, num_classes, device).seconds
    found = time_steps(config, index, batch_size, image, num_classes, device, STEPS)
    return replace(found, seconds=found.seconds * phase.batch_size / batch_size)


def time_steps(
    config: TrainConfig,
    index: int,
    batch_size: int,
    image: ImageShape,
    num_classes: tuple[int, ...],
    device: torch.device,
    steps: int = 1,
) -> Timing:
    """Time some steps of some images, after one that is not timed and those until steps are recorded."""
    phases = [replace(phase, steps=0) for phase in config.phases]
    most = steps + 1 + PLAIN_STEPS + 1
    phases[index] = replace(phases[index], steps=most, batch_size=batch_size)
    timed = replace(config, phases=tuple(phases), accumulate=1)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (batch_size, *image.shape), generator=generator, dtype=torch.uint8)
    labels = torch.zeros(batch_size, len(num_classes), dtype=torch.int64) if num_classes else None
    data = ImageSet(images, labels, stand_in_attributes(num_classes))
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(timed, BatchStream(data, config.data, 0, device), Path(folder))
        for _ in range(trainer.steps_until_recorded + 1):
            trainer.train_step()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        started = time.perf_counter()
        for _ in range(steps):
            trainer.train_step()
        spent = (time.perf_counter() - started) / steps
    allocated = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    return Timing(batch_size, spent, allocated)


def _attributes(num_classes: tuple[int, ...]) -> str:
    if not num_classes:
        return "unconditional"
    return f"conditional on attributes of {', '.join(map(str, num_classes))} values"


def _work(work: Work) -> str:
    return (
        f"{amount(work.flops, 'FLOP')}, {amount(work.moved, 'B')} read and written, "
        f"{amount(work.peak, 'B')} held"
    )


def amount(value: float, unit: str) -> str:
    """``"1.23 GB"``: three digits and a power of 1,000."""
    size, prefix = next(((s, p) for s, p in PREFIXES if value >= s), (1.0, ""))
    return f"{_three(value / size)} {prefix}{unit}"


def _three(value: float) -> str:
    """Three digits or more, and no exponent."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def duration(seconds: float) -> str:
    """A time in the unit that suits it."""
    for unit, size in (("days", 86_400.0), ("hours", 3_600.0), ("minutes", 60.0)):
        if seconds >= size:
            return f"{_three(seconds / size)} {unit}"
    return f"{_three(seconds)} seconds"
