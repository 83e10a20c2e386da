"""The package's kernels beside TorchEBM's samplers: effective samples per second, errors of variances."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import click
import torch
from options import writes
from peers_targets import Function, Target, double_well, gaussian
from report import check_target, plus_minus, table, write_json
from subject import MADE_WITH, VERSIONS
from torch import Tensor
from turns import Timed, in_turns

from cdrl_infer.cli.command import OneLineErrors
from cdrl_infer.energies.base import FunctionPotential
from cdrl_infer.errors import InputError
from cdrl_infer.kernels.base import Kernel
from cdrl_infer.kernels.hmc import HMC, MALA
from cdrl_infer.kernels.langevin import Langevin
from cdrl_infer.kernels.leimkuhler_matthews import LeimkuhlerMatthews
from cdrl_infer.optional import needed
from cdrl_infer.random import BatchRandom

PEER = "TorchEBM"
DROPPED = 0.1  # the share of a chain's draws, at its start, that does not count
ALLOWED = 0.05  # a step is good if the variance is wrong by no more than this share


class Sampler(NamedTuple):
    """A way to run chains.

    Attributes:
        name: its name in the tables.
        gradients: gradients that one draw needs at least.
        run: (energy, s², number of draws, starts (B, D), generator) -> (B, draws, D).
    """

    name: str
    gradients: int
    run: Callable[[Function, float, int, Tensor, torch.Generator], Tensor]


def run_kernel(
    kernel: Kernel[Any],
    energy: Function,
    step_size: float,
    draws: int,
    start: Tensor,
    generator: torch.Generator,
) -> Tensor:
    """Chains of one of the package's kernels."""
    potential, size = FunctionPotential(energy), torch.tensor(step_size)
    random = BatchRandom(len(start), generator)
    points = torch.empty(len(start), draws, start.shape[1])
    state = kernel.init(start, potential)
    for k in range(draws):
        state, _ = kernel.step(state, potential, size, random)
        points[:, k] = state.y
    return points


def peer_samplers(leapfrog_steps: int) -> list[Sampler]:
    """TorchEBM's Langevin dynamics and HMC.

    Its step of Langevin dynamics is ``η = s² / 2``, its leapfrog step is s.
    """
    with needed("torchebm", "this comparison needs", "peers"):
        from torchebm.core import BaseModel
        from torchebm.samplers import HamiltonianMonteCarlo, LangevinDynamics

    class Model(BaseModel):  # type: ignore[misc]
        """Gives TorchEBM the same function."""

        def __init__(self, energy: Function) -> None:
            super().__init__()
            self.energy = energy

        def forward(self, x: Tensor) -> Tensor:
            return self.energy(x)

    def sample(sampler: Any, draws: int, start: Tensor, generator: torch.Generator) -> Tensor:
        points: Tensor = sampler.sample(
            x=start, n_steps=draws, return_trajectory=True, generator=generator
        )
        return points

    def langevin(energy: Function, step_size: float, *rest: Any) -> Tensor:
        return sample(LangevinDynamics(Model(energy), step_size / 2, device="cpu"), *rest)

    def hmc(energy: Function, step_size: float, *rest: Any) -> Tensor:
        step = math.sqrt(step_size)
        sampler = HamiltonianMonteCarlo(Model(energy), step, leapfrog_steps, device="cpu")
        return sample(sampler, *rest)

    return [
        Sampler(f"{PEER} Langevin", 1, langevin),
        Sampler(f"{PEER} HMC", leapfrog_steps, hmc),
    ]


def own_samplers(leapfrog_steps: int) -> list[Sampler]:
    """The package's kernels."""
    return [
        Sampler("langevin", 1, partial(run_kernel, Langevin())),
        Sampler("leimkuhler-matthews", 1, partial(run_kernel, LeimkuhlerMatthews())),
        Sampler("mala", 1, partial(run_kernel, MALA())),
        Sampler("hmc", leapfrog_steps, partial(run_kernel, HMC(leapfrog_steps))),
    ]


PAIRS = {"langevin": f"{PEER} Langevin", "hmc": f"{PEER} HMC"}  # the same chains in law


class Chains(NamedTuple):
    """Chains of a sampler.

    Attributes:
        points: (B, draws, D).
        calls: number of times that the energy was evaluated, with or without its gradient.
    """

    points: Tensor
    calls: int


