"""`cdrl-score`: how odd is each image for a model? A table, a histogram, heat maps."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from glob import glob
from itertools import islice, takewhile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, NoReturn

import click

from cdrl_infer.cli.command import OneLineErrors, open_model, open_target, uses_a_model
from cdrl_infer.errors import InputError, NumericalError, listing
from cdrl_infer.version import __version__

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

    from cdrl_infer.images import Header
    from cdrl_infer.pipeline import CDRLPipeline

SCORES = (  # those of `cdrl_infer.scoring.scores`, which --help does not import
    "combined",
    "energy",
    "score-norm",
    "multi-level",
    "typicality",
    "complexity",
    "initializer",
)
MAX_NAME = 80  # characters of an overlay's name; file systems allow 255 bytes


class Row(NamedTuple):
    """One image's line in the table."""

    file: str
    score: float
    p_value: float | None  # None where the model is not calibrated for this score
    anomalous: bool | None  # None without --threshold-fpr


@click.command(
    "cdrl-score", cls=OneLineErrors, context_settings={"help_option_names": ["-h", "--help"]}
)
@click.argument("images", nargs=-1, required=True, metavar="IMAGES...")
@uses_a_model
@click.option(
    "--score",
    "score_name",
    type=click.Choice(SCORES),
    default=SCORES[0],
    show_default=True,
    help="What to measure; all but energy, score-norm and complexity need a calibrated model.",
)
@click.option("--level", type=int, metavar="T", help="Of energy and score-norm. [1, least noise]")
@click.option("--seed", type=int, help="Of the noise. [the one of the calibration, else 0]")
@click.option(
    "--threshold-fpr",
    type=float,
    metavar="SHARE",
    help="Say yes or no: this share of in-distribution images may be called anomalous.",
)
@click.option("--resize", is_flag=True, help="Fit images of another size to the model's.")
@click.option("--out", metavar="FILE.csv|FILE.json", help="The table. [CSV on stdout]")
@click.option("--json", "as_json", is_flag=True, help="JSON on stdout.")
@click.option(
    "--plot", metavar="FILE.png", help="A histogram, beside that of in-distribution images."
)
@click.option(
    "--heatmap", metavar="FOLDER", help="Where the images are odd: a PNG for each, beside it."
)
@click.version_option(__version__, prog_name="cdrl-score")
def main(
    images: tuple[str, ...],
    model: str | None,
    revision: str | None,
    variant: str | None,
    device: str | None,
    batch_size: int,
    score_name: str,
    level: int | None,
    seed: int | None,
    threshold_fpr: float | None,
    resize: bool,
    out: str | None,
    as_json: bool,
    plot: str | None,
    heatmap: str | None,
) -> int:
    """Say how odd images are for a model: cdrl-score --model my-model images/*.png

    IMAGES are files, folders (with their sub-folders) and patterns. The table has a row per image:
    file, score (higher = more anomalous), p_value (the share of in-distribution images that score
    higher) and anomalous. It, the histogram and the heat maps appear once all images are through, or
    not at all.

    Exit codes: 0 done, 1 some files could not be read (they are named, the others' results are
    written), 2 bad input, 3 scores that are not finite, 4 the Hub could not be reached, 5 the
    disk is full, 130 interrupted.
    """
    if as_json and out is not None:
        raise InputError("--json is for stdout: with --out the suffix says it, .csv or .json")
    from cdrl_infer.scoring import plots

    figure = None if plot is None else plots.new_figure()
    skipped = _Skipped()
    headers = _read_headers(_find(images, skipped), skipped)
    if not headers:
        skipped.stop()
    names = {} if heatmap is None else _overlay_names(list(headers))
    outputs = [Path(target) for target in (out, plot) if target is not None]
    outputs += [Path(heatmap or "", name) for name in names.values()]
    _keep_inputs(outputs, headers)
    with ExitStack() as stack:
        table = None if out is None else open_target(stack, out, ".csv", ".json")
        picture = None if plot is None else open_target(stack, plot, ".png")
        folder = None if heatmap is None else open_target(stack, heatmap, folder=True)
        pipe = open_model(model, revision, variant, device)
        _check_pictures(pipe, headers, resize)
        scoring = _Scoring(pipe, score_name, level, seed, threshold_fpr, batch_size)
        rows: list[Row] = []
        for batch in scoring.batches(headers, resize, skipped, with_maps=folder is not None):
            rows += batch.rows
            if folder is not None:
                _write_overlays(folder, names, batch, scoring.made_with)
        if not rows:
            skipped.stop()
        as_json = as_json if table is None else table.suffix.lower() == ".json"
        text = _json(rows, scoring.made_with) if as_json else _csv(rows)
        if picture is not None and figure is not None:
            _draw(figure, rows, scoring)
            plots.save_figure(figure, picture, _texts(scoring.made_with))
        if table is not None:
            table.write_bytes(text)
    if table is None:
        click.echo(text, nl=False)
    _tell(rows, scoring)
    return 1 if skipped.count else 0


