"""The pictures of a model beside those of a DDPM: quality against the seconds that an image takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
import torch
from classifier import Recipe
from kept import kept
from ood_autoencoder import count_values
from options import DATA, EXTRACTOR, MODEL, draws, writes
from peers_ddpm import NOISE_STEPS, Diffusion, State, diffusers, load, step_flops
from peers_train import PETA, training_flops
from quality import Comparison, compare, real_features
from report import check_target, per_cent, plus_minus, spread, table, write_json
from subject import MADE_WITH, VERSIONS, Bytes, SamplePools, Subject, steps_name
from turns import in_turns

from cdrl_infer.cli.command import OneLineErrors
from cdrl_infer.errors import InputError
from cdrl_infer.files import replaced_file
from cdrl_train.evaluation.cache import FeatureCache
from cdrl_train.evaluation.extractors import load_extractor
from cdrl_train.evaluation.sampling import Samples, window

OURS = "the model, "


class Method(NamedTuple):
    """A way to draw images.

    Attributes:
        images: (repeat, count) -> the first samples of a repeat, from the disk as far as they are there.
        draw: count -> as many samples, always drawn.
    """

    name: str
    images: Callable[[int, int], Bytes]
    draw: Callable[[int], Bytes]


class Result(NamedTuple):
    """How good and how fast a method is.

    Attributes:
        seconds: of the processor for an image, a value per round.
        recognised: share of the samples of all repeats.
    """

    name: str
    seconds: list[float]
    recognised: float
    frechet: Comparison


def own_methods(
    subject: Subject, all_steps: Sequence[str], cache: Path, batch_size: int
) -> list[Method]:
    """The model with several K."""
    pools = SamplePools(subject.pipe, subject.digest, cache, batch_size, progress=True)
    methods = []
    for steps in dict.fromkeys(map(subject.steps, all_steps)):
        samples = Samples(subject.pipe, langevin_steps=steps, batch_size=batch_size)
        methods.append(
            Method(
                f"{OURS}{steps_name(steps)}",
                partial(pools.images, steps),
                partial(samples.draw, 0, 0),
            )
        )
    return methods


def ddpm_methods(
    state: State, all_steps: Sequence[int], full: bool, cache: Path, batch_size: int
) -> list[Method]:
    """DDIM with several numbers of steps, and all steps of DDPM if ``full``."""
    plans = [Diffusion(state, steps, batch_size=batch_size) for steps in dict.fromkeys(all_steps)]
    if full:
        plans.append(Diffusion(state, NOISE_STEPS, ancestral=True, batch_size=batch_size))

    def images(plan: Diffusion, repeat: int, count: int) -> Bytes:
        return kept(
            cache / f"samples-{plan.file_name}-repeat{repeat}.npy",
            count,
            partial(plan.draw, repeat),
            np.dtype((np.uint8, state.shape)),
            4 * batch_size,
            f"{plan.name}, repeat {repeat}",
        )

    return [Method(plan.name, partial(images, plan), partial(plan.draw, 0, 0)) for plan in plans]


def result_table(results: Sequence[Result], judged: int, real: float, tested: int) -> str:
    """A line per method; the last is for real images."""
    rows = [
        [
            one.name,
            plus_minus([1000 * s for s in one.seconds]),
            per_cent(one.recognised, judged),
            plus_minus(one.frechet.distance),
            plus_minus(one.frechet.excess),
        ]
        for one in results
    ]
    rows.append(["real test images", "", per_cent(real, tested), "", "0"])
    header = ["samples", "ms an image", "recognised, %", "Fréchet distance", "over the floor"]
    return table(header, rows)


def draw_curves(results: Sequence[Result], real: float, file: Path) -> None:
    """Plot the distance over the floor and the recognised share against the time of an image."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for label, mine in (("this package", True), ("diffusers", False)):
        some = [one for one in results if one.name.startswith(OURS) == mine]
        x = [spread(one.seconds)[0] for one in some]
        curves = ([spread(o.frechet.excess)[0] for o in some], [100 * o.recognised for o in some])
        for axis, y in zip(axes, curves, strict=True):
            axis.plot(x, y, marker="o", label=label)
            for one, *place in zip(some, x, y, strict=True):
                name = one.name.removeprefix(OURS)
                axis.annotate(name, place, fontsize=7, xytext=(4, 4), textcoords="offset points")
    axes[0].set(ylabel="Fréchet distance over the floor", yscale="log")
    for which in (axes[0].yaxis.set_major_formatter, axes[0].yaxis.set_minor_formatter):
        which(ticker.ScalarFormatter())
    axes[1].set(ylabel="recognised, %")
    axes[1].axhline(100 * real, color="grey", linestyle=":", label="real test images")
    for axis in axes:
        axis.set(xlabel="seconds of one core for an image", xscale="log")
        axis.margins(x=0.2)  # for the names
        axis.legend(fontsize=8)
    with replaced_file(file) as new:
        figure.savefig(new, format="png", dpi=110)
    pyplot.close(figure)


