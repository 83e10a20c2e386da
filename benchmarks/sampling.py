"""The speed of sampling on this machine, also as a share of the machine's peak rate.

``python benchmarks/sampling.py``; see benchmarks/README.md.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import torch
from options import MODEL
from report import table, write_json
from torch.utils.flop_counter import FlopCounterMode

from cdrl_infer.cli.command import OneLineErrors
from cdrl_infer.energies.neural import NeuralEnergy
from cdrl_infer.pipeline import CDRLPipeline
from cdrl_infer.storage.folder import find_model
from cdrl_infer.version import __version__

MATMUL = 1024  # a product of two MATMUL x MATMUL matrices
CONVOLUTION = (64, 64, 14)  # batch, channels in and out, height and width; 3x3, channels last
IMPORTS = ("torch", "cdrl_infer", "cdrl_infer.pipeline")


def seconds(work: Callable[[], object], at_least: float = 0.3) -> float:
    """Seconds per call, measured over enough calls to take ``at_least`` seconds."""
    calls, start = 0, time.perf_counter()
    while True:
        work()
        calls += 1
        elapsed = time.perf_counter() - start
        if elapsed >= at_least:
            return elapsed / calls


def machine_work() -> dict[str, tuple[Callable[[], object], float]]:
    """Calls that measure the machine's rate, with the floating-point operations of each."""
    a, b = torch.randn(2, MATMUL, MATMUL).unbind()
    batch, channels, size = CONVOLUTION
    layout = torch.channels_last
    x = torch.randn(batch, channels, size, size).to(memory_format=layout)
    w = torch.randn(channels, channels, 3, 3).to(memory_format=layout)
    conv_flops = 2 * batch * size**2 * channels**2 * 9
    return {
        f"matrix product {MATMUL} x {MATMUL}": (lambda: a @ b, 2.0 * MATMUL**3),
        f"convolution 3x3, {channels} channels, {batch} x {size} x {size}": (
            lambda: torch.nn.functional.conv2d(x, w, padding=1),
            float(conv_flops),
        ),
    }


def gradient_work(pipe: CDRLPipeline, batch_size: int) -> tuple[Callable[[], object], float]:
    """One gradient of the energy for a batch at the middle level, and its operations.

    It counts convolutions and matrix products, forward and backward.
    """
    model = pipe.model
    level = model.schedule.level((model.schedule.num_levels + 1) // 2, pipe.device)
    labels = None
    if model.labels:
        columns = [torch.arange(batch_size) % len(a.values) + 1 for a in model.labels]
        labels = torch.stack(columns, dim=1).to(pipe.device)
    potential = NeuralEnergy(model.ebm, labels).at(level)
    y = torch.randn(batch_size, *model.image.shape, device=pipe.device)
    leaf = y.clone().requires_grad_(True)
    with FlopCounterMode(display=False) as counter:
        # As `value_and_grad` does it; the counter wants a module's input not to be a leaf.
        torch.autograd.grad(potential(leaf.clone()).sum(), leaf)
    return lambda: potential.value_and_grad(y), float(counter.get_total_flops())


def cold_sample(model: Path, images: int) -> float:
    """Wall seconds of ``cdrl-sample`` in a new process, until the PNG is on the disk."""
    with tempfile.TemporaryDirectory() as folder:
        entry = "from cdrl_infer.cli.sample import main; main()"
        arguments = ["--model", str(model), "-n", str(images), "--device", "cpu"]
        out = ["--out", str(Path(folder) / "samples.png")]
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", entry, *arguments, *out], check=True)
        return time.perf_counter() - start


def cold_import(name: str) -> float:
    """Wall seconds of a new process that imports a module and ends."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", f"import {name}"], check=True)
    return time.perf_counter() - start


def summary(values: Sequence[float], digits: int = 2) -> list[str]:
    """Minimum, median and maximum."""
    picked = (min(values), statistics.median(values), max(values))
    return [f"{value:.{digits}f}" for value in picked]


@click.command("sampling.py", cls=OneLineErrors, context_settings={"show_default": True})
@MODEL
@click.option("--images", type=click.IntRange(1), default=64, help="Images drawn at once.")
@click.option("--repeats", type=click.IntRange(1), default=5)
@click.option(
    "--out", type=click.Path(dir_okay=False, path_type=Path), help="Also write the results as JSON."
)
def main(model: str | None, images: int, repeats: int, out: Path | None) -> None:
    """Speed of sampling on this machine's CPU."""
    text, results = evaluate(find_model(model), images, repeats)
    click.echo(text)
    if out:
        write_json(out, results)


def evaluate(folder: Path, images: int, repeats: int) -> tuple[str, dict[str, Any]]:
    """The text that the command prints, and the results that it writes."""
    pipe = CDRLPipeline.from_pretrained(folder)
    gradient, gradient_flops = gradient_work(pipe, images)
    machine = machine_work()
    work = {**machine, "energy gradient": (gradient, gradient_flops)}
    rates: dict[str, list[float]] = {name: [] for name in work}
    warm: list[float] = []
    cold: list[float] = []
    imports: dict[str, list[float]] = {name: [] for name in IMPORTS}
    for _ in range(repeats):  # in turn, so that a busy moment of the machine affects all alike
        for name, (call, flops) in work.items():
            rates[name].append(flops / seconds(call) / 1e9)
        start = time.perf_counter()
        pipe(num_images=images, seeds=0, batch_size=images, output_type="pt", progress=False)
        warm.append((time.perf_counter() - start) / images)
        cold.append(cold_sample(folder, images))
        for name in IMPORTS:
            imports[name].append(cold_import(name))

    per_gradient = gradient_flops / images
    gradients = [rate * 1e9 / per_gradient for rate in rates["energy gradient"]]
    reached = statistics.median(rates["energy gradient"])
    shares = {name: reached / statistics.median(rates[name]) for name in machine}
    ratios = {
        name: statistics.median(imports[name]) / statistics.median(imports["torch"])
        for name in IMPORTS[1:]
    }
    rows = [
        *([f"{name}, GFLOP/s", *summary(values, 1)] for name, values in rates.items()),
        ["gradients of one image per second", *summary(gradients, 0)],
        [f"seconds per image, {images} at once", *summary(warm, 4)],
        [f"cdrl-sample -n {images} from a cold shell, s", *summary(cold)],
        *([f"python -c 'import {name}', s", *summary(values)] for name, values in imports.items()),
    ]
    text = "\n".join(
        [
            f"Model {pipe.name}, K = {pipe.model.sampler.langevin_steps}, "
            f"{pipe.model.schedule.num_levels} levels; cdrl {__version__}, torch "
            f"{torch.__version__}, float32, {torch.get_num_threads()} threads, {repeats} repeats.",
            "",
            table(["measured", "min", "median", "max"], rows),
            "",
            f"One gradient of one image: {per_gradient / 1e6:.1f} MFLOP in convolutions and matrix "
            "products.",
            *(
                f"Gradients reach {100 * share:.0f} % of the rate of a {name}."
                for name, share in shares.items()
            ),
            *(f"import {name}: {r:.2f} times import torch." for name, r in ratios.items()),
        ]
    )
    return text, {
        "model": pipe.name,
        "versions": {"cdrl": __version__, "torch": torch.__version__},
        "threads": torch.get_num_threads(),
        "images": images,
        "gflop_per_second": rates,
        "flop_per_gradient": per_gradient,
        "gradients_per_second": gradients,
        "share_of_rate": shares,
        "seconds_per_image": warm,
        "cold_sample_seconds": cold,
        "import_seconds": imports,
        "import_ratio": ratios,
    }


if __name__ == "__main__":
    main()
