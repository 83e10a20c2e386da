"""How much faster two processes draw and score than one, on this machine.

``python benchmarks/shared_work.py``; see benchmarks/README.md.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import click
from options import MODEL, writes
from report import check_target, table, write_json
from two_processes import ranks

from cdrl_infer.cli.command import OneLineErrors
from cdrl_infer.errors import CDRLError


class Spent(NamedTuple):
    """The seconds of a command."""

    wall: float
    cpu: float  # of the process that took the most


def spend(arguments: list[str], processes: int, folder: Path) -> Spent:
    """Run a command of `cdrl_infer` in as many processes of one thread, and wait for all.

    Raises:
        CDRLError: a process failed.
    """
    groups = ranks(processes) if processes > 1 else [{}]
    started = time.perf_counter()
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "cdrl_infer", *arguments],
            env={**os.environ, **group, "OMP_NUM_THREADS": "1"},
            cwd=folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for group in groups
    ]
    cpu = []
    for process in running:
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        cpu.append(used.ru_utime + used.ru_stime)
    for process in running:
        if process.returncode:
            raise CDRLError(f"{arguments[0]} ended with code {process.returncode}")
    return Spent(time.perf_counter() - started, max(cpu))


def row(name: str, one: list[Spent], two: list[Spent]) -> list[str]:
    """The medians of a command, and the ratios of all rounds."""
    cells = [name]
    for kind in Spent._fields:
        pairs = [(getattr(a, kind), getattr(b, kind)) for a, b in zip(one, two, strict=True)]
        ratios = [a / b for a, b in pairs]
        cells += [f"{statistics.median(column):.1f}" for column in zip(*pairs, strict=True)]
        cells.append(f"{statistics.median(ratios):.2f} ({min(ratios):.2f} - {max(ratios):.2f})")
    return cells


@click.command("shared_work.py", cls=OneLineErrors, context_settings={"show_default": True})
@MODEL
@click.option("--images", type=click.IntRange(2), default=64)
@click.option("--batch-size", type=click.IntRange(1), default=16)
@click.option("--rounds", type=click.IntRange(1), default=3)
@writes("shared-work.json")
def main(model: str | None, images: int, batch_size: int, rounds: int, out: Path) -> None:
    """Time whole commands, with the start of Python, on one process and on two, in turns.

    CPU seconds are those of the process that takes the most: what the clock on the wall would show on two
    idle cores, without the waiting.
    """
    check_target("--out", out)
    chosen = ["--batch-size", str(batch_size), "--device", "cpu"]
    if model is not None:
        chosen += ["--model", str(Path(model).resolve()) if Path(model).exists() else model]
    commands = {
        "sample": ["sample", *chosen, "-n", str(images), "--seed", "0", "--out", "drawn/"],
        "score": ["score", *chosen, "drawn", "--out", "table.csv"],
    }
    spent: dict[str, dict[int, list[Spent]]] = {name: {1: [], 2: []} for name in commands}
    with tempfile.TemporaryDirectory() as folder:
        for k in range(rounds):
            for name, arguments in commands.items():
                for processes in (1, 2):
                    spent[name][processes].append(spend(arguments, processes, Path(folder)))
            click.echo(f"round {k + 1} of {rounds}", err=True)
    header = ["command", "one, s", "two, s", "faster", "one, CPU s", "two, CPU s", "faster"]
    click.echo(table(header, [row(name, found[1], found[2]) for name, found in spent.items()]))
    loads = [round(load, 1) for load in os.getloadavg()]
    click.echo(f"{images} images, batches of {batch_size}, load of the machine {loads}")
    write_json(out, {"images": images, "batch size": batch_size, "load": loads, "spent": spent})


if __name__ == "__main__":
    main()
