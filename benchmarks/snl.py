"""Energies of the plane by six objectives at equal cost, against the truth on a grid.

``python benchmarks/snl.py``; see benchmarks/README.md. The targets have the noise of level 0.
"""

from __future__ import annotations

import itertools
import json
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import click
import torch
from report import plus_minus, table
from torch import Tensor

from cdrl_infer.cli.command import OneLineErrors
from cdrl_infer.energies.neural import NeuralEnergy
from cdrl_infer.model import CDRLModel
from cdrl_infer.schedule import Level, NoiseSchedule
from cdrl_train.config import Phase, TrainConfig
from cdrl_train.data.checkerboard import POINT, draw
from cdrl_train.data.plane import points
from cdrl_train.data.sources import load_images
from cdrl_train.data.stream import BatchStream
from cdrl_train.engine.trainer import Trainer
from cdrl_train.export import to_model

CELLS, EXTENT = 320, 2.4  # the grid covers [-EXTENT, EXTENT]²
DRAWS = 1_000_000  # of the data, for the truth
LOGSNR = 6.0  # σ̄_0 = 0.05
BATCH = 64
SETS = ("clusters", "circles", "pinwheel", "checkerboard")
HEADER = (
    "data",
    "objective",
    "log-likelihood",
    "KL to the truth",
    "total variation",
    "log Z of exp(-E)",
)
ONE_LEVEL = NoiseSchedule(num_levels=1, logsnr_max=LOGSNR)
CHAIN = NoiseSchedule(8, logsnr_max=LOGSNR, step_rule="curvature", step_size=0.4)
TILTED = {
    "class": "TiltedEnergy",
    "base": {"class": "GaussianDistribution", "scale": 0.5},
    "width": 64,
    "num_blocks": 2,
}
PROPOSAL = {"class": "MixtureDistribution", "components": 16}
PER_LEVEL = {"class": "MLPEnergy", "width": 64, "num_blocks": 2, "data_variance": 1 / 3}
INITIALIZER = {
    "class": "ResidualInitializer",
    "backbone": {"class": "MLP", "width": 32, "num_blocks": 2},
}


class Method(NamedTuple):
    """An objective and its networks.

    Args:
        phases: of a number of gradient evaluations.
        alone: whether the energy has one level and a normaliser of its own.
        initializer: the options of the proposal.
    """

    phases: Callable[[int], tuple[Phase, ...]]
    alone: bool
    initializer: dict[str, Any] | None


