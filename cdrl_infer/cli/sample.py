"""`cdrl-sample`: draw images from a model into a grid, a folder, or a film."""

from __future__ import annotations

import json
import re
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cdrl_infer.cli.command import (
    IMPORT,
    OneOfSeveral,
    open_model,
    open_target,
    parse_numbers,
    parse_options,
    parse_steps,
    precision_option,
    sharing,
    uses_a_model,
)
from cdrl_infer.cli.film import FILM_IMAGES, Film, draws_points, sheet
from cdrl_infer.errors import LONGEST, InputError, shown
from cdrl_infer.kernels.registry import KERNELS
from cdrl_infer.version import __version__

if TYPE_CHECKING:
    from cdrl_infer.conditions.labels import ImageLabel
    from cdrl_infer.drawing import CDRLPipelineOutput
    from cdrl_infer.kernels.base import Kernel
    from cdrl_infer.model import Attribute
    from cdrl_infer.pipeline import CDRLPipeline

ADAPT_IMAGES = 16  # chains of the warm-up


@click.command(
    "cdrl-sample", cls=OneOfSeveral, context_settings={"help_option_names": ["-h", "--help"]}
)
@uses_a_model
@IMPORT
@click.option(
    "-n", "--num-images", type=int, default=64, show_default=True, help="Number of images."
)
@click.option(
    "--label",
    "labels",
    multiple=True,
    metavar="NAME|INDEX|all|none",
    help="Class of the images, in any case. Repeatable: the images then take the classes in turn. For a "
    "model of several attributes: one value of each, in the model's order and separated by commas, such "
    "as 'dress,red,dark'; none leaves one open. [all classes in turn; several attributes: none]",
)
@click.option(
    "--guidance-scale",
    type=float,
    default=1.0,
    show_default=True,
    metavar="G",
    help="More than 1: images closer to the label, and less diverse (the paper's w is G - 1).",
)
@click.option(
    "--compose",
    metavar="EXPR",
    help="In place of labels: concepts joined by & (and), | (or), ~ (not), ^ (weight), such as "
    "'red & (dress | coat)'.",
)
@click.option("--inpaint", metavar="IMAGE", help="Repaint a part of this picture; see --mask.")
@click.option(
    "--mask",
    metavar="IMAGE",
    help="A picture that is white where --inpaint repaints, or a transparent layer opaque there.",
)
@click.option(
    "--resize", is_flag=True, help="Fit --inpaint and --mask of another size to the model's."
)
@click.option("--grey", is_flag=True, help="Take the brightness of a coloured --inpaint picture.")
@click.option("--seed", type=int, help="Seed of the first image; image k has seed + k. [a new one]")
@click.option(
    "--langevin-steps", metavar="K|K,…,K", help="Langevin steps per transition. [the model's]"
)
@click.option(
    "--kernel",
    "--sampler",
    "kernel_name",
    metavar="NAME",
    help=f"Transition kernel: {', '.join(KERNELS)}, or one that an imported module registers. mala and "
    "hmc are exact at each level, but need more steps. [the model's]",
)
@click.option(
    "--kernel-option",
    "kernel_options",
    multiple=True,
    metavar="KEY=VALUE",
    help="An option of the kernel, such as leapfrog_steps=10 for hmc. Repeatable.",
)
@click.option(
    "--step-scale",
    metavar="S|S,…,S|adapt",
    help="Multiplies the step variance of all transitions, or of each; adapt: a warm-up finds it, for "
    "a kernel that can reject a move. [the model's]",
)
@click.option(
    "--restarts",
    type=int,
    help="How many times each level is noised again and redone. [1 with --compose alone, else 0]",
)
@precision_option("convolutions of the chains", "the pictures")
@click.option(
    "--out",
    metavar="FILE.png|FOLDER",
    help="A .png file for one grid (a column per label); a folder for a PNG per image.",
)
@click.option(
    "--trajectory",
    metavar="FILE.gif",
    help=f"A film of the levels: noise, then proposal and refinement (up to {FILM_IMAGES} images).",
)
@click.version_option(__version__, prog_name="cdrl-sample")
def main(
    model: str | None,
    revision: str | None,
    variant: str | None,
    num_images: int,
    labels: tuple[str, ...],
    guidance_scale: float,
    compose: str | None,
    inpaint: str | None,
    mask: str | None,
    resize: bool,
    grey: bool,
    seed: int | None,
    langevin_steps: str | None,
    kernel_name: str | None,
    kernel_options: tuple[str, ...],
    step_scale: str | None,
    restarts: int | None,
    batch_size: int,
    device: str | None,
    precision: str,
    out: str | None,
    trajectory: str | None,
) -> None:
    """Draw images from an energy-based model: cdrl-sample --out samples.png.

    `torchrun --nproc_per_node 2 -m cdrl_infer sample …` and `accelerate launch -m cdrl_infer sample …`
    share the images out over processes; they are the same for any number of them.
    """
    with ExitStack() as stack:
        processes = stack.enter_context(sharing())
        if out is None and trajectory is None:
            raise InputError("nothing to write: give --out or --trajectory a file name")
        if (inpaint is None) != (mask is None):
            raise InputError("--inpaint and --mask go together: give both, or neither")
        if compose is not None and labels:
            raise InputError("--compose and --label exclude each other: leave one out")
        known = None
        if inpaint is not None and mask is not None:
            from cdrl_infer.images import decode_image

            known = Path(inpaint), Path(mask)
            for path in known:
                decode_image(path)  # one that cannot be read is refused before the model is loaded
        kernel = _kernel(kernel_name, kernel_options)
        steps = None if langevin_steps is None else parse_steps(langevin_steps)
        picture = film = None
        if out is not None and processes.main:
            picture = open_target(stack, out, ".png", folder=True)
        if trajectory is not None and processes.main:
            film = open_target(stack, trajectory, ".gif")
        pipe = open_model(model, revision, variant, device, processes)
        if picture and picture.is_dir() and draws_points(pipe.model):
            raise InputError(
                f"{pipe.name} draws points in the plane, and all of them are one scatter plot: expected "
                f"--out FILE.png, got a folder, {out!r}"
            )
        free = known is not None or compose is not None
        cycle = _labels(labels, pipe.model.labels)
        class_labels = cycle and [cycle[k % len(cycle)] for k in range(num_images)]
        columns = _columns(cycle, pipe.model.labels, free)
        recorder = Film(pipe.model, columns) if trajectory is not None else None
        alone = free and not cycle
        scale = processes.by_main(
            lambda: _step_scale(
                step_scale,
                pipe,
                kernel,
                steps,
                [None] if alone else cycle,
                1.0 if alone else guidance_scale,
            )
        )
        options: dict[str, Any] = {
            "num_images": num_images,
            "seeds": seed,
            "langevin_steps": steps,
            "kernel": kernel,
            "step_scale": scale,
            "batch_size": batch_size,
            "callback_on_level_end": recorder,
            "restarts": restarts,
            "guidance_scale": guidance_scale,
            "precision": precision,
            "processes": processes,
        }
        if known is not None:
            output = pipe.inpaint(
                *known,
                class_labels=class_labels,
                expression=compose,
                resize=resize,
                grey=grey,
                **options,
            )
        elif compose is not None:
            output = pipe.compose(compose, **options)
        else:
            output = pipe(class_labels=class_labels, **options)
        if recorder:
            recorder.gather(processes)
        facts = _facts(pipe, output, guidance_scale)
        kind = _write_pictures(picture, output, columns, facts) if picture else ""
        if film and recorder:
            recorder.write(film, output)
    if not processes.main:
        return
    if kernel is not None and kernel.optimal_acceptance is not None:
        rates = ", ".join(f"{rate:.2f}" for rate in output.info.acceptance.mean(0).tolist())
        click.echo(f"acceptance by transition, noisiest first: {rates}", err=True)
    drawn = "1 image" if num_images == 1 else f"{num_images:,} images"
    if picture:
        seeds = f"seed {seed}" if seed is not None else "new seeds, stored with the images"
        click.echo(f"{shown(out, LONGEST)}: {drawn} of {shown(pipe.name)}, {kind}, {seeds}")
    if film:
        click.echo(f"{shown(trajectory, LONGEST)}: the levels of {drawn} as a film")


