"""`cdrl-score`: how odd is each image for a model? It writes a table, a histogram and heat maps."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from cdrl_infer.cli.command import (
    IMPORT,
    OneOfSeveral,
    open_model,
    open_target,
    precision_option,
    sharing,
    uses_a_model,
)
from cdrl_infer.cli.pictures import (
    Pictures,
    Skipped,
    check_pictures,
    find_images,
    keep_inputs,
    overlay_names,
    read_headers,
)
from cdrl_infer.errors import InputError, NumericalError, shown
from cdrl_infer.scoring.registry import SCORES
from cdrl_infer.version import __version__

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

    from cdrl_infer.device import Precision
    from cdrl_infer.images import Header
    from cdrl_infer.processes import Processes
    from cdrl_infer.scoring.scorer import Plan, ScoreOutput, Scorer


class Row(NamedTuple):
    """One image's line in the table."""

    file: str
    score: float
    p_value: float | None  # None if the model is not calibrated, or not with this seed
    anomalous: bool | None  # None without --threshold-fpr


@click.command(
    "cdrl-score", cls=OneOfSeveral, context_settings={"help_option_names": ["-h", "--help"]}
)
@click.argument("images", nargs=-1, required=True, metavar="IMAGES...")
@uses_a_model
@IMPORT
@click.option(
    "--score",
    "score_name",
    metavar="NAME",
    help=f"What to measure: {', '.join(SCORES)}. All but energy, score-norm and complexity need a "
    "calibrated model. [the model's own, else combined]",
)
@click.option(
    "--level",
    type=int,
    metavar="T",
    help="The transition, for energy and score-norm. [1, least noise]",
)
@click.option("--seed", type=int, help="Seed of the noise. [that of the calibration, else 0]")
@click.option(
    "--threshold-fpr",
    type=float,
    metavar="SHARE",
    help="Say yes or no, so that this share of in-distribution images is called anomalous.",
)
@click.option("--resize", is_flag=True, help="Fit images of another size to the model's.")
@click.option(
    "--grey", is_flag=True, help="Take the brightness of coloured images, for a model of grey ones."
)
@precision_option("convolutions", "scores")
@click.option(
    "--out", metavar="FILE.csv|FILE.json", help="Where to write the table. [CSV on stdout]"
)
@click.option("--json", "as_json", is_flag=True, help="Write JSON to stdout.")
@click.option(
    "--plot", metavar="FILE.png", help="Draw a histogram beside that of in-distribution images."
)
@click.option(
    "--heatmap", metavar="FOLDER", help="Show where the images are odd: one PNG per image."
)
@click.version_option(__version__, prog_name="cdrl-score")
def main(
    images: tuple[str, ...],
    model: str | None,
    revision: str | None,
    variant: str | None,
    device: str | None,
    batch_size: int,
    score_name: str | None,
    level: int | None,
    seed: int | None,
    threshold_fpr: float | None,
    resize: bool,
    grey: bool,
    precision: Precision,
    out: str | None,
    as_json: bool,
    plot: str | None,
    heatmap: str | None,
) -> int:
    """Say how odd images are for a model: cdrl-score --model my-model images/*.png

    IMAGES are files, folders (with their sub-folders) and patterns. The table has a row per image:
    file, score (higher = more anomalous), p_value (the share of in-distribution images that score
    higher) and anomalous. Table, histogram and heat maps appear when all images are scored, or not
    at all.

    `torchrun --nproc_per_node 2 -m cdrl_infer score …` and `accelerate launch -m cdrl_infer score …`
    share the images out over processes; the table is the same for any number of them.

    Exit codes: 0 done, 1 some files could not be read (they are named, the results of the others
    are written), 2 bad input, 3 scores that are not finite, 4 the Hub could not be reached, 5 the
    disk is full, 130 interrupted.
    """
    with ExitStack() as stack:
        processes = stack.enter_context(sharing())
        if as_json and out is not None:
            raise InputError(
                "--json writes to stdout; with --out leave it out and name a .csv or .json file"
            )
        if score_name is not None:
            SCORES.find(score_name, "--score")
        from cdrl_infer.arguments import positive
        from cdrl_infer.device import resolved_precision
        from cdrl_infer.scoring import plots
        from cdrl_infer.scoring.scorer import Scorer

        figure = None if plot is None else plots.new_figure()
        skipped = Skipped()
        headers, folders = processes.by_main(lambda: _headers(images, skipped))
        names = {} if heatmap is None else overlay_names(list(headers))
        outputs = [Path(target) for target in (out, plot) if target is not None]
        outputs += [Path(heatmap or "", name) for name in names.values()]
        keep_inputs(outputs, headers)
        table = picture = folder = None
        if out is not None and processes.main:
            table = open_target(stack, out, ".csv", ".json")
        if plot is not None and processes.main:
            picture = open_target(stack, plot, ".png")
        if heatmap is not None:
            folder = processes.by_main(lambda: open_target(stack, heatmap, folder=True))
        pipe = open_model(model, revision, variant, device, processes)
        scorer = Scorer(pipe.model, pipe.name)
        check_pictures(scorer, headers, resize, grey, processes)
        plan = scorer.plan(
            score_name,
            level=level,
            seed=seed,
            threshold_fpr=threshold_fpr,
            precision=processes.by_main(lambda: resolved_precision(precision, scorer.device)),
        )
        batch_size = positive("batch_size", batch_size)
        made_with = _facts(scorer, plan, level, threshold_fpr)
        if processes.main:
            for line in folders:
                click.echo(f"cdrl-score: {line}", err=True)
        pictures = Pictures(scorer.model.image.shape, resize, grey, skipped)

        def score_part(part: Sequence[Path], first: int) -> list[Row]:
            pixels = pictures.read(part)
            if not pixels:
                return []
            try:
                found = scorer.scored(plan, list(pixels.values()), first, folder is not None)
            except NumericalError as error:
                raise NumericalError(f"{part[0]} … {part[-1]}: {error}") from None
            rows = _rows([*pixels], found)
            if folder is not None:
                _write_overlays(folder, names, pixels, rows, found.maps, made_with)
            return rows

        rows = _each_part(processes, list(headers), batch_size, score_part)
        unread = sum(processes.together(lambda: skipped.count))
        if not rows:
            skipped.stop(processes.main)
        as_json = as_json if table is None else table.suffix.lower() == ".json"
        text = _json(rows, made_with) if as_json else _csv(rows)
        if picture is not None and figure is not None:
            _draw(figure, rows, scorer, made_with)
            plots.save_figure(figure, picture, _texts(made_with))
        if table is not None:
            table.write_bytes(text)
    if processes.main:
        if out is None:
            click.echo(_visible(text) if sys.stdout.isatty() else text, nl=False)
        _tell(rows, scorer, made_with)
    return 1 if unread else 0