class _Skipped:
    """Names files that cannot be used, at once, and counts them."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, reason: object) -> None:
        from tqdm import tqdm

        self.count += 1
        tqdm.write(f"cdrl-score: skipped: {' '.join(str(reason).split())}", file=sys.stderr)

    def stop(self) -> NoReturn:
        """End here, as no file is left: an empty table would look like a result."""
        reason = "none of the files could be read, nothing is written"
        click.echo(f"cdrl-score: error: {reason}", err=True)
        raise click.exceptions.Exit(1)


def _find(given: Sequence[str], skipped: _Skipped) -> list[Path]:
    """The files that are meant, each once, in the order given.

    Raises:
        InputError: there are none.
    """
    from cdrl_infer.images import SUFFIXES, image_files

    found: dict[Path, None] = {}
    for text in given:
        there = Path(text).exists()
        for match in [text] if there else sorted(glob(text, recursive=True)) or [text]:
            path = Path(match)
            inside = image_files(path) if path.is_dir() else [path]
            if not inside:
                skipped(f"{path}: no images in this folder; looked for {', '.join(SUFFIXES)}")
            found.update(dict.fromkeys(inside))
    if not found:
        raise InputError(f"expected at least one image, found none in {listing(given)}")
    return list(found)


def _read_headers(paths: Sequence[Path], skipped: _Skipped) -> dict[Path, Header]:
    """What the files that can be read say of themselves."""
    from cdrl_infer.images import read_header

    headers = {}
    for path in paths:
        try:
            headers[path] = read_header(path)
        except InputError as error:
            skipped(error)
    return headers


def _overlay_names(paths: Sequence[Path]) -> dict[Path, str]:
    """A file name for each image's overlay, no two alike, even where upper case is lower case.

    It is the image's own below the folder that they have in common, with hyphens between the parts;
    those that would be alike are numbered.
    """
    parts = {path: path.absolute().parts for path in paths}
    depths = zip(*(p[:-1] for p in parts.values()), strict=False)
    common = sum(1 for _ in takewhile(lambda folders: len(set(folders)) == 1, depths))
    names: dict[Path, str] = {}
    taken: set[str] = set()
    repeats: dict[str, int] = {}
    for path in paths:
        own = "-".join([*parts[path][common:-1], path.stem])[-MAX_NAME:]
        name = own
        while name.casefold() in taken:
            repeats[own] = repeats.get(own, 1) + 1
            name = f"{own}-{repeats[own]}"
        taken.add(name.casefold())
        names[path] = f"{name}.png"
    return names


def _keep_inputs(outputs: Iterable[Path], inputs: Iterable[Path]) -> None:
    """Refuse to write over the images: ``--plot *.png`` names one of them."""
    images = {path.resolve() for path in inputs}
    for output in outputs:
        if output.resolve() in images:
            raise InputError(f"{output} is one of the images: expected another name to write to")


def _check_pictures(pipe: CDRLPipeline, headers: Mapping[Path, Header], resize: bool) -> None:
    """Refuse images that are not the model's, before one of them is scored."""
    from cdrl_infer.images import check_picture

    errors = []
    for path, header in headers.items():
        try:
            check_picture(header, pipe.model.image.shape, resize=resize)
        except InputError as error:
            errors.append(f"{path}: {error}")
    if errors:
        more = f" ({len(errors)} such files)" if len(errors) > 1 else ""
        channels, height, width = pipe.model.image.shape
        raise InputError(
            f"{errors[0]}{more}; the images of {pipe.name!r} have {channels} channel(s) of "
            f"{width} x {height}"
        )


class _Batch(NamedTuple):
    paths: list[Path]
    rows: list[Row]
    pixels: Tensor  # (B, C, H, W) in [0, 1]
    maps: Tensor | None  # (B, H, W)


