"""Compare Langevin, MALA and HMC at equal numbers of gradients: is an exact kernel worth its cost?

``python benchmarks/kernels.py --data fashion_mnist.npz``; see benchmarks/README.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import click
import torch
from classifier import Recipe
from kernel_plans import ADAPT_IMAGES, NAMES, Bench, Plan, WarmUp, plan
from numpy.typing import NDArray
from options import DATA, EXTRACTOR, MODEL, draws, writes
from quality import Comparison, compare, real_features
from report import check_target, mean_error, per_cent, table, with_error, write_json
from subject import MADE_WITH, SamplePools, Subject
from tqdm import tqdm

from cdrl_infer.cli import command
from cdrl_infer.errors import InputError
from cdrl_infer.options import find_kernel
from cdrl_train.evaluation.cache import FeatureCache
from cdrl_train.evaluation.extractors import load_extractor
from cdrl_train.evaluation.sampling import window


class Result(NamedTuple):
    """The result of a plan."""

    plan: Plan
    warm_up: WarmUp | None
    samples: NDArray[Any]  # see `Bench.samples`
    recognised: float
    frechet: Comparison


def result_table(results: Sequence[Result], real: float, tested: int, floor: Comparison) -> str:
    """One row per plan; the last row is for real images."""
    body = []
    for result in results:
        samples = result.samples
        body.append(
            [
                result.plan.name,
                result.plan.budget,
                result.plan.steps,
                f"{samples['gradients'].mean():.0f}",
                per_cent(result.recognised, len(samples)),
                f"{result.frechet.distance[0]:.1f}",
                f"{result.frechet.excess[0]:.1f}",
                with_error(samples["energy"]),
                f"{samples['seconds'].mean():.3f}",
            ]
        )
    distance = f"{floor.distance[0]:.1f}"
    body.append(["real images", "", "", "", per_cent(real, tested), distance, "0", "", ""])
    header = ["kernel", "gradients a level", "K", "in all, an image", "recognised, %"]
    return table(
        [*header, "Fréchet distance", "over the floor", "energy, nats", "s an image"], body
    )


def level_table(results: Sequence[Result], num_levels: int) -> str:
    """Step scales and acceptances by level."""
    body = []
    for result in results:
        if result.warm_up is None:
            continue
        name = f"{result.plan.name}, {result.plan.budget}"
        scales = [f"{scale:.3g}" for scale in result.warm_up.step_scale]
        accepted = 100 * result.samples["acceptance"].mean(0)
        body.append([f"{name}: step scale", *scales])
        body.append([f"{name}: acceptance, %", *(f"{share:.1f}" for share in accepted)])
    header = ["kernel, gradients a level", *(f"t = {t}" for t in range(num_levels, 0, -1))]
    return table(header, body)


def warm_up_table(results: Sequence[Result]) -> str:
    """The cost of adapting, also as a number of images that the same plan draws for this cost."""
    body = []
    for result in results:
        if result.warm_up is not None:
            images = result.warm_up.gradients / result.samples["gradients"].mean()
            body.append(
                [
                    f"{result.plan.name}, {result.plan.budget}",
                    result.warm_up.gradients,
                    f"{result.warm_up.seconds:.1f}",
                    f"{images:.0f}",
                ]
            )
    header = ["kernel, gradients a level", "gradients, single images", "s", "as for so many images"]
    return table(header, body)


def parse_budgets(text: str) -> list[int]:
    """``"5,15"`` -> [5, 15]; InputError for anything else."""
    parts = dict.fromkeys(text.split(","))
    if not all(part.isdecimal() and int(part) for part in parts):
        raise InputError(
            f"--gradients must be integers of at least 1 separated by commas, got {text!r}"
        )
    return [int(part) for part in parts]


@click.command("kernels.py", cls=command.OneLineErrors, context_settings={"show_default": True})
@MODEL
@DATA
@EXTRACTOR
@click.option("--gradients", default="5,15,45", metavar="N,…", help="Gradients per transition.")
@click.option(
    "--leapfrog-steps",
    type=click.IntRange(1),
    default=2,
    help="Leapfrog steps in each step of HMC; 2 uses up any odd number of gradients.",
)
@click.option("--n", type=click.IntRange(2), default=500, help="Samples and test images.")
@draws(
    "Folder for samples, step scales, features and the classifier; an interrupted run resumes from it.",
    "Device for sampling and features.",
)
@writes("kernels.json")
def main(out: Path, **options: Any) -> None:
    """Quality, energy and time of three kernels at equal numbers of gradients."""
    check_target("--out", out)
    text, results = evaluate(**options)
    click.echo(text)
    write_json(out, results)


def evaluate(
    model: str | None,
    data: str,
    extractor_weights: Path | None,
    gradients: str,
    leapfrog_steps: int,
    n: int,
    batch_size: int,
    device: str,
    cache: Path,
    recipe: Recipe = Recipe(),  # noqa: B008 - a frozen dataclass
) -> tuple[str, dict[str, Any]]:
    """The text that the command prints, and the results that it writes."""
    plans = [
        Plan("initializer alone", find_kernel("langevin"), 0, 0),
        *(
            plan(name, budget, leapfrog_steps)
            for budget in parse_budgets(gradients)
            for name in NAMES
        ),
    ]
    subject = Subject.load(model, data, device)
    pipe, train, test = subject.pipe, subject.train, subject.test
    window(n, 0, min(len(train), len(test)))
    extractor = load_extractor("efficientnet-lite0", extractor_weights, pipe.device)
    judge, real, warning = subject.judge(cache, recipe)
    pools = SamplePools(pipe, subject.digest, cache, batch_size, progress=True)
    bench = Bench(pools)
    warm_ups = [
        bench.warm_up(asked) if asked.adapts else None
        for asked in tqdm(plans, desc="step scales", unit="kernel")
    ]
    samples = [
        bench.samples(asked, None if warm_up is None else warm_up.step_scale, n)
        for asked, warm_up in zip(plans, warm_ups, strict=True)
    ]
    features = FeatureCache(cache)
    sets = {
        f"{asked.name}, {asked.budget}": [
            features.rows(extractor, drawn["image"], f"features, {asked.name}")
        ]
        for asked, drawn in zip(plans, samples, strict=True)
    }
    reference = real_features(subject, features, extractor, [n], 1)
    floor, *distances = compare(*reference, sets, [n])
    labels = pools.labels(n).numpy()
    results = [
        Result(asked, warm_up, drawn, judge.share_recognised(drawn["image"], labels), distance)
        for asked, warm_up, drawn, distance in zip(plans, warm_ups, samples, distances, strict=True)
    ]

    num_levels = pipe.model.schedule.num_levels
    text = "\n".join(
        [
            f"{subject.title}, {num_levels} levels; {MADE_WITH}, {pipe.device.type}, "
            f"{torch.get_num_threads()} threads, {batch_size} images at a time.",
            "",
            f"{n} samples of all labels in turn, the same seeds throughout. At each level Langevin takes "
            "K gradients, MALA 1 + K, HMC 1 + L K; K is what the gradients allow. In all: counted, with "
            "the one of the last denoising. Langevin runs at the model's step sizes (step scale "
            f"{pipe.model.sampler.step_scale}), the others at adapted ones. Recognised: every label is "
            f"the one asked, judged by a classifier trained on the {len(train)} training images, ± "
            f"binomial standard error; real images: all {len(test)} test images. Energy: of x_0 at the "
            "lowest level, given the labels; mean ± standard error. Seconds: wall time of drawing on "
            "this machine as it was.",
            "",
            f"Fréchet distance of n = {n} samples to as many test images; floor: {n} training images.",
            f"Features: {extractor.convention}.",
            *(["", warning] if warning else []),
            "",
            result_table(results, real, len(test), floor),
            "",
            "Step scales multiply the schedule's step variance. Acceptance: mean over samples and steps.",
            "",
            level_table(results, num_levels),
            "",
            f"The warm-up that finds the step scales, with {ADAPT_IMAGES} chains, once per model and K:",
            "",
            warm_up_table(results),
        ]
    )
    return text, {
        **subject.facts(),
        "threads": torch.get_num_threads(),
        "device": pipe.device.type,
        "features": {"convention": extractor.convention, "weights": extractor.digest},
        "n": n,
        "judge": real,
        "warning": warning,
        "frechet_floor": floor.distance[0],
        "rows": [as_json(result) for result in results],
    }


def as_json(result: Result) -> dict[str, Any]:
    """All results of a row, with energies as mean and standard error."""
    samples = result.samples
    acceptance = samples["acceptance"].mean(0).tolist() if result.plan.steps else None
    energy, error = mean_error(samples["energy"])
    return {
        "kernel": result.plan.name,
        "budget": result.plan.budget,
        "steps": result.plan.steps,
        "gradients": float(samples["gradients"].mean()),
        "recognised": result.recognised,
        "frechet": result.frechet.distance[0],
        "frechet_excess": result.frechet.excess[0],
        "energy": {"mean": energy, "error": error},
        "seconds": float(samples["seconds"].mean()),
        "acceptance": acceptance,
        "warm_up": None if result.warm_up is None else asdict(result.warm_up),
    }


if __name__ == "__main__":
    main()