class Efficiency(NamedTuple):
    """What chains were worth; a rate of 0 and a bias of NaN for chains that left the finite numbers.

    Attributes:
        first, second: effective draws of y and of y² per second, of the worst coordinate.
        seconds: of one draw of all chains.
        calls: evaluations of the energy per draw.
        bias: relative error of the variance, mean of the judged coordinates.
    """

    first: float
    second: float
    seconds: float
    calls: float
    bias: float


@torch.no_grad()
def run_chains(
    sampler: Sampler, target: Target, step_size: float, gradients: int, chains: int, seed: int
) -> Chains:
    """Run chains from exact draws, with as many draws as the number of gradients allows."""
    calls = 0

    def counted(y: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return target.energy(y)

    generator = torch.Generator().manual_seed(seed)
    start = target.draw(chains, generator)
    draws = gradients // sampler.gradients
    return Chains(sampler.run(counted, step_size, draws, start, generator), calls)


def efficiency(timed: Timed[Chains], target: Target) -> Efficiency:
    """Effective draws by ArviZ (bulk; Vehtari et al. 2021), and the error of the variance."""
    with needed("arviz-stats", "effective sample sizes need", "peers"):
        from arviz_stats.base import array_stats
    points, calls = timed.result
    draws = points.shape[1]
    late = points[:, int(DROPPED * draws) :].double()
    share = late.shape[1] / draws
    cost = timed.seconds / draws, calls / draws
    if not late.isfinite().all():
        return Efficiency(0.0, 0.0, *cost, math.nan)

    def rate(values: Tensor) -> float:
        each = [
            float(array_stats.ess(values[..., d].numpy(), chain_axis=0, draw_axis=1, method="bulk"))
            for d in range(values.shape[2])
        ]
        return min(each) / (share * timed.seconds)

    variance = late.square().mean((0, 1)) / target.variance - 1
    bias = float(variance[target.judged].mean())
    return Efficiency(rate(late), rate(late.square()), *cost, bias)


Results = dict[str, dict[float, list[Efficiency]]]  # by sampler and s² times the stiffness


def measure(
    target: Target,
    samplers: Sequence[Sampler],
    steps: Sequence[float],
    gradients: int,
    chains: int,
    rounds: int,
    tell: Callable[[str], object] = lambda text: None,
) -> Results:
    """Run every sampler with every step, in turns.

    Args:
        steps: values of ``s² · stiffness``; an unadjusted Langevin step is stable below 4.
        gradients: of each chain in a round.
    """
    seeds = iter(range(10**9))
    work = {
        (sampler.name, step): partial(
            lambda one, size: run_chains(one, target, size, gradients, chains, next(seeds)),
            sampler,
            step / target.stiffness,
        )
        for sampler in samplers
        for step in steps
    }
    found: Results = {sampler.name: {} for sampler in samplers}
    for (name, step), timed in in_turns(work, rounds, tell).items():
        found[name][step] = [efficiency(one, target) for one in timed]
    return found


def best_step(found: dict[float, list[Efficiency]]) -> float | None:
    """The step with the most effective draws of the worse moment among those that are good.

    None if every step's variance is wrong by more than `ALLOWED`.
    """
    worth = {
        step: fmean([min(one.first, one.second) for one in each])
        for step, each in found.items()
        if abs(fmean([one.bias for one in each])) <= ALLOWED
    }
    return max(worth, key=worth.__getitem__) if worth else None


HEADER = (
    "sampler",
    "s² · curvature",
    "draws of y a second",
    "draws of y² a second",
    "energies a draw",
    "variance, % off",
)


def row(name: str, step: float, each: Sequence[Efficiency]) -> list[str]:
    """A line of a table; ± is the standard deviation over rounds."""
    if any(math.isnan(one.bias) for one in each):
        return [name, f"{step:g}", "diverges", "diverges", f"{each[0].calls:.1f}", "-"]
    return [
        name,
        f"{step:g}",
        plus_minus([one.first for one in each], 0),
        plus_minus([one.second for one in each], 0),
        f"{each[0].calls:.1f}",
        plus_minus([100 * one.bias for one in each]),
    ]


def equal_table(found: Results, step: float) -> str:
    """All samplers with one step."""
    return table(HEADER, [row(name, step, each[step]) for name, each in found.items()])


def best_table(found: Results) -> str:
    """Each sampler with its best step."""
    rows = []
    for name, each in found.items():
        step = best_step(each)
        none = [name, "none", *[""] * (len(HEADER) - 2)]
        rows.append(none if step is None else row(name, step, each[step]))
    return table(HEADER, rows)


def speed_lines(found: Results, steps: Sequence[float]) -> list[str]:
    """Time of a draw of TorchEBM divided by ours, of the same chains, over all rounds and steps."""
    lines = []
    for mine, other in PAIRS.items():
        ratios = [
            theirs.seconds / ours.seconds
            for step in steps
            for ours, theirs in zip(found[mine][step], found[other][step], strict=True)
        ]
        lines.append(
            f"* A draw of {other} takes {fmean(ratios):.2f} times as long as one of {mine} "
            f"({min(ratios):.2f} - {max(ratios):.2f})."
        )
    return lines


def parse_steps(text: str) -> tuple[float, ...]:
    """``"0.5,1"`` -> (0.5, 1.0)."""
    try:
        steps = tuple(float(part) for part in text.split(","))
    except ValueError:
        steps = ()
    if not steps or not all(0 < step < math.inf for step in steps):
        raise InputError(f"--steps must be positive numbers separated by commas, got {text!r}")
    return steps


@click.command("samplers", cls=OneLineErrors, context_settings={"show_default": True})
@click.option("--chains", type=click.IntRange(4), default=20)
@click.option("--gradients", type=click.IntRange(100), default=4000, help="Of a chain.")
@click.option("--leapfrog-steps", type=click.IntRange(2), default=10, help="Of both HMC.")
@click.option(
    "--steps",
    default="0.1,0.25,0.5,1,2,3",
    metavar="S,…",
    help="s² times the largest curvature.",
)
@click.option("--equal", type=float, default=0.5, help="The step of the table of equal steps.")
@click.option("--rounds", type=click.IntRange(1), default=5)
@writes("samplers.json")
def main(steps: str, out: Path, **options: Any) -> None:
    """Effective samples per second on two known densities, beside TorchEBM."""
    check_target("--out", out)
    text, results = evaluate(parse_steps(steps), **options)
    click.echo(text)
    write_json(out, results)


def evaluate(
    steps: Sequence[float],
    chains: int,
    gradients: int,
    leapfrog_steps: int,
    equal: float,
    rounds: int,
) -> tuple[str, dict[str, Any]]:
    """The text that the command prints, and the results that it writes."""
    if equal not in steps:
        raise InputError(f"--equal must be one of --steps, got {equal:g}")
    samplers = [*own_samplers(leapfrog_steps), *peer_samplers(leapfrog_steps)]
    from torchebm import __version__ as version

    head = (
        f"{MADE_WITH}, {PEER} {version}; one thread, {rounds} rounds in turns, processor time; "
        f"{chains} chains of {gradients} gradients, {leapfrog_steps} leapfrog steps."
    )
    parts, results = [head], {"versions": {**VERSIONS, "torchebm": version}, "chains": chains}
    results |= {"gradients": gradients, "leapfrog_steps": leapfrog_steps, "targets": {}}
    for target in (gaussian(), double_well()):
        found = measure(
            target, samplers, steps, gradients, chains, rounds, partial(_tell, target.name)
        )
        parts += [
            f"\n{target.name}, equal steps:\n\n{equal_table(found, equal)}",
            f"\n{target.name}, each with its best step of those whose variance is at most "
            f"{100 * ALLOWED:g} % off:\n\n{best_table(found)}\n",
            *speed_lines(found, steps),
        ]
        results["targets"][target.name] = {
            name: [
                {"step": step, "best": step == best_step(each), "rounds": [_json(o) for o in some]}
                for step, some in each.items()
            ]
            for name, each in found.items()
        }
    return "\n".join(parts), results


def _tell(name: str, text: str) -> None:
    click.echo(f"{name}: {text}", err=True)


def _json(one: Efficiency) -> dict[str, float | None]:
    return {key: None if math.isnan(value) else value for key, value in one._asdict().items()}