class _Scoring:
    """What is asked of the model; after the first batch also what that was made with."""

    def __init__(
        self,
        pipe: CDRLPipeline,
        score: str,
        level: int | None,
        seed: int | None,
        threshold_fpr: float | None,
        batch_size: int,
    ) -> None:
        from cdrl_infer.arguments import positive

        self.pipe = pipe
        self.score = score
        self.level = level
        self.seed = seed
        self.threshold_fpr = threshold_fpr
        self.batch_size = positive("batch_size", batch_size)
        self.threshold: float | None = None

    @property
    def made_with(self) -> dict[str, str | int | float | None]:
        """For whoever reads the numbers later."""
        return {
            "model": self.pipe.name,
            "version": f"cdrl {__version__}",
            "score": self.score,
            "level": self.level,
            "seed": self.seed,
            "threshold_fpr": self.threshold_fpr,
            "threshold": self.threshold,
        }

    def batches(
        self, paths: Collection[Path], resize: bool, skipped: _Skipped, *, with_maps: bool
    ) -> Iterator[_Batch]:
        """Read and score one batch after the other; files that cannot be decoded are skipped."""
        from tqdm import tqdm

        with tqdm(total=len(paths), unit="image", disable=None) as bar:
            waiting = iter(paths)
            while some := list(islice(waiting, self.batch_size)):
                pictures = self._decode(some, resize, skipped)
                if pictures:
                    yield self._score(list(pictures), list(pictures.values()), with_maps)
                bar.update(len(some))

    def _decode(self, paths: Sequence[Path], resize: bool, skipped: _Skipped) -> dict[Path, Tensor]:
        from cdrl_infer.images import decode_image, read_images

        pictures = {}
        for path in paths:
            try:
                picture = decode_image(path)
                pictures[path] = read_images(picture, self.pipe.model.image.shape, resize=resize)
            except InputError as error:
                skipped(error)
        return pictures

    def _score(self, paths: list[Path], pictures: list[Tensor], with_maps: bool) -> _Batch:
        import torch

        pixels = torch.cat(pictures)
        try:
            found = self.pipe.score(
                pixels,
                self.score,
                level=self.level,
                seed=self.seed,
                threshold_fpr=self.threshold_fpr,
                return_map=with_maps,
                batch_size=self.batch_size,
                progress=False,
            )
        except NumericalError as error:
            raise NumericalError(f"{paths[0]} … {paths[-1]}: {error}") from None
        self.seed, self.threshold = found.seed, found.threshold
        nothing = [None] * len(paths)
        p_values = nothing if found.p_values is None else found.p_values.tolist()
        anomalous = nothing if found.anomalous is None else found.anomalous.tolist()
        columns = zip(map(str, paths), found.scores.tolist(), p_values, anomalous, strict=True)
        return _Batch(paths, [Row(*cells) for cells in columns], pixels, found.maps)


def _write_overlays(
    folder: Path, names: Mapping[Path, str], batch: _Batch, made_with: Mapping[str, object]
) -> None:
    from cdrl_infer.images import save_png, to_pil
    from cdrl_infer.scoring.plots import overlay

    maps = () if batch.maps is None else batch.maps
    shown = zip(batch.paths, batch.rows, to_pil(2 * batch.pixels - 1), maps, strict=True)
    for path, row, image, heat in shown:
        told = f"{made_with['score']} {row.score:.4g}"
        told += "" if row.p_value is None else f", p {row.p_value:.2g}"
        plain = "".join(c if c.isascii() and c.isprintable() else "?" for c in path.name)
        panel = overlay(image, heat, f"{plain}: {told}")
        facts = {"file": row.file, "value": row.score, "p_value": row.p_value, **made_with}
        save_png(panel, folder / names[path], _texts(facts))


def _draw(figure: Figure, rows: Sequence[Row], scoring: _Scoring) -> None:
    """The histogram, beside the calibration's where the scores can be compared with it."""
    import numpy as np

    from cdrl_infer.scoring.plots import Reference, Threshold, draw_histogram

    statistics = scoring.pipe.model.statistics
    reference = None
    if statistics is not None and rows[0].p_value is not None:
        values = statistics.scores[scoring.score].numpy()
        reference = Reference(values, f"in distribution: {statistics.data}")
    threshold = None
    if scoring.threshold is not None and scoring.threshold_fpr is not None:
        threshold = Threshold(scoring.threshold, scoring.threshold_fpr)
    scores = np.array([row.score for row in rows])
    draw_histogram(figure, scores, name=scoring.score, reference=reference, threshold=threshold)


def _csv(rows: Iterable[Row]) -> bytes:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(Row._fields)
    for row in rows:
        anomalous = None if row.anomalous is None else json.dumps(row.anomalous)
        writer.writerow([*row[:-1], anomalous])
    return _bytes(file.getvalue())


def _json(rows: Iterable[Row], made_with: Mapping[str, object]) -> bytes:
    images = [row._asdict() for row in rows]
    return (json.dumps({**made_with, "images": images}, indent=2) + "\n").encode()


def _texts(facts: Mapping[str, object]) -> dict[str, str]:
    """As a PNG's text chunks hold them."""
    texts = {k: v if isinstance(v, str) else json.dumps(v) for k, v in facts.items()}
    return {key: _bytes(text).decode("utf-8", "replace") for key, text in texts.items()}


def _bytes(text: str) -> bytes:
    """File names of bytes that are no UTF-8 are given back as those bytes."""
    return text.encode("utf-8", "surrogateescape")


def _tell(rows: Sequence[Row], scoring: _Scoring) -> None:
    """What the table alone does not say, on stderr."""
    name, statistics = scoring.pipe.name, scoring.pipe.model.statistics
    if scoring.threshold is not None:
        count = sum(1 for row in rows if row.anomalous)
        limit = f"{scoring.score} above {scoring.threshold:.6g}"
        click.echo(f"{count} of {len(rows)} images are anomalous: {limit}", err=True)
    elif statistics is None:
        click.echo(f"no p_value: {name!r} is not calibrated (cdrl-eval --calibrate)", err=True)
    elif rows[0].p_value is None:
        limit = f"level 1 and seed {statistics.seed} alone"
        click.echo(f"no p_value: {name!r} is calibrated for {limit}", err=True)
