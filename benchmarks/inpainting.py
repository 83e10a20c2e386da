"""How well holes in images are filled: error, and what a classifier makes of the result.

``python benchmarks/inpainting.py --data fashion_mnist.npz``; see benchmarks/README.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
import torch
from classifier import Recipe, SmallCNN, load_or_train, predict
from kept import kept
from numpy.typing import NDArray
from options import DATA, MODEL, draws, writes
from quality import Steps, check_same_kind, judge_warning, model_digest, parse_steps, steps_name
from report import check_target, mean_error, table, with_error, write_json

from cdrl_infer.cli import command
from cdrl_infer.errors import InputError
from cdrl_infer.files import replaced_file
from cdrl_infer.images import make_grid, to_pil, viewing_scale
from cdrl_infer.pipeline import CDRLPipeline
from cdrl_infer.storage.folder import find_model
from cdrl_infer.version import __version__
from cdrl_train.data.image_set import ImageSet
from cdrl_train.data.sources import load_images
from cdrl_train.evaluation.sampling import pixels

SEED_STRIDE = 1000  # sample j of image k is drawn from seed k · SEED_STRIDE + j
BOX_SEED = 0
MID_GREY = 128
PICTURE_SAMPLES, PICTURE_ROWS = 6, 10
UNTOUCHED, MEAN_FILL = "untouched", "mean fill"
Bytes = NDArray[np.uint8]
Holes = NDArray[np.bool_]


def half_holes(count: int, height: int, width: int) -> Holes:
    """(N, 1, H, W), True in the hole: the left, right, top and bottom half in turn."""
    holes = np.zeros((count, 1, height, width), bool)
    holes[0::4, :, :, : width // 2] = True
    holes[1::4, :, :, width // 2 :] = True
    holes[2::4, :, : height // 2] = True
    holes[3::4, :, height // 2 :] = True
    return holes


def box_holes(count: int, height: int, width: int) -> Holes:
    """(N, 1, H, W), True in the hole: half as high and wide as the image, anywhere in it.

    Image k's box does not depend on N.
    """
    box = height // 2, width // 2
    corners = np.random.default_rng(BOX_SEED).random((count, 2))
    corners = (corners * (height - box[0] + 1, width - box[1] + 1)).astype(int)
    holes = np.zeros((count, 1, height, width), bool)
    for hole, (row, column) in zip(holes, corners, strict=True):
        hole[:, row : row + box[0], column : column + box[1]] = True
    return holes


HOLES = {"half": half_holes, "box": box_holes}


def hole_errors(fills: NDArray[Any], originals: Bytes, holes: Holes) -> NDArray[np.float64]:
    """RMS error over the pixels and channels of the hole, in grey levels.

    Args:
        fills: (N, S, C, H, W) values of 0 … 255.
        originals: (N, C, H, W).
        holes: (N, 1, H, W), True in the hole.

    Returns:
        (N, S).
    """
    errors = (fills.astype(np.float64) - originals[:, None]) * holes[:, None]
    values = holes.sum((1, 2, 3)) * originals.shape[1]
    result: NDArray[np.float64] = np.sqrt(np.square(errors).sum((2, 3, 4)) / values[:, None])
    return result


def majority_agreement(named: NDArray[Any], true: NDArray[Any]) -> NDArray[np.float64]:
    """(N,) 1 where the true label is the one named most often, 1/m where it is one of m such.

    Args:
        named: (N, S) a label for each sample.
        true: (N,).
    """
    votes = (named[:, :, None] == named[:, None]).sum(2)  # for the label that a sample was given
    most = votes.max(1)
    ties = (votes == most[:, None]).sum(1) / most
    return np.where((named == true[:, None]).sum(1) == most, 1 / ties, 0.0)


class Scores(NamedTuple):
    """Of one way of filling one kind of hole, image by image (N,); None where it has no meaning."""

    fill: str
    labels: str  # "given", "none"
    best: NDArray[np.float64] | None  # RMS error of the best of S samples
    mean: NDArray[np.float64] | None  # of their mean
    one: NDArray[np.float64]  # of one sample, the mean over S
    judged_one: NDArray[np.float64]  # share of samples given the true label
    judged_majority: NDArray[np.float64] | None  # is the label named most often the true one?


@dataclass(frozen=True)
class Examiner:
    """What is known of the images, and who judges the fillings."""

    judge: SmallCNN
    test: ImageSet  # the N images

    @property
    def originals(self) -> Bytes:
        """(N, C, H, W)."""
        images: Bytes = self.test.images.numpy()
        return images

    def scores(self, fill: str, labels: str, fills: Bytes, holes: Holes) -> Scores:
        """Of fillings (N, S, C, H, W); what is over samples is left out for a single one, S = 1."""
        errors = hole_errors(fills, self.originals, holes)
        named = self._one_number(predict(self.judge, torch.from_numpy(fills).flatten(0, 1)))
        named = named.reshape(fills.shape[:2])
        true = self._one_number(self.test.labels)
        right = (named == true[:, None]).mean(1)
        if fills.shape[1] == 1:
            return Scores(fill, labels, None, None, errors[:, 0], right, None)
        mean = hole_errors(fills.mean(1, keepdims=True), self.originals, holes)[:, 0]
        majority = majority_agreement(named, true)
        return Scores(fill, labels, errors.min(1), mean, errors.mean(1), right, majority)

    def _one_number(self, labels: torch.Tensor) -> NDArray[Any]:
        """(M, A) indices -> (M,), a number for each combination."""
        numbers: NDArray[Any] = np.ravel_multi_index(tuple(labels.numpy().T), self.test.num_classes)
        return numbers


@dataclass(frozen=True)
class Painter:
    """Draws fillings, and keeps them on disk."""

    pipe: CDRLPipeline
    test: ImageSet  # the N images
    samples: int
    cache: Path
    prefix: str  # of the files: model and data
    batch_size: int
    restarts: int = 0
    progress: bool = False

    def fills(self, kind: str, holes: Holes, steps: Steps, given: bool) -> Bytes:
        """(N, S, C, H, W); with the true labels given, or none."""
        images = self.test.images
        samples, labels = self.samples, self.test.labels.tolist()

        def draw(start: int, stop: int) -> Bytes:
            each = np.arange(start, stop).repeat(samples)
            output = self.pipe.inpaint(
                images[each],
                torch.from_numpy(holes[each]),
                class_labels=[labels[k] for k in each] if given else None,
                seeds=[
                    int(k) * SEED_STRIDE + j for k in range(start, stop) for j in range(samples)
                ],
                langevin_steps=steps,
                restarts=self.restarts,
                batch_size=self.batch_size,
                output_type="pt",
                progress=False,
            )
            return pixels(output).reshape(stop - start, samples, *images.shape[1:])

        name = steps_name(steps).replace("K = ", "K").replace(",", "-")
        condition = "given" if given else "none"
        name += f"-R{self.restarts}" if self.restarts else ""
        file = self.cache / f"{self.prefix}-{kind}-{name}-labels-{condition}-samples{samples}.npy"
        title = f"{kind}, {steps_name(steps)}, labels {condition}" if self.progress else None
        row = np.dtype((np.uint8, (samples, *images.shape[1:])))
        chunk = max(1, 4 * self.batch_size // samples)
        return kept(file, len(images), draw, row, chunk, title)


def score_table(rows: Sequence[Scores], samples: int) -> str:
    """Errors in grey levels and agreements in per cent; the change is paired, image by image."""
    base = {row.labels: row for row in rows if row.fill == steps_name(0)}

    def cell(values: NDArray[np.float64] | None, factor: int = 1) -> str:
        return "" if values is None else with_error(factor * values)

    body = []
    for row in rows:
        zero, change = base.get(row.labels), ""
        if zero is not None and row is not zero and row.best is not None and zero.best is not None:
            change = with_error(row.best - zero.best)
        body.append(
            [
                row.fill,
                row.labels,
                cell(row.best),
                change,
                cell(row.mean),
                cell(row.one),
                cell(row.judged_one, 100),
                cell(row.judged_majority, 100),
            ]
        )
    best = f"best of {samples}"
    header = ["fill", "labels", best, f"{best} less K = 0's", f"mean of {samples}", "one"]
    return table([*header, "judge, one, %", f"judge, majority of {samples}, %"], body)


def picture_rows(labels: NDArray[Any]) -> list[int]:
    """The first image of each label (N,), at most `PICTURE_ROWS`, in the order of the images."""
    _, first = np.unique(labels, return_index=True)
    return sorted(first.tolist())[:PICTURE_ROWS]


def save_picture(target: Path, rows: Sequence[Sequence[Bytes]]) -> None:
    """Rows of images (C, H, W)."""
    pictures = to_pil(torch.from_numpy(np.stack([i for row in rows for i in row])) / 127.5 - 1)
    grid = make_grid(pictures, len(rows[0]), upscale=viewing_scale(pictures[0]))
    with replaced_file(target) as temporary:
        grid.save(temporary, format="PNG")


@click.command("inpainting.py", cls=command.OneLineErrors, context_settings={"show_default": True})
@MODEL
@DATA
@click.option(
    "--images", type=click.IntRange(2), default=1000, help="The first of the test images."
)
@click.option("--samples", type=click.IntRange(2, SEED_STRIDE), default=8, help="Of each image.")
@click.option(
    "--langevin-steps",
    "steps_texts",
    metavar="K|K,…,K|model",
    multiple=True,
    default=("0", "model"),
    help="K of all levels or of each; model: its default. 0 is the initializer alone.",
)
@click.option("--restarts", type=click.IntRange(0), default=0, help="Of each level.")
@click.option(
    "--labels",
    type=click.Choice(["given", "none", "both"]),
    default="none",
    help="Whether the model is told the true labels, or nothing but the pixels.",
)
@draws("Samples and the classifier; an interrupted run goes on from there.", "Of sampling.")
@click.option(
    "--picture",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Also draw some images with the samples of the last K, PNG.",
)
@writes("inpainting.json")
def main(out: Path, picture: Path | None, **options: Any) -> None:
    """Error in the hole and agreement of a classifier with the true label, for two kinds of hole."""
    check_target("--out", out)
    check_target("--picture", picture)
    text, results = evaluate(picture=picture, **options)
    click.echo(text)
    write_json(out, results)


def evaluate(
    model: str | None,
    data: str,
    images: int,
    samples: int,
    steps_texts: Sequence[str],
    restarts: int,
    labels: str,
    batch_size: int,
    device: str,
    cache: Path,
    picture: Path | None = None,
    recipe: Recipe = Recipe(),  # noqa: B008 - a frozen dataclass
) -> tuple[str, dict[str, Any]]:
    """What the command prints and writes."""
    folder = find_model(model)
    pipe = CDRLPipeline.from_pretrained(folder).to(device)
    train, test = load_images(data, "train"), load_images(data, "test")
    check_same_kind(pipe, test)
    if images > len(test):
        raise InputError(f"--images must be at most {len(test)}, the test images, got {images}")
    default = pipe.model.sampler.langevin_steps
    asked = list(dict.fromkeys(parse_steps(text, default) for text in steps_texts))
    conditions = ["none", "given"] if labels == "both" else [labels]
    cache.mkdir(parents=True, exist_ok=True)
    judge, real = load_or_train(cache, train, test, recipe, progress=True)
    warning = judge_warning(real)

    some = ImageSet(test.images[:images], test.labels[:images], test.attributes)
    digest = model_digest(folder)
    prefix = f"inpainted-{digest}-{test.fingerprint()[:8]}"
    examiner = Examiner(judge, some)
    painter = Painter(pipe, some, samples, cache, prefix, batch_size, restarts, progress=True)
    originals = examiner.originals
    average = train.images.double().mean(0).round().to(torch.uint8).numpy()
    shown = picture_rows(some.labels[:, 0].numpy())
    found: dict[str, list[Scores]] = {}
    lines: dict[int, list[Bytes]] = {}
    kept_exactly, all_differ = True, True
    for place, (kind, make_holes) in enumerate(HOLES.items()):
        holes = make_holes(images, *some.images.shape[2:])
        averaged = np.where(holes, average, originals)
        found[kind] = [
            examiner.scores(UNTOUCHED, "", originals[:, None], holes),
            examiner.scores(MEAN_FILL, "", averaged[:, None], holes),
        ]
        for condition in conditions:
            for steps in asked:
                fills = painter.fills(kind, holes, steps, condition == "given")
                row = examiner.scores(steps_name(steps), condition, fills, holes)
                found[kind].append(row)
                moved = (fills != originals[:, None]) & ~holes[:, None]
                kept_exactly &= not moved.any()
                all_differ &= all(len(np.unique(each, axis=0)) == samples for each in fills)
            if condition == conditions[0]:
                masked = np.where(holes, np.uint8(MID_GREY), originals)
                for k in shown[place :: len(HOLES)]:
                    some_fills = fills[k, :PICTURE_SAMPLES]
                    lines[k] = [originals[k], masked[k], *some_fills, averaged[k]]
    if picture is not None:
        save_picture(picture, [lines[k] for k in shown])

    height, width = some.images.shape[2:]
    box = f"{height // 2} x {width // 2}"
    text = "\n".join(
        [
            f"Model {pipe.name} ({digest}), by default {steps_name(default)}, here R = {restarts}; "
            f"cdrl {__version__}, torch {torch.__version__}.",
            "",
            f"The first {images} test images, {samples} samples of each; ± standard error over images. "
            "RMS error in the hole, over its pixels and channels, in grey levels of 0 … 255, mean over "
            f"images: of the best of {samples} (picked knowing the truth), of their mean, of one (mean "
            f"over the {samples}). Judge: share of images given the true label by a classifier trained "
            f"on the {len(train)} training images; majority: by the label it names most often, ties in "
            f"equal parts. It knows {100 * real:.1f} % of the {len(test)} test images. Labels: whether "
            "the model was told the true one. Mean fill: the training images' mean.",
            *(["", warning] if warning else []),
            "",
            "Half: the left, right, top, bottom half of the image in turn.",
            "",
            score_table(found["half"], samples),
            "",
            f"Box: {box}, anywhere in the image.",
            "",
            score_table(found["box"], samples),
            "",
            f"Known pixels are the input's exactly, in every sample: {'yes' if kept_exactly else 'NO'}. "
            f"All samples of an image differ: {'yes' if all_differ else 'NO'}.",
        ]
    )
    return text, {
        "model": {"name": pipe.name, "digest": digest, "default": steps_name(default)},
        "versions": {"cdrl": __version__, "torch": torch.__version__},
        "data": {"train": train.fingerprint(), "test": test.fingerprint()},
        "images": images,
        "samples": samples,
        "restarts": restarts,
        "judge": real,
        "known_pixels_kept": bool(kept_exactly),
        "samples_differ": bool(all_differ),
        "rows": [as_json(kind, row) for kind, rows in found.items() for row in rows],
    }


def as_json(hole: str, row: Scores) -> dict[str, Any]:
    """Means and standard errors."""
    result: dict[str, Any] = {"hole": hole, "fill": row.fill, "labels": row.labels}
    for name, values in row._asdict().items():
        if isinstance(values, np.ndarray):
            mean, error = mean_error(values)
            result[name] = {"mean": mean, "error": error}
    return result


if __name__ == "__main__":
    main()