def _headers(given: Sequence[str], skipped: Skipped) -> tuple[dict[Path, Header], list[str]]:
    """The headers of all files that have one, and a line about each folder."""
    files, folders = find_images(given, skipped)
    headers = read_headers(files, skipped)
    if not headers:
        skipped.stop()
    return headers, folders


def _each_part(
    processes: Processes,
    files: Sequence[Path],
    batch_size: int,
    work: Callable[[Sequence[Path], int], list[Row]],
) -> list[Row]:
    """The rows of all files, in order; processes share batches of files.

    A batch has the same files for any number of processes, and so do the rows all their bits.
    """
    from tqdm import tqdm

    starts = range(0, len(files), batch_size)

    def mine() -> list[tuple[int, list[Row]]]:
        found = []
        hidden = None if processes.main else True
        with tqdm(total=len(files), unit="image", disable=hidden) as bar:
            for first in processes.mine(starts):
                part = files[first : first + batch_size]
                found.append((first, work(part, first)))
                bar.update(processes.advance(len(part), len(files) - bar.n))
        return found

    parts = sorted(part for found in processes.together(mine) for part in found)
    return [row for _, rows in parts for row in rows]


def _facts(
    scorer: Scorer, plan: Plan, level: int | None, threshold_fpr: float | None
) -> dict[str, Any]:
    """What the results were made with, for whoever reads them later."""
    return {
        "model": scorer.name,
        "version": f"cdrl {__version__}",
        "score": plan.score,
        "level": level,
        "seed": plan.seed,
        "precision": plan.precision,
        "threshold_fpr": threshold_fpr,
        "threshold": plan.threshold,
    }