def _facts(pipe: CDRLPipeline, output: CDRLPipelineOutput, guidance_scale: float) -> dict[str, str]:
    """How all images were drawn, for whoever reads the files later."""
    info = output.info
    facts = {
        "model": pipe.name,
        "version": f"cdrl {__version__}",
        "kernel": info.kernel,
        "langevin_steps": json.dumps(info.langevin_steps),
        "step_scale": json.dumps(info.step_scale),
        "restarts": json.dumps(info.restarts),
    }
    if info.expression is not None:
        facts["expression"] = info.expression  # with the guidance scale as its weight
    else:
        facts["guidance_scale"] = json.dumps(guidance_scale)
    return facts


def _kernel(name: str | None, texts: tuple[str, ...]) -> Kernel[Any] | None:
    """The kernel that --kernel and --kernel-option ask for; None for the model's."""
    from cdrl_infer.config import from_config
    from cdrl_infer.options import find_kernel

    if not texts:
        return None if name is None else find_kernel(name)
    if name is None:
        raise InputError("--kernel-option needs --kernel: which kernel's option is it?")
    options = parse_options("--kernel-option", texts)
    return from_config(KERNELS.find(name, "--kernel"), options, f"--kernel-option of {name}")


def _step_scale(
    text: str | None,
    pipe: CDRLPipeline,
    kernel: Kernel[Any] | None,
    steps: int | tuple[int, ...] | None,
    cycle: list[ImageLabel] | None,
    guidance_scale: float,
) -> float | tuple[float, ...] | None:
    """The numbers given, or those that a warm-up finds with the same labels and steps."""
    if text != "adapt":
        return None if text is None else parse_numbers("--step-scale", text)
    if kernel is None or kernel.optimal_acceptance is None:
        raise InputError(
            "--step-scale adapt needs a --kernel that can reject a move, such as mala or hmc"
        )
    labels = cycle and [cycle[k % len(cycle)] for k in range(ADAPT_IMAGES)]
    found = pipe.adapt_step_scale(
        kernel,
        num_images=ADAPT_IMAGES,
        class_labels=labels,
        guidance_scale=guidance_scale,
        langevin_steps=steps,
    )
    return found.step_scale


