"""How well a model fills masked parts of images: the error, and the class that a judge recognises.

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
from classifier import Recipe
from kept import kept
from numpy.typing import NDArray
from options import DATA, MODEL, draws, writes
from report import check_target, mean_error, save_picture, table, with_error, write_json
from subject import MADE_WITH, Bytes, Steps, Subject, file_name, steps_name

from cdrl_infer.cli import command
from cdrl_infer.errors import InputError
from cdrl_infer.pipeline import CDRLPipeline
from cdrl_train.data.image_set import ImageSet
from cdrl_train.evaluation.classifier import Classifier
from cdrl_train.evaluation.sampling import pixels

SEED_STRIDE = 1000  # sample j of image k is drawn from seed k · SEED_STRIDE + j
BOX_SEED = 0
MID_GREY = 128
PICTURE_SAMPLES, PICTURE_ROWS = 6, 10
UNTOUCHED, MEAN_FILL = "untouched", "mean fill"
Masks = NDArray[np.bool_]


def half_masks(count: int, height: int, width: int) -> Masks:
    """(N, 1, H, W), True inside the mask: the left, right, top and bottom half in turn."""
    masks = np.zeros((count, 1, height, width), bool)
    masks[0::4, :, :, : width // 2] = True
    masks[1::4, :, :, width // 2 :] = True
    masks[2::4, :, : height // 2] = True
    masks[3::4, :, height // 2 :] = True
    return masks


def box_masks(count: int, height: int, width: int) -> Masks:
    """(N, 1, H, W), True inside the mask: a box of half the height and width at a random place.

    The box of image k does not depend on N.
    """
    box = height // 2, width // 2
    corners = np.random.default_rng(BOX_SEED).random((count, 2))
    corners = (corners * (height - box[0] + 1, width - box[1] + 1)).astype(int)
    masks = np.zeros((count, 1, height, width), bool)
    for mask, (row, column) in zip(masks, corners, strict=True):
        mask[:, row : row + box[0], column : column + box[1]] = True
    return masks


MASKS = {"half": half_masks, "box": box_masks}


def masked_errors(fills: NDArray[Any], originals: Bytes, masks: Masks) -> NDArray[np.float64]:
    """RMS error over the pixels and channels inside the mask, in grey levels.

    Args:
        fills: (N, S, C, H, W) values of 0 … 255.
        originals: (N, C, H, W).
        masks: (N, 1, H, W), True inside the mask.

    Returns:
        (N, S).
    """
    errors = (fills.astype(np.float64) - originals[:, None]) * masks[:, None]
    values = masks.sum((1, 2, 3)) * originals.shape[1]
    result: NDArray[np.float64] = np.sqrt(np.square(errors).sum((2, 3, 4)) / values[:, None])
    return result


def majority_agreement(named: NDArray[Any], true: NDArray[Any]) -> NDArray[np.float64]:
    """(N,) 1 if the most frequent label is the true label; 1/m if m labels tie and one of them is true.

    Args:
        named: (N, S) the judge's label of each sample.
        true: (N,) the true labels.
    """
    votes = (named[:, :, None] == named[:, None]).sum(2)  # for the label that a sample was given
    most = votes.max(1)
    ties = (votes == most[:, None]).sum(1) / most
    return np.where((named == true[:, None]).sum(1) == most, 1 / ties, 0.0)


class Scores(NamedTuple):
    """Results (N,) per image of one method on one kind of mask; None if a result has no meaning."""

    fill: str
    labels: str  # "given", "none"
    best: NDArray[np.float64] | None  # RMS error of the best of S samples
    mean: NDArray[np.float64] | None  # RMS error of the mean of S samples
    one: NDArray[np.float64]  # RMS error of one sample, mean over S
    judged_one: NDArray[np.float64]  # share of samples given the true label
    judged_majority: NDArray[np.float64] | None  # is the label named most often the true one?


@dataclass(frozen=True)
class Examiner:
    """Compares fillings with the images, and lets the judge label them."""

    judge: Classifier
    test: ImageSet  # the N images

    @property
    def originals(self) -> Bytes:
        """(N, C, H, W)."""
        images: Bytes = self.test.images.numpy()
        return images

    def scores(self, fill: str, labels: str, fills: Bytes, masks: Masks) -> Scores:
        """The scores of fillings (N, S, C, H, W), without statistics over samples for S = 1."""
        errors = masked_errors(fills, self.originals, masks)
        named = self._one_number(self.judge(fills.reshape(-1, *fills.shape[2:])))
        named = named.reshape(fills.shape[:2])
        true = self._one_number(self.test.labels.numpy())
        right = (named == true[:, None]).mean(1)
        if fills.shape[1] == 1:
            return Scores(fill, labels, None, None, errors[:, 0], right, None)
        mean = masked_errors(fills.mean(1, keepdims=True), self.originals, masks)[:, 0]
        majority = majority_agreement(named, true)
        return Scores(fill, labels, errors.min(1), mean, errors.mean(1), right, majority)

    def _one_number(self, labels: NDArray[Any]) -> NDArray[Any]:
        """(M, A) indices -> (M,), a number for each combination."""
        numbers: NDArray[Any] = np.ravel_multi_index(tuple(labels.T), self.test.num_classes)
        return numbers


@dataclass(frozen=True)
class Painter:
    """Draws fillings, and keeps them on disk."""

    pipe: CDRLPipeline
    test: ImageSet  # the N images
    samples: int
    cache: Path
    prefix: str  # prefix of the files' names: model and data
    batch_size: int
    restarts: int = 0
    progress: bool = False

    def fills(self, kind: str, masks: Masks, steps: Steps, given: bool) -> Bytes:
        """Fillings (N, S, C, H, W), given the true labels or no labels."""
        images = self.test.images
        samples, labels = self.samples, self.test.labels.tolist()

        def draw(start: int, stop: int) -> Bytes:
            each = np.arange(start, stop).repeat(samples)
            output = self.pipe.inpaint(
                images[each],
                torch.from_numpy(masks[each]),
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

        condition = "given" if given else "none"
        name = file_name(steps) + (f"-R{self.restarts}" if self.restarts else "")
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


@click.command("inpainting.py", cls=command.OneLineErrors, context_settings={"show_default": True})
@MODEL
@DATA
@click.option("--images", type=click.IntRange(2), default=1000, help="Number of test images.")
@click.option(
    "--samples", type=click.IntRange(2, SEED_STRIDE), default=8, help="Samples of each image."
)
@click.option(
    "--langevin-steps",
    "steps_texts",
    metavar="K|K,…,K|model",
    multiple=True,
    default=("0", "model"),
    help="K of all transitions or of each; model: its default. 0 is the initializer alone.",
)
@click.option("--restarts", type=click.IntRange(0), default=0, help="Restarts of each transition.")
@click.option(
    "--labels",
    type=click.Choice(["given", "none", "both"]),
    default="none",
    help="Tell the model the true labels, or only the pixels.",
)
@draws("Folder for samples and the classifier; an interrupted run resumes from there.")
@click.option(
    "--picture",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write a PNG of some images with the samples of the last K.",
)
@writes("inpainting.json")
def main(out: Path, picture: Path | None, **options: Any) -> None:
    """Error inside the mask and agreement of a classifier with the true label, for two kinds of mask."""
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
    """The text that the command prints, and the results that it writes."""
    subject = Subject.load(model, data, device)
    pipe, train, test = subject.pipe, subject.train, subject.test
    if images > len(test):
        raise InputError(f"--images must be at most {len(test)}, the test images, got {images}")
    asked = list(dict.fromkeys(map(subject.steps, steps_texts)))
    conditions = ["none", "given"] if labels == "both" else [labels]
    judge, real, warning = subject.judge(cache, recipe)
    some = ImageSet(test.images[:images], test.labels[:images], test.attributes)
    prefix = f"inpainted-{subject.digest}-{test.fingerprint()[:8]}"
    painter = Painter(pipe, some, samples, cache, prefix, batch_size, restarts, progress=True)
    average = train.images.double().mean(0).round().to(torch.uint8).numpy()
    found = measure(Examiner(judge, some), painter, average, conditions, asked)
    if picture is not None:
        save_picture(picture, [found.lines[k] for k in sorted(found.lines)])
    text = _text(subject, images, samples, restarts, real, warning, found)
    return text, {
        **subject.facts(default=steps_name(subject.steps("model"))),
        "images": images,
        "samples": samples,
        "restarts": restarts,
        "judge": real,
        "known_pixels_kept": found.kept_exactly,
        "samples_differ": found.all_differ,
        "rows": [as_json(kind, row) for kind, rows in found.scores.items() for row in rows],
    }


class Found(NamedTuple):
    """The results of `measure`."""

    scores: dict[str, list[Scores]]  # by kind of mask
    lines: dict[int, list[Bytes]]  # rows of the picture, by image
    kept_exactly: bool  # are known pixels the input's?
    all_differ: bool  # do the samples of an image differ?


def measure(
    examiner: Examiner,
    painter: Painter,
    average: NDArray[np.uint8],
    conditions: Sequence[str],
    asked: Sequence[Steps],
) -> Found:
    """Fill every mask with every method, and score the results.

    Args:
        examiner: scores the fillings.
        painter: fills the masks.
        average: (C, H, W) mean of the training images.
        conditions: "given" tells the model the true labels, "none" does not.
        asked: the values of K.
    """
    originals, shown = examiner.originals, picture_rows(examiner.test.labels[:, 0].numpy())
    scores: dict[str, list[Scores]] = {}
    lines: dict[int, list[Bytes]] = {}
    kept_exactly, all_differ = True, True
    for place, (kind, make_masks) in enumerate(MASKS.items()):
        masks = make_masks(len(originals), *originals.shape[2:])
        averaged = np.where(masks, average, originals)
        scores[kind] = [
            examiner.scores(UNTOUCHED, "", originals[:, None], masks),
            examiner.scores(MEAN_FILL, "", averaged[:, None], masks),
        ]
        for condition in conditions:
            for steps in asked:
                fills = painter.fills(kind, masks, steps, condition == "given")
                scores[kind].append(examiner.scores(steps_name(steps), condition, fills, masks))
                moved = (fills != originals[:, None]) & ~masks[:, None]
                kept_exactly &= not moved.any()
                all_differ &= all(len(np.unique(each, axis=0)) == fills.shape[1] for each in fills)
            if condition == conditions[0]:
                masked = np.where(masks, np.uint8(MID_GREY), originals)
                for k in shown[place :: len(MASKS)]:
                    lines[k] = [originals[k], masked[k], *fills[k, :PICTURE_SAMPLES], averaged[k]]
    return Found(scores, lines, bool(kept_exactly), bool(all_differ))


def _text(
    subject: Subject,
    images: int,
    samples: int,
    restarts: int,
    real: float,
    warning: str | None,
    found: Found,
) -> str:
    height, width = subject.pipe.model.image.shape[1:]
    return "\n".join(
        [
            f"{subject.title}, by default {steps_name(subject.steps('model'))}, here R = {restarts}; "
            f"{MADE_WITH}.",
            "",
            f"The first {images} test images, {samples} samples of each; ± standard error over images. "
            "RMS error inside the mask, over its pixels and channels, in grey levels of 0 … 255, mean "
            f"over images: of the best of {samples} (picked knowing the truth), of their mean, of one "
            f"(mean over the {samples}). Judge: share of images given the true label by a classifier "
            f"trained on the {len(subject.train)} training images; majority: by the label it names most "
            f"often, ties in equal parts. It knows {100 * real:.1f} % of the {len(subject.test)} test "
            "images. Labels: whether the model was told the true one. Mean fill: the training images' "
            "mean.",
            *(["", warning] if warning else []),
            "",
            "Half: the left, right, top, bottom half of the image in turn.",
            "",
            score_table(found.scores["half"], samples),
            "",
            f"Box: {height // 2} x {width // 2}, anywhere in the image.",
            "",
            score_table(found.scores["box"], samples),
            "",
            "Known pixels are the input's exactly, in every sample: "
            f"{'yes' if found.kept_exactly else 'NO'}. "
            f"All samples of an image differ: {'yes' if found.all_differ else 'NO'}.",
        ]
    )


def as_json(mask: str, row: Scores) -> dict[str, Any]:
    """Means and standard errors."""
    result: dict[str, Any] = {"mask": mask, "fill": row.fill, "labels": row.labels}
    for name, values in row._asdict().items():
        if isinstance(values, np.ndarray):
            mean, error = mean_error(values)
            result[name] = {"mean": mean, "error": error}
    return result


if __name__ == "__main__":
    main()