def _rows(paths: Sequence[Path], found: ScoreOutput) -> list[Row]:
    nothing = [None] * len(paths)
    p_values = nothing if found.p_values is None else found.p_values.tolist()
    anomalous = nothing if found.anomalous is None else found.anomalous.tolist()
    files = list(map(str, paths))
    return [
        Row(*cells) for cells in zip(files, found.scores.tolist(), p_values, anomalous, strict=True)
    ]


def _write_overlays(
    folder: Path,
    names: Mapping[Path, str],
    pictures: Mapping[Path, Tensor],
    rows: Sequence[Row],
    maps: Tensor | None,
    made_with: Mapping[str, object],
) -> None:
    from cdrl_infer.images import save_png, to_pil
    from cdrl_infer.scoring.plots import overlay

    heats = () if maps is None else maps
    for (path, pixels), row, heat in zip(pictures.items(), rows, heats, strict=True):
        told = f"{made_with['score']} {row.score:.4g}"
        told += "" if row.p_value is None else f", p {row.p_value:.2g}"
        plain = "".join(c if c.isascii() and c.isprintable() else "?" for c in path.name)
        panel = overlay(to_pil(2 * pixels[None] - 1)[0], heat, f"{plain}: {told}")
        facts = {"file": row.file, "value": row.score, "p_value": row.p_value, **made_with}
        save_png(panel, folder / names[path], _texts(facts))


def _draw(
    figure: Figure, rows: Sequence[Row], scorer: Scorer, made_with: Mapping[str, Any]
) -> None:
    """Draw the histogram, beside that of the calibration if there are p-values."""
    import numpy as np

    from cdrl_infer.scoring.plots import Reference, Threshold, draw_histogram

    name, statistics = made_with["score"], scorer.model.statistics
    reference = threshold = None
    if statistics is not None and rows[0].p_value is not None:
        values = statistics.scores(name, made_with["level"] or 1).numpy()
        reference = Reference(values, f"in distribution: {statistics.data}")
    if made_with["threshold"] is not None:
        threshold = Threshold(made_with["threshold"], made_with["threshold_fpr"])
    scores = np.array([row.score for row in rows])
    draw_histogram(figure, scores, name=name, reference=reference, threshold=threshold)


def _csv(rows: Iterable[Row]) -> bytes:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(Row._fields)
    for row in rows:
        anomalous = None if row.anomalous is None else json.dumps(row.anomalous)
        # A spreadsheet would run a file name such as "=cmd…" as a formula; "./=cmd…" is the same file.
        file_name = f"./{row.file}" if row.file[:1] in tuple("=+-@\t\r") else row.file
        writer.writerow([file_name, *row[1:-1], anomalous])
    return _bytes(file.getvalue())


def _json(rows: Iterable[Row], made_with: Mapping[str, object]) -> bytes:
    images = [row._asdict() for row in rows]
    return (json.dumps({**made_with, "images": images}, indent=2) + "\n").encode()


def _texts(facts: Mapping[str, object]) -> dict[str, str]:
    """The facts as text chunks of a PNG."""
    texts = {k: v if isinstance(v, str) else json.dumps(v) for k, v in facts.items()}
    return {key: _bytes(text).decode("utf-8", "replace") for key, text in texts.items()}


def _bytes(text: str) -> bytes:
    """UTF-8; the bytes of file names that are not UTF-8 come back as they are on the disk."""
    return text.encode("utf-8", "surrogateescape")


def _visible(table: bytes) -> str:
    """The table for a terminal, which control characters in file names could write over."""
    lines = table.decode("utf-8", "replace").splitlines()
    return "".join(shown(line, sys.maxsize) + "\n" for line in lines)


def _tell(rows: Sequence[Row], scorer: Scorer, made_with: Mapping[str, Any]) -> None:
    """Say on stderr what the table does not say."""
    statistics, threshold = scorer.model.statistics, made_with["threshold"]
    if threshold is not None:
        count = sum(1 for row in rows if row.anomalous)
        limit = f"{made_with['score']} above {threshold:.6g}"
        click.echo(f"{count} of {len(rows)} images are anomalous: {limit}", err=True)
    elif statistics is None:
        mend = "is not calibrated (cdrl-eval --calibrate)"
        click.echo(f"no p_value: {scorer.name!r} {mend}", err=True)
    elif rows[0].p_value is None:
        limit = f"is calibrated for seed {statistics.seed} alone"
        click.echo(f"no p_value: {scorer.name!r} {limit}", err=True)