@click.command("pictures", cls=OneLineErrors, context_settings={"show_default": True})
@MODEL
@DATA
@EXTRACTOR
@click.option(
    "--ddpm",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=Path("runs/ddpm"),
    help="Folder of the run of `peers.py train`.",
)
@click.option(
    "--langevin-steps",
    "own_steps",
    metavar="K|K,…,K|model",
    multiple=True,
    default=("0", "5", "15"),
)
@click.option(
    "--ddim-steps",
    type=click.IntRange(1, NOISE_STEPS),
    multiple=True,
    default=(10, 20, 50, 100),
)
@click.option("--full-chain", is_flag=True, help=f"Also DDPM with all {NOISE_STEPS} steps.")
@click.option("--n", "count", type=click.IntRange(2), default=500, help="Samples of a repeat.")
@click.option("--seeds", type=click.IntRange(1), default=3, help="Repeats.")
@click.option("--timed-images", type=click.IntRange(1), default=32, help="Of each in a round.")
@click.option("--rounds", type=click.IntRange(1), default=3, help="Of timing.")
@click.option("--figure", type=click.Path(dir_okay=False, path_type=Path), help="Plot the curves.")
@draws("Samples, features and the classifier; an interrupted run resumes from there.", None)
@writes("pictures.json")
def main(out: Path, figure: Path | None, **options: Any) -> None:
    """Quality and time of an image, of the model and of a DDPM trained by `peers.py train`."""
    check_target("--out", out)
    check_target("--figure", figure)
    results, text, written = evaluate(**options)
    click.echo(text)
    write_json(out, written)
    if figure is not None:
        draw_curves(results, written["real_test_images"], figure)


def evaluate(
    model: str | None,
    data: str,
    extractor_weights: Path | None,
    ddpm: Path,
    own_steps: Sequence[str],
    ddim_steps: Sequence[int],
    full_chain: bool,
    count: int,
    seeds: int,
    timed_images: int,
    rounds: int,
    batch_size: int,
    cache: Path,
    recipe: Recipe = Recipe(),  # noqa: B008 - a frozen dataclass
) -> tuple[list[Result], str, dict[str, Any]]:
    """What the plot shows, the text that the command prints, and the results that it writes."""
    subject, state = Subject.load(model, data, "cpu"), load(ddpm)
    window(count, 0, min(len(subject.train), len(subject.test)))
    if state.shape != tuple(subject.train.images.shape[1:]):
        raise InputError(f"{ddpm} draws images of shape {state.shape}, the data have other ones")
    extractor = load_extractor("efficientnet-lite0", extractor_weights, torch.device("cpu"))
    judge, real, warning = subject.judge(cache, recipe)
    features = FeatureCache(cache)
    methods = [
        *own_methods(subject, own_steps, cache, batch_size),
        *ddpm_methods(state, ddim_steps, full_chain, cache, batch_size),
    ]
    work = {method.name: partial(method.draw, timed_images) for method in methods}
    timed = in_turns(work, rounds, lambda text: click.echo(f"time: {text}", err=True))
    drawn = {m.name: [m.images(repeat, count) for repeat in range(seeds)] for m in methods}
    asked = SamplePools(subject.pipe, subject.digest, cache).labels(count).numpy()
    distances = compare(
        *real_features(subject, features, extractor, [count], seeds),
        {n: [features.rows(extractor, images) for images in sets] for n, sets in drawn.items()},
        [count],
    )
    floor, *found = distances
    results = [
        Result(
            method.name,
            [one.seconds / timed_images for one in timed[method.name]],
            float(np.mean([judge.share_recognised(x, asked) for x in drawn[method.name]])),
            row,
        )
        for method, row in zip(methods, found, strict=True)
    ]
    facts = _facts(subject, state)
    text = "\n".join(
        [
            f"{subject.title} beside a UNet2DModel of diffusers {facts['versions']['diffusers']}; "
            f"{MADE_WITH}.",
            _equality(facts),
            f"Time: of one thread, {timed_images} images at once, {rounds} rounds in turns, processor "
            f"time, float32. Samples: {seeds} x {count}, classes in turn; ± standard deviation over "
            f"rounds and repeats, binomial for shares. Floor: {plus_minus(floor.distance)}.",
            f"Features: {extractor.convention}.",
            *([warning] if warning else []),
            "",
            result_table(results, seeds * count, real, len(subject.test)),
        ]
    )
    rows = [{**one._asdict(), "frechet": one.frechet._asdict()} for one in results]
    written = {**facts, "n": count, "floor": floor.distance, "real_test_images": real}
    written |= {"features": extractor.convention, "weights": extractor.digest, "results": rows}
    return results, text, written


def _facts(subject: Subject, state: State) -> dict[str, Any]:
    """Sizes and costs of both."""
    each = step_flops(state.recipe, state.shape, state.classes)
    try:
        flops = training_flops(subject.pipe.model)
    except InputError:
        flops = None
    return {
        **subject.facts(
            values=count_values(*subject.pipe.model.networks.values()), training_flops=flops
        ),
        "versions": {**VERSIONS, "diffusers": diffusers().__version__},
        "ddpm": {
            "values": count_values(state.average),
            "training_flops": each * state.steps,
            "share": state.share,
            "images": state.steps * state.recipe.batch_size,
            "hours": state.seconds / 3600,
        },
    }


def _equality(facts: dict[str, Any]) -> str:
    mine, other = facts["model"], facts["ddpm"]
    own = mine["training_flops"]
    cost = "of unknown cost" if own is None else f"trained with {own / PETA:.3g} PFLOP"
    part = "" if other["share"] == 1 else f", ONLY {100 * other['share']:.0f} % OF ITS TRAINING"
    return (
        f"The model: {mine['values']:,} values, {cost}. The DDPM: {other['values']:,} values, trained "
        f"with {other['training_flops'] / PETA:.3g} PFLOP, {other['images']:,} images{part}."
    )
