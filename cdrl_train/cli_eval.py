"""``cdrl-eval``: from arguments to a request or a calibration."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from cdrl_infer.cli.command import (
    IMPORT,
    OneOfSeveral,
    open_target,
    parse_steps,
    sharing,
    uses_a_model,
)
from cdrl_infer.errors import LONGEST, CheckpointError, InputError, shown
from cdrl_infer.files import replaced_file
from cdrl_infer.scoring.registry import SCORES
from cdrl_infer.version import __version__
from cdrl_train.data.registry import source_help
from cdrl_train.evaluation.registry import EXTRACTORS

if TYPE_CHECKING:
    import torch

    from cdrl_infer.processes import Processes
    from cdrl_train.evaluation.evaluate import Evaluation
    from cdrl_train.evaluation.report import Report
    from cdrl_train.evaluation.request import Request

STORING = {"model", "variant", "source", "split", "seed", "batch_size", "device"}
STORED = {  # the options of what stores a result beside the weights
    "--calibrate": STORING | {"to_calibrate", "count", "score"},
    "--normalise": STORING | {"to_normalise", "per_class", "chains", "moves"},
}


@click.command(
    "cdrl-eval", cls=OneOfSeveral, context_settings={"help_option_names": ["-h", "--help"]}
)
@uses_a_model
@IMPORT
@click.option(
    "--data",
    "source",
    required=True,
    metavar="DATA",
    help=f"Real images to compare with: {source_help()}.",
)
@click.option(
    "--split",
    type=click.Choice(["train", "test"]),
    help="Split of the data, if it has any. [test]",
)
@click.option(
    "-n",
    "--n",
    "count",
    type=int,
    metavar="N",
    help="Number of samples, and of real images to compare with. [5000, or all if fewer]",
)
@click.option(
    "--seed", type=int, default=0, show_default=True, help="Seed of the images and the noise."
)
@click.option(
    "--metrics",
    metavar="NAME,…",
    help="Any of fid, kid, is, prc, ood, accuracy, stationarity, likelihood. [the first six]",
)
@click.option(
    "--repeats",
    type=int,
    default=1,
    show_default=True,
    metavar="R",
    help="Measure R times, with other seeds and images, for error bars.",
)
@click.option(
    "--langevin-steps",
    metavar="K|K,K,…",
    help="Langevin steps per transition. [the model's]",
)
@click.option(
    "--guidance-scale",
    type=float,
    default=1.0,
    show_default=True,
    metavar="G",
    help="Weight of the labels; 1 for plain conditional samples.",
)
@click.option(
    "--extractor",
    default="inception-v3-compat",
    show_default=True,
    metavar="NAME",
    help=f"Network that computes features: {' or '.join(EXTRACTORS)}.",
)
@click.option(
    "--extractor-weights",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Weights of the extractor. [Inception's are downloaded, EfficientNet's installed]",
)
@click.option(
    "--floor/--no-floor",
    default=True,
    help="Also measure real images of the other split, as a floor. [yes]",
)
@click.option(
    "--outside",
    multiple=True,
    metavar="NAME=DATA",
    help="Images that ood tells from the data; may be repeated.",
)
@click.option(
    "--score",
    metavar="NAME",
    help=f"Anomaly score for ood: {', '.join(SCORES)}. [the model's own, else combined] With "
    "--calibrate: the model's own score from now on. [as before]",
)
@click.option(
    "--classifier",
    type=click.Path(path_type=Path),
    metavar="FILE.pt2",
    help="Classifier for accuracy, by torch.export. Its code is run: use trusted files only.",
)
@click.option(
    "--chains",
    type=int,
    default=16,
    show_default=True,
    metavar="N",
    help="Chains of stationarity, from data and from samples each; of --normalise, up and down each, "
    "32 if not given.",
)
@click.option(
    "--moves",
    type=int,
    default=200,
    show_default=True,
    metavar="N",
    help="Moves of each chain of stationarity; of --normalise at each level, 24 if not given.",
)
@click.option(
    "--plot", metavar="FILE.png", help="Draw the chains of stationarity. [needs cdrl[score]]"
)
@click.option(
    "--cache",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Folder for features of real images. [~/.cache/cdrl]",
)
@click.option(
    "--out", metavar="FILE.json", help="Write all results and what they depend on to a file."
)
@click.option(
    "--update-card", is_flag=True, help="Write the results into FOLDER/README.md, its model-index."
)
@click.option(
    "--calibrate",
    "to_calibrate",
    is_flag=True,
    help="Compare nothing; write the statistics that cdrl-score needs into FOLDER.",
)
@click.option(
    "--normalise",
    "to_normalise",
    is_flag=True,
    help="Compare nothing; write the normalisers that log-likelihoods need into FOLDER.",
)
@click.option(
    "--per-class",
    is_flag=True,
    help="With --normalise: also one for each value of each label, for as long again.",
)
@click.version_option(__version__, prog_name="cdrl-eval")
def main(
    model: str | None,
    device: str | None,
    to_calibrate: bool,
    to_normalise: bool,
    per_class: bool,
    update_card: bool,
    **options: Any,
) -> None:
    """Measure a model: cdrl-eval --model my-model --data good.npz --out results.json

    Samples, with the labels in turn, are compared with as many real images: fid, kid, is and prc
    (precision and recall) use features, accuracy uses a classifier of yours; ood measures how well a
    score tells real images from others; stationarity runs long chains from noised images, which stay
    there if the energies are densities. Each result comes with everything that it depends on.

    --calibrate measures the features of N images of the data, chosen by --seed, and writes them beside
    the weights: FOLDER/statistics.safetensors. With them cdrl-score can say how many in-distribution
    images score higher. Use images that the model was not trained on: the test split, or a folder.

    --normalise computes the normalisers of the model's levels and writes FOLDER/normalisers.json. With
    them --metrics likelihood and pipe.log_likelihood give bits per dimension. Half of its chains begin
    at images of the data. It takes minutes.

    `accelerate launch -m cdrl_train.cli_eval …` shares the work out over processes.

    Exit codes: 0 done, 2 bad input, 3 numbers that are not finite, 4 the network could not be
    reached, 5 the disk is full, 130 interrupted.
    """
    if to_normalise:
        _store("--normalise", model, options, device=device, per_class=per_class)
    elif per_class:
        raise InputError("--per-class is for --normalise: add it, or leave --per-class out")
    elif to_calibrate:
        _store("--calibrate", model, options, device=device)
    else:
        _evaluate(model, device, update_card, options)


def _evaluate(
    model: str | None, device: str | None, update_card: bool, options: dict[str, Any]
) -> None:
    """Measure, print, and write what was asked."""
    from cdrl_train.evaluation.card import card_file

    out, plot = options.pop("out"), options.pop("plot")
    card: Path | None = None
    with ExitStack() as stack:
        processes = stack.enter_context(sharing())
        request = _request(model, options)
        if plot is not None and "stationarity" not in (request.metrics or ()):
            raise InputError("--plot draws the chains of stationarity: add --metrics stationarity")
        if update_card:
            card = card_file(model)
        place = processes.device(device)
        report = _measured(stack, request, processes, place, out, plot, card)
    if processes.main:
        click.echo(report.text())
        for path in filter(None, [out, plot, card]):
            click.echo(f"written: {shown(path, LONGEST)}", err=True)


def _request(model: str | None, options: dict[str, Any]) -> Request:
    from cdrl_train.evaluation.cache import default_cache
    from cdrl_train.evaluation.request import Request

    metrics, steps = options.pop("metrics"), options.pop("langevin_steps")
    return Request(
        model=model,
        cache=options.pop("cache") or default_cache(),
        split=options.pop("split") or "test",
        metrics=None if metrics is None else tuple(metrics.split(",")),
        langevin_steps=None if steps is None else parse_steps(steps),
        weights=options.pop("extractor_weights"),
        **options,
    )


def _measured(
    stack: ExitStack,
    request: Request,
    processes: Processes,
    device: torch.device,
    out: str | None,
    plot: str | None,
    card: Path | None,
) -> Report:
    """The report, written to the files; these are opened before any work and appear at the end."""
    from cdrl_infer.scoring.plots import new_figure
    from cdrl_train.evaluation.card import updated_card
    from cdrl_train.evaluation.evaluate import Evaluation

    figure = None if plot is None or not processes.main else new_figure()

    def prepare() -> tuple[Evaluation, Path | None, Path | None, Path | None]:
        table = picture = new_card = None
        if processes.main and out is not None:
            table = open_target(stack, out, ".json")
        if figure is not None and plot is not None:
            picture = open_target(stack, plot, ".png")
        if processes.main and card is not None:
            new_card = _opened(stack, card)
        evaluation = Evaluation.prepare(request, device)
        if card is not None:
            updated_card(evaluation.pipe, card)  # raises for a card that cannot be edited
        return evaluation, table, picture, new_card

    evaluation, table, picture, new_card = processes.alike(prepare)
    report = evaluation.run(processes)
    if figure is not None and picture is not None and evaluation.stationarity is not None:
        evaluation.stationarity.draw(figure)
        figure.savefig(picture, format="png", dpi=120)
    if table is not None:
        text = json.dumps(report.to_dict(), indent=2, ensure_ascii=False, allow_nan=False)
        table.write_bytes((text + "\n").encode("utf-8", "backslashreplace"))  # JSON's own escapes
    if card is not None and new_card is not None:
        new_card.write_bytes(updated_card(evaluation.pipe, card, report))
    return report


def _opened(stack: ExitStack, target: Path) -> Path:
    try:
        return stack.enter_context(replaced_file(target))
    except OSError as error:
        raise CheckpointError(f"cannot write {target}: {error.strerror}") from error


def _store(purpose: str, model: str | None, options: dict[str, Any], **more: Any) -> None:
    """Write what --calibrate or --normalise computes into the model's folder."""
    from cdrl_train.storing import calibrate_folder, normalise_folder

    _refuse_what_measures(purpose)
    if model is None:
        raise InputError(f"{purpose} writes into the model's folder: name it, --model FOLDER")
    names = [name for name in STORED[purpose] & options.keys() if not _is_default(name)]
    given = {name: options[name] for name in names}
    work = calibrate_folder if purpose == "--calibrate" else normalise_folder
    click.echo(work(Path(model), **given, **more))


def _refuse_what_measures(purpose: str) -> None:
    """`InputError` if an option was given that --calibrate or --normalise does not use."""
    names = {"to_calibrate": "calibrate", "to_normalise": "normalise", "count": "n"}
    for name in click.get_current_context().params.keys() - STORED[purpose]:
        if not _is_default(name):
            option = "--" + names.get(name, name).replace("_", "-")
            raise InputError(f"{purpose} measures nothing: leave {option} out")


def _is_default(name: str) -> bool:
    """Whether the user did not give this option."""
    return click.get_current_context().get_parameter_source(name) is ParameterSource.DEFAULT


if __name__ == "__main__":
    main()
