"""The cost of training, from `cdrl_train.cost`: the tables of docs/scaling.md.

``python benchmarks/scaling.py`` needs no data, no GPU and little memory, and takes some minutes.
``--measure PRESET`` times a preset on two processes, and compares the time with the prediction.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click
from report import check_target, table, write_json
from two_processes import Measured, measure

from cdrl_infer.cli.command import OneLineErrors
from cdrl_infer.errors import InputError
from cdrl_infer.model import ImageShape
from cdrl_train.config import TrainConfig
from cdrl_train.cost import SAMPLE_BATCH, Cost, Work, count
from cdrl_train.data.sources import expected
from cdrl_train.presets import NAMES, preset

HOUR = 3600.0
PEAKS = {
    "A100, TF32": 156e12,
    "A100, bfloat16": 312e12,
    "H100, bfloat16": 989e12,
}  # vendor's, dense
UTILISATIONS = (0.1, 0.25, 0.4)
PAPERS = ("cifar10", "cifar10-large", "cifar10-cond", "imagenet32-cond", "celeba64", "drl")
LINKS = {"NVLink, 300 GB/s": 300e9, "InfiniBand, 25 GB/s": 25e9, "Ethernet, 1.25 GB/s": 1.25e9}
PROCESSES = (1, 8, 32, 64, 128, 256)
BASE = "cifar10"
HEADER = [
    "preset, last phase",
    "images",
    "R, GFLOP/s",
    "G, MB",
    "W, MB/s",
    "one process, ms",
    "two, ms (min - max)",
    "predicted, ms",
    "speed-up",
    "predicted",
]


def of_preset(name: str) -> Cost:
    """The cost of a preset with its own kind of data."""
    config = preset(name)
    return count(config, *expected(config.data.source, config.data))


def step_seconds(
    work: Work, exchanged: int, processes: int, *, rate: float, bandwidth: float
) -> tuple[float, float]:
    """Seconds of one step on several processes: computation plus exchange, without overlap.

    ``t(P) = F / (P R) + 2 (P - 1)/P · G / W``. P processes share F operations and make R operations per
    second each. A ring all-reduce sends G bytes of gradients over links of W bytes per second.

    Args:
        work: the work for the whole batch, F.
        exchanged: G.
        processes: P.
        rate: R.
        bandwidth: W.
    """
    share = (processes - 1) / processes
    return work.flops / (processes * rate), 2 * share * exchanged / bandwidth


def preset_rows(costs: dict[str, Cost]) -> list[list[str]]:
    """One row for each phase of each preset."""
    rows = []
    for name, cost in costs.items():
        config = preset(name)
        for label, phase, work in zip(config.labels, config.phases, cost.phases, strict=True):
            if work is None:
                continue
            batch = phase.batch_size
            rows.append(
                [
                    f"{name}, {label.replace('_', ' ')}",
                    f"{cost.ebm / 1e6:.2f} + {cost.initializer / 1e6:.2f}",
                    str(batch),
                    _three(work.flops / batch / 1e9),
                    _three(work.flops / 1e12),
                    _three(work.moved / 1e9),
                    _three(cost.state / 1e9),
                    _three(work.peak / 1e9),
                    _three(work.peak / batch / 1e6),
                ]
            )
    return rows


def sample_rows(costs: dict[str, Cost]) -> list[list[str]]:
    """One row for each preset."""
    rows = []
    for name, cost in costs.items():
        config = preset(name)
        rows.append(
            [
                name,
                f"{config.schedule.num_levels} x {config.sampler.langevin_steps}",
                _three(cost.sample.flops / SAMPLE_BATCH / 1e9),
                _three(cost.sample.moved / SAMPLE_BATCH / 1e9),
                _three(cost.sample.peak / 1e9),
            ]
        )
    return rows


def hour_rows(costs: dict[str, Cost]) -> list[list[str]]:
    """GPU-hours of whole runs, for each GPU at each utilisation."""
    rows = []
    for name in PAPERS:
        flops = costs[name].flops(preset(name))
        hours = [
            f"{flops / (peak * used) / HOUR:,.0f}"
            for peak in PEAKS.values()
            for used in UTILISATIONS
        ]
        rows.append([name, _three(flops / 1e18), *hours])
    return rows


def variants() -> dict[str, tuple[TrainConfig, ImageShape]]:
    """The base configuration with one change each."""
    config, image = preset(BASE), ImageShape(3, 32, 32)
    return {
        "as it is": (config, image),
        "images of 16 x 16": (config, ImageShape(3, 16, 16)),
        "images of 64 x 64": (config, ImageShape(3, 64, 64)),
        "EBM of half the width": (config.override(["ebm.width=64"]), image),
        "EBM of twice the width": (config.override(["ebm.width=256"]), image),
        "K = 1": (config.override(["cooperative.langevin_steps=1"]), image),
        "K = 30": (config.override(["cooperative.langevin_steps=30"]), image),
        "T = 12 levels": (config.override(["schedule.num_levels=12"]), image),
    }


def growth_rows(costs: dict[str, Cost]) -> list[list[str]]:
    """Each variant, and its ratio to the base."""
    base = costs["as it is"]
    rows = []
    for name, cost in costs.items():
        step, first = cost.phases[-1], base.phases[-1]
        if step is None or first is None:
            raise ValueError(name)
        rows.append(
            [
                name,
                f"{cost.ebm / 1e6:.1f}",
                f"{_three(step.flops / 1e12)} ({step.flops / first.flops:.2f})",
                f"{_three(step.peak / 1e9)} ({step.peak / first.peak:.2f})",
                f"{_three(cost.sample.flops / SAMPLE_BATCH / 1e12)} "
                f"({cost.sample.flops / base.sample.flops:.2f})",
            ]
        )
    return rows


def process_rows(cost: Cost, batch: int, rate: float) -> list[list[str]]:
    """Seconds per step and efficiency of P processes, for each link."""
    work = cost.phases[-1]
    if work is None:
        raise ValueError(cost)
    rows = []
    for processes in PROCESSES:
        row = [str(processes), str(batch // processes)]
        for bandwidth in LINKS.values():
            computing, exchange = step_seconds(
                work, cost.exchanged, processes, rate=rate, bandwidth=bandwidth
            )
            total = computing + exchange
            row.append(f"{1e3 * total:,.0f} ms, {100 * computing / total:.0f} %")
        rows.append(row)
    return rows


def measured_row(name: str, found: Measured, work: Work) -> list[str]:
    """The time of several processes, and the prediction of `step_seconds`.

    R is the measured rate of one process. W is the measured rate of an all-reduce of this size.
    """
    one, several = statistics.median(found.one), statistics.median(found.several)
    computing, exchange = step_seconds(
        work,
        found.exchanged,
        found.processes,
        rate=work.flops / one,
        bandwidth=found.bandwidth,
    )
    predicted = computing + exchange
    fastest, slowest = (_three(1e3 * bound(found.several)) for bound in (min, max))
    return [
        name,
        str(found.batch_size),
        _three(work.flops / one / 1e9),
        _three(found.exchanged / 1e6),
        _three(found.bandwidth / 1e6),
        _three(1e3 * one),
        f"{_three(1e3 * several)} ({fastest} - {slowest})",
        f"{_three(1e3 * computing)} + {_three(1e3 * exchange)}",
        f"{one / several:.2f}",
        f"{one / predicted:.2f}",
    ]


def measurements(names: Sequence[str], steps: int, rounds: int) -> tuple[str, dict[str, Any]]:
    """The table of presets on one process and on two, and the measurements."""
    rows, found = [], {}
    for name in names:
        config = preset(name)
        split = [phase for phase in config.phases if not phase.make_objective().one_process]
        config = replace(config, phases=tuple(split))  # those that processes can share
        image, num_classes = expected(config.data.source, config.data)
        cost = count(config, image, num_classes)
        work = cost.phases[-1]
        if work is None:
            raise InputError(f"--measure {name}: its last phase has no steps")
        result = measure(
            config,
            image,
            num_classes,
            cost.exchanged,
            steps=steps,
            rounds=rounds,
            tell=lambda line: click.echo(line, err=True),
        )
        rows.append(measured_row(name, result, work))
        found[name] = asdict(result)
    return table(HEADER, rows), found


def _three(value: float) -> str:
    """A number with three digits and no exponent."""
    return f"{value:,.0f}" if value >= 100 else f"{value:#.3g}".rstrip(".")


@click.command("scaling.py", cls=OneLineErrors)
@click.option(
    "--out", type=click.Path(dir_okay=False, path_type=Path), help="Also write the counts, JSON."
)
@click.option(
    "--measure",
    "measured",
    multiple=True,
    metavar="PRESET",
    help="Instead time steps of its last phase on one process and on two, with one thread each. This "
    "needs both cores of an idle machine.",
)
@click.option(
    "--steps", type=click.IntRange(1), default=10, show_default=True, help="Timed in a round."
)
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True)
def main(out: Path | None, measured: tuple[str, ...], steps: int, rounds: int) -> None:
    """Count, and print the tables."""
    check_target("--out", out)
    if measured:
        text, found = measurements(measured, steps, rounds)
        click.echo(text)
        if out:
            write_json(out, found)
        return
    costs = {name: of_preset(name) for name in NAMES if preset(name).data.source}
    changed = {name: count(config, image, ()) for name, (config, image) in variants().items()}
    rate = 0.25 * PEAKS["A100, bfloat16"]
    header = ["preset, phase", "M values", "batch", "GFLOP an image", "TFLOP a step", "GB moved"]
    memory = ["GB of state", "GB held in a step", "MB held an image"]
    click.echo(table([*header, *memory], preset_rows(costs)) + "\n")
    header = ["preset", "T x K", "GFLOP a sample", "GB moved", f"GB held by {SAMPLE_BATCH}"]
    click.echo(table(header, sample_rows(costs)) + "\n")
    columns = [f"{gpu} at {used:.0%}" for gpu in PEAKS for used in UTILISATIONS]
    click.echo(table(["preset", "EFLOP", *columns], hour_rows(costs)) + "\n")
    header = [BASE, "M values of the EBM", "TFLOP a step", "GB held", "TFLOP a sample"]
    click.echo(table(header, growth_rows(changed)) + "\n")
    batch = preset(BASE).phases[-1].batch_size
    click.echo(table(["processes", "images each", *LINKS], process_rows(costs[BASE], batch, rate)))
    if out:
        write_json(
            out,
            {
                "presets": {name: asdict(cost) for name, cost in costs.items()},
                "variants": {name: asdict(cost) for name, cost in changed.items()},
            },
        )


if __name__ == "__main__":
    main()