def _columns(
    cycle: list[ImageLabel] | None, attributes: tuple[Attribute, ...], free: bool
) -> int | None:
    """One column for each label that the images take in turn; None: a nearly square grid."""
    count = len(cycle or ())
    if cycle is None and not free and len(attributes) == 1:
        count = len(attributes[0].values)
    return count if 1 < count <= 16 else None


def _labels(texts: tuple[str, ...], attributes: tuple[Attribute, ...]) -> list[ImageLabel] | None:
    """The labels that the images take in turn; None if there are no --label options."""
    from cdrl_infer.conditions.labels import example, named

    names = [attribute.values for attribute in attributes]
    if not texts:
        return None
    cycle: list[ImageLabel] = []
    for text in texts:
        if len(names) > 1 and text.lower() != "none":
            parts = [part.strip() for part in text.split(",")]
            if len(parts) != len(names):
                order = ",".join(attribute.name for attribute in attributes)
                first = ",".join(example(attributes))
                raise InputError(
                    f"this model has {len(names)} attributes: expected --label '{order}', such as "
                    f"--label '{first}', with none for one that is open, got {text!r}"
                )
            cycle.append([_label(part, sum(names, ())) for part in parts])
        elif len(names) == 1 and text.lower() == "all" and not named(text, names[0]):
            cycle.extend(names[0])
        else:
            cycle.append(_label(text, sum(names, ())))
    return cycle


def _label(text: str, names: tuple[str, ...]) -> str | int | None:
    """A name as it is, another number as an index, "none" as not given."""
    from cdrl_infer.conditions.labels import named

    if named(text, names):
        return text
    if text.lower() == "none":
        return None
    return int(text) if re.fullmatch(r"-?\d+", text) else text


def _write_pictures(
    picture: Path, output: CDRLPipelineOutput, columns: int | None, common: dict[str, str]
) -> str:
    """One PNG per image into a folder, or one grid into a file; returns which, in words."""
    from cdrl_infer.images import save_png
    from cdrl_infer.showing import are_points

    images, seeds = list(output.images), output.seeds or []
    if not picture.is_dir():
        own = {"seeds": json.dumps(seeds), "labels": json.dumps(output.labels)}
        save_png(sheet(images, columns), picture, {**own, **common})
        return "one scatter plot" if are_points(images) else "one grid"
    labels = output.labels or [None] * len(images)
    for k, (image, seed, label) in enumerate(zip(images, seeds, labels, strict=True)):
        own = {"seed": str(seed), "label": label if isinstance(label, str) else json.dumps(label)}
        save_png(image, picture / f"{k:05d}.png", {**own, **common})
    return "a PNG each"
