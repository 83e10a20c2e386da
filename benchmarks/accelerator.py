"""Minutes of an accelerator, used to the full: its tests, its speed, and a model trained for the rest.

``python benchmarks/accelerator.py --data cifar10_jpeg_packed.npz``; see benchmarks/README.md.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import torch
from accelerator_speed import MATMUL, Speed, measure
from report import write_json
from training import configured

from cdrl_infer.cli.command import OneLineErrors
from cdrl_infer.device import fastest_precision, usable_device, usual_device
from cdrl_infer.errors import CDRLError, InputError
from cdrl_infer.model import ImageShape
from cdrl_train.config import TrainConfig
from cdrl_train.data.sources import expected, load_for
from cdrl_train.dry_run import time_steps
from cdrl_train.engine.checkpoints import load_newest
from cdrl_train.presets import preset

ROOT = Path(__file__).parents[1]
TESTS = ROOT / "tests" / "test_cuda.py"
MODEL = "model.tar"
EXPORT = "from cdrl_train.cli_export import export; export()"  # also where nothing is installed
ENDING = 45.0  # seconds kept for the last picture of the training run, export and results
STAGES = ("tests", "speed", "train")


class Clock:
    """The time that is left of a call."""

    def __init__(self, minutes: float) -> None:
        self.started = time.monotonic()
        self.seconds = 60 * minutes

    @property
    def spent(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started

    @property
    def left(self) -> float:
        """Seconds until the end."""
        return max(0.0, self.seconds - self.spent)


def run(arguments: Sequence[str], seconds: float, log: Path, *, ask: bool = False) -> int | None:
    """A Python program in a process of its own, whose text is appended to a file.

    Args:
        arguments: of ``python``.
        seconds: how long it may take.
        log: the file.
        ask: when the time is over, ask it to end (SIGTERM) and wait until it has.

    Returns:
        The exit code; None if the time was over.
    """
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    with log.open("a", encoding="utf-8") as text:
        process = subprocess.Popen(
            [sys.executable, *arguments],
            env={**os.environ, "PYTHONPATH": path},
            stdout=text,
            stderr=subprocess.STDOUT,
        )
        try:
            return process.wait(max(1.0, seconds))
        except subprocess.TimeoutExpired:
            process.terminate() if ask else process.kill()
            process.wait()
            return None


# -- training ------------------------------------------------------------------------------------


def fitted(config: TrainConfig, seconds: float, data: Any, device: torch.device) -> TrainConfig:
    """The run with steps in the same proportions, which take so many seconds on this device.

    Each phase is timed over three steps of its whole batch, after one to warm up.
    """
    image = ImageShape(*data.images.shape[1:])
    whole = 0.0
    for index, phase in enumerate(config.phases):
        if phase.steps:
            timing = time_steps(config, index, phase.batch_size, image, data.num_classes, device, 3)
            whole += phase.steps * timing.seconds
    factor = seconds / whole
    return replace(
        config,
        phases=tuple(
            replace(p, steps=math.ceil(p.steps * factor) if p.steps else 0) for p in config.phases
        ),
    )


def remaining(config: TrainConfig, step: int) -> TrainConfig:
    """What is left of a run after so many steps, for networks that have taken them.

    A phase that was cut goes on from the learning rates at which it was left.
    """
    index, inner = config.phase_at(step)
    phases = [replace(phase, steps=0) for phase in config.phases[:index]]
    cut = config.phases[index]
    if inner:
        rates = cut.learning_rates(inner)
        cut = replace(
            cut,
            steps=cut.steps - inner,
            ebm_lr=rates["ebm"],
            initializer_lr=rates["initializer"],
            lr_warmup_steps=min(cut.lr_warmup_steps, cut.steps - inner),
        )
    return replace(config, phases=(*phases, cut, *config.phases[index + 1 :]))


def train(
    config: TrainConfig,
    source: str,
    folder: Path,
    parts: Path | None,
    begin: str | None,
    device: torch.device,
    clock: Clock,
    total_minutes: float | None,
    log: Path,
) -> dict[str, Any]:
    """Start or continue the run in a folder, until it is done or the time is over.

    Args:
        config: the run, for a new one.
        source: the data.
        folder: of the run; one that has a checkpoint is continued.
        parts: the results of an earlier call, whose model is continued if the folder has no run.
        begin: the model whose weights a new run begins with.
        device, clock: where, and how long.
        total_minutes: of all calls together; a new run is fitted to it.
        log: what the trainer says.
    """
    checkpoints = folder / "checkpoints"
    arguments = ["-m", "cdrl_train.cli", "--device", str(device)]
    done = 0
    if checkpoints.is_dir() and any(checkpoints.iterdir()):
        arguments += ["--resume", "--out", str(folder)]
    else:
        if total_minutes is not None:
            data = load_for(source, config.data)
            config = fitted(config, 60 * total_minutes, data, device)
        if parts is not None:
            earlier = json.loads((parts / "results.json").read_text(encoding="utf-8"))["train"]
            done = earlier["steps done"]
            config = remaining(
                TrainConfig.from_dict(earlier["config"]), earlier["steps of the run"]
            )
            arguments += ["--init-from", str(joined(parts, folder.parent / "earlier"))]
        elif begin is not None:
            arguments += ["--init-from", begin]
        folder.parent.mkdir(parents=True, exist_ok=True)
        file = folder.with_name(f"{folder.name}.json")
        config.write(file)
        arguments += ["--config", str(file), "--data", source, "--out", str(folder)]
        arguments += ["--set", "checkpoint_minutes=1", "--set", f"sample_every={10**9}"]
    code = run(arguments, clock.left - ENDING, log, ask=True)
    if code not in (0, None):
        raise CDRLError(f"training ended with code {code}, see {log}: {_last(log)}")
    found = load_newest(checkpoints, lambda text: click.echo(text, err=True))
    if found is None:
        raise CDRLError(f"training left no checkpoint in {checkpoints}: give it more --minutes")
    state, config = found.state, TrainConfig.read(folder / "config.json")
    return {
        "config": config.to_dict(),
        "done": state["step"] == config.total_steps,
        "steps of the run": state["step"],
        "steps done": done + state["step"],
        "images": state["images_seen"],
        "hours": state["seconds"] / 3600,
        "images per second": state["images_seen"] / max(state["seconds"], 1e-9),
    }


# -- results --------------------------------------------------------------------------------------


def packed(folder: Path, out: Path, limit: int) -> list[str]:
    """A folder as an archive in parts of at most ``limit`` bytes; returns their names."""
    with tempfile.TemporaryDirectory() as place:
        archive = Path(place) / MODEL
        with tarfile.open(archive, "w") as tar:
            for path in sorted(folder.rglob("*")):
                tar.add(path, arcname=str(path.relative_to(folder)), recursive=False)
        names = []
        with archive.open("rb") as file:
            while block := file.read(limit):
                names.append(f"{MODEL}.{len(names):02d}")
                (out / names[-1]).write_bytes(block)
    return names


def joined(parts: Path, folder: Path) -> Path:
    """The folder that `packed` wrote, unpacked again.

    Raises:
        InputError: there are no parts.
    """
    found = sorted(parts.glob(f"{MODEL}.*"))
    if not found:
        raise InputError(f"--continue-from {parts}: expected {MODEL}.00, …, found none")
    with tempfile.TemporaryDirectory() as place:
        archive = Path(place) / MODEL
        archive.write_bytes(b"".join(part.read_bytes() for part in found))
        folder.mkdir(parents=True, exist_ok=True)
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")
    return folder


def _last(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"


def tested(clock: Clock, log: Path) -> dict[str, Any]:
    """Run the tests that need CUDA; without it they are skipped."""
    code = run(["-m", "pytest", "-q", "-rs", str(TESTS)], clock.left / 3, log)
    return {"exit code": code, "summary": _last(log)}


def speed(
    name: str, assignments: Sequence[str], batch_size: int, matmul: int, device: torch.device
) -> tuple[dict[str, Any], str]:
    """The measurements of `accelerator_speed`, and its profiles as text."""
    config = configured(name, assignments)
    config = replace(config, precision=fastest_precision(device))
    wanted = Speed(config, *expected(config.data.source, config.data), batch_size, device, matmul)
    results = measure(wanted, steps=3, rounds=3)
    profiles = "\n\n".join(f"{what}:\n{text}" for what, text in wanted.profiles.items())
    return results, profiles


def conclude(
    folder: Path,
    out: Path,
    device: torch.device,
    evaluate: str,
    limit: int,
    clock: Clock,
    log: Path,
) -> dict[str, Any]:
    """Export the newest checkpoint, draw from it, evaluate it, and pack it."""
    with tempfile.TemporaryDirectory() as place:
        model = Path(place) / "model"
        steps: dict[str, list[str]] = {
            "export": ["-c", EXPORT, str(folder), str(model)],
            "draw": [
                *("-m", "cdrl_infer", "sample", "--model", str(model), "--device", str(device)),
                *("-n", "100", "--seed", "0", "--out", str(out / "samples.png")),
            ],
        }
        if evaluate:
            steps["evaluate"] = [
                *("-m", "cdrl_train.cli_eval", "--model", str(model), "--device", str(device)),
                *("--cache", str(folder / "cache"), "--out", str(out / "evaluation.json")),
                *evaluate.split(),
            ]
        codes = {name: run(step, clock.left + ENDING, log) for name, step in steps.items()}
        if codes["export"] != 0:
            raise CDRLError(f"the model cannot be exported, see {log}: {_last(log)}")
        return {"exit codes": codes, "model": packed(model, out, limit)}


@click.command("accelerator.py", cls=OneLineErrors, context_settings={"show_default": True})
@click.option("--data", "source", required=True, help="As cdrl-train takes it.")
@click.option("--minutes", type=click.FloatRange(0.1), default=9.0, help="Of this call.")
@click.option(
    "--total-minutes",
    type=click.FloatRange(0.1),
    help="Training time of all calls: a new run gets as many steps as fit. [the preset's steps]",
)
@click.option("--preset", "name", default="cifar10-compact", help="Of the run.")
@click.option("--set", "assignments", multiple=True, metavar="KEY=VALUE", help="Change an option.")
@click.option("--paper", default="cifar10", help="Preset whose speed is measured.")
@click.option("--paper-set", multiple=True, metavar="KEY=VALUE", help="Change an option of it.")
@click.option("--batch-size", type=click.IntRange(1), default=128, help="Where speed is measured.")
@click.option("--matmul", type=click.IntRange(1), default=MATMUL, hidden=True)
@click.option(
    "--stage",
    "stages",
    multiple=True,
    type=click.Choice(STAGES),
    default=STAGES,
    help="What to do.",
)
@click.option("--device", help="[cuda if there is one, else cpu]")
@click.option(
    "--run",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("runs/accelerator"),
    help="The training run; the next call goes on with it.",
)
@click.option(
    "--continue-from",
    "parts",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Results of an earlier call whose run is lost: go on with its model.",
)
@click.option("--init-from", "begin", metavar="MODEL", help="Whose weights a new run begins with.")
@click.option("--evaluate", default="", metavar="OPTIONS", help="Options of cdrl-eval, to do so.")
@click.option("--part-mib", type=click.FloatRange(0.001), default=15.9, help="Of a result file.")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("results"),
    help="Folder.",
)
def main(
    source: str,
    minutes: float,
    total_minutes: float | None,
    name: str,
    assignments: tuple[str, ...],
    paper: str,
    paper_set: tuple[str, ...],
    batch_size: int,
    matmul: int,
    stages: tuple[str, ...],
    device: str | None,
    folder: Path,
    parts: Path | None,
    begin: str | None,
    evaluate: str,
    part_mib: float,
    out: Path,
) -> None:
    """Test, measure and train on an accelerator within a few minutes; call again to go on training."""
    clock, place = Clock(minutes), usable_device(device or usual_device())
    config = preset(name).override(list(assignments))
    out.mkdir(parents=True, exist_ok=True)
    log = out / "log.txt"
    log.write_text("", encoding="utf-8")
    results: dict[str, Any] = {"stages": list(stages)}

    def keep(stage: str, found: dict[str, Any]) -> None:
        results[stage] = {**found, "seconds so far": round(clock.spent, 1)}
        write_json(out / "results.json", results)
        click.echo(f"{stage}: {clock.spent:.0f} s of {clock.seconds:.0f}", err=True)

    if "tests" in stages:
        keep("tests", tested(clock, log))
    if "speed" in stages:
        measured, profiles = speed(paper, paper_set, batch_size, matmul, place)
        (out / "profile.txt").write_text(profiles, encoding="utf-8")
        keep("speed", measured)
    if "train" in stages:
        keep("train", train(config, source, folder, parts, begin, place, clock, total_minutes, log))
        limit = int(part_mib * 2**20)
        keep("model", conclude(folder, out, place, evaluate, limit, clock, log))
    click.echo(json.dumps({k: v for k, v in results.items() if k != "train"}, indent=2))


if __name__ == "__main__":
    main()