def one(
    objective: dict[str, Any], cost: int, rate: float = 2e-3
) -> Callable[[int], tuple[Phase, ...]]:
    """One phase; ``cost`` gradients of the energy for each image of a batch."""

    def phases(evaluations: int) -> tuple[Phase, ...]:
        steps = max(1, evaluations // (cost * BATCH))
        own = 1e-2 if cost == 5 else rate  # a mixture learns faster than a network
        return (Phase(objective, steps, BATCH, rate, own, lr_warmup_steps=20, final_lr=0.02),)

    return phases


def cooperative(evaluations: int) -> tuple[Phase, ...]:
    """A warm start, and CDRL with K = 5 beside it, as the preset toy-2d; each with half of the cost."""
    matching = one({"name": "score_matching"}, 2)(evaluations // 2)
    options = {"name": "cooperative", "coupling": "markov", "langevin_steps": 5}
    options |= {"weight": "noise", "score_matching": 1.0}
    return *matching, *one(options, 8, rate=2e-4)(evaluations // 2)


# A gradient of a gradient counts as two, K steps as K, data and the ends of chains as one each.
METHODS = {
    "SNL": Method(one({"name": "snl", "draws": 4}, 5), True, PROPOSAL),
    "ML, importance": Method(
        one({"name": "snl", "draws": 4, "bound": "importance"}, 5), True, PROPOSAL
    ),
    "NCE": Method(one({"name": "nce", "draws": 4}, 5), True, PROPOSAL),
    "score matching": Method(one({"name": "score_matching"}, 2), False, None),
    "CDRL": Method(cooperative, False, INITIALIZER),
    "DRL": Method(one({"name": "drl", "langevin_steps": 30, "weight": "noise"}, 32), False, None),
}


def source(name: str) -> str:
    """The data set of the training."""
    return name if name == "checkerboard" else f"plane:{name}"


def grid() -> Tensor:
    """(CELLS², 1, 1, 2) the centres of the cells."""
    centres = EXTENT * ((2 * torch.arange(CELLS) + 1) / CELLS - 1)
    return torch.cartesian_prod(centres, centres).reshape(-1, *POINT.shape)


def true_masses(name: str, level: Level, seed: int = 11) -> Tensor:
    """(CELLS, CELLS) probabilities: a histogram of `DRAWS` points, blurred by the noise of the level."""
    generator = torch.Generator().manual_seed(seed)
    drawn = draw(DRAWS, generator) if name == "checkerboard" else points(name, DRAWS, generator)
    clean = (level.alpha * drawn).reshape(-1, 2).double()
    counts, _ = torch.histogramdd(clean, [CELLS] * 2, [-EXTENT, EXTENT] * 2)
    width = 2 * EXTENT / CELLS
    variance = float(level.sigma_bar) ** 2 - width**2 / 12  # the cells blur too
    frequencies = 2 * math.pi * torch.fft.fftfreq(CELLS, d=width, dtype=torch.float64)
    filter_ = (-0.5 * variance * frequencies**2).exp()
    blurred = torch.fft.ifft2(torch.fft.fft2(counts) * torch.outer(filter_, filter_)).real
    return blurred.clamp(min=0) / blurred.clamp(min=0).sum()


class Result(NamedTuple):
    """A model against the truth, in nats where there is a unit."""

    log_likelihood: float  # expected under the truth, normalised by the grid
    divergence: float  # KL(truth ‖ model)
    variation: float
    log_z: float  # of exp(-E): 0 for an energy that is normalised


@torch.no_grad()
def compare(model: CDRLModel, truth: Tensor) -> Result:
    """Compare the energy at level 0 with the truth."""
    level, area = model.schedule.level(1), 2 * math.log(2 * EXTENT / CELLS)
    log_p = -NeuralEnergy(model.ebm)(grid() * level.scale, level).double()
    log_z = float(log_p.logsumexp(0)) + area
    masses, p = (log_p.log_softmax(0)).exp(), truth.flatten()
    log_density = log_p.log_softmax(0) - area
    found = float((p * log_density).sum())
    entropy = float(-(p * (p.clamp(min=1e-300).log() - area)).sum())
    return Result(found, -entropy - found, float((masses - p).abs().sum()) / 2, log_z)


def train(name: str, method: Method, evaluations: int, seed: int) -> CDRLModel:
    """Train a model, with nothing kept on the disk."""
    config = TrainConfig(
        name="snl",
        ebm=TILTED if method.alone else PER_LEVEL,
        initializer=method.initializer,
        phases=method.phases(evaluations),
        schedule=ONE_LEVEL if method.alone else CHAIN,
        ema_decay=0.99,
        seed=seed,
    )
    stream = BatchStream(load_images(source(name)), config.data, seed, "cpu")
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(config, stream, Path(folder))
        for _ in range(config.total_steps):
            trainer.train_step()
        return to_model(trainer)


@click.command("snl.py", cls=OneLineErrors, context_settings={"show_default": True})
@click.option("--data", "sets", multiple=True, type=click.Choice(SETS), default=SETS)
@click.option(
    "--evaluations",
    type=click.IntRange(1),
    default=200_000,
    help="Gradients of the energy network, counted by image, for each run.",
)
@click.option("--seeds", type=click.IntRange(1), default=3, help="Runs of each objective.")
@click.option(
    "--results",
    "file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Keep each result here; an interrupted comparison continues from there.",
)
def main(sets: tuple[str, ...], evaluations: int, seeds: int, file: Path | None) -> None:
    """Log-likelihood and distance from the truth of energies, mean and standard deviation over seeds."""
    found = read(file)
    truths: dict[str, Tensor] = {}
    for seed, name, label in itertools.product(range(seeds), sets, METHODS):
        key = (name, label, evaluations, seed)
        if key in found:
            continue
        if name not in truths:
            truths[name] = true_masses(name, ONE_LEVEL.level(1))
        found[key] = compare(train(name, METHODS[label], evaluations, seed), truths[name])
        if file is not None:
            with file.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps([key, found[key]]) + "\n")
    rows = []
    for name, label in itertools.product(sets, METHODS):
        runs = [found[name, label, evaluations, seed] for seed in range(seeds)]
        cells = [plus_minus(list(column), 3) for column in zip(*runs, strict=True)]
        rows.append([name, label, *cells[:3], cells[3] if METHODS[label].alone else "-"])
    click.echo(table(HEADER, rows))


def read(file: Path | None) -> dict[tuple[str, str, int, int], Result]:
    """The results that a file holds, by data, objective, evaluations and seed."""
    if file is None or not file.is_file():
        return {}
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return {tuple(key): Result(*values) for key, values in lines}


if __name__ == "__main__":
    main()
