"""How odd pictures are: scores, p-values in words, a histogram with marks, heat maps at one scale."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from cdrl_infer.demo.levels import Step, drawing, usual_steps
from cdrl_infer.demo.live import Stopped
from cdrl_infer.demo.pieces import figure, png_uri, problem, row, said, uri, wide, working
from cdrl_infer.demo.uploads import MAX_FILES, read_upload
from cdrl_infer.drawing import CDRLPipelineOutput
from cdrl_infer.errors import InputError
from cdrl_infer.model import CDRLModel
from cdrl_infer.pipeline import CDRLPipeline
from cdrl_infer.scoring.plots import (
    Reference,
    colour_bar,
    draw_histogram,
    heated,
    new_figure,
)
from cdrl_infer.scoring.scorer import default_score


class OddView(NamedTuple):
    """What the page shows, as HTML."""

    status: str
    pictures: str
    histogram: str


class Judged(NamedTuple):
    """One picture and what the model says of it."""

    name: str
    picture: Image.Image
    score: float
    p_value: float | None
    heat: np.ndarray  # (H, W), at least 0


def in_words(p_value: float | None, count: int) -> str:
    """A p-value in words.

    Args:
        p_value: the share of in-distribution pictures that score as high; None without calibration.
        count: how many in-distribution pictures it compares with.
    """
    if p_value is None:
        return "not calibrated: compare the scores of your pictures with each other"
    if p_value <= 1 / (count + 1):
        return f"odder than all {count:,} ordinary pictures"
    if p_value < 0.01:
        return f"very odd: 1 in {round(1 / p_value):,} ordinary pictures scores as high"
    if p_value < 0.05:
        return f"odd: 1 in {round(1 / p_value)} ordinary pictures scores as high"
    words = "a little unusual" if p_value < 0.2 else "ordinary"
    return f"{words}: {round(100 * p_value)} in 100 ordinary pictures score as high"


def examples(drawn: Sequence[Image.Image]) -> list[tuple[str, Image.Image]]:
    """Pictures to try, by name: as they were drawn, upside down, two halves, and noise.

    Args:
        drawn: three pictures of one size and mode.
    """
    plain, turned, joined = drawn
    joined, middle = joined.copy(), joined.width // 2
    joined.paste(turned.crop((middle, 0, turned.width, turned.height)), (middle, 0))
    noise = np.random.default_rng(0).integers(0, 256, np.asarray(plain).shape, dtype=np.uint8)
    return [
        ("drawn by the model", plain),
        ("upside down", turned.transpose(Image.Transpose.ROTATE_180)),
        ("halves of two", joined),
        ("noise", Image.fromarray(noise)),
    ]


def judge_examples(pipe: CDRLPipeline, stop: threading.Event) -> Iterator[OddView]:
    """Draw pictures, change some of them, and score them; see `examples` and `judge`."""
    steps = usual_steps(pipe.model)
    for item in drawing(pipe, pipe, stop, num_images=3, seed=0, langevin_steps=steps):
        if isinstance(item, Step):
            yield OddView(working(f"drawing examples: {item.text}", item.share), "", "")
        elif isinstance(item, CDRLPipelineOutput):
            images: Any = item.images
            yield from judge(pipe, examples(images), [], stop)


def read_all(
    paths: Sequence[str], model: CDRLModel
) -> tuple[list[tuple[str, Image.Image]], list[str]]:
    """The uploaded pictures by name, and one line for each file that is none.

    Raises:
        InputError: there are too many files.
    """
    if len(paths) > MAX_FILES:
        raise InputError(f"expected at most {MAX_FILES} pictures at once, got {len(paths)}")
    pictures, wrong = [], []
    for path in paths:
        try:
            pictures.append((Path(path).name, read_upload(path, model.image)))
        except InputError as error:
            wrong.append(str(error))
    return pictures, wrong


def judge(
    pipe: CDRLPipeline,
    pictures: Sequence[tuple[str, Image.Image]],
    wrong: Sequence[str],
    stop: threading.Event,
) -> Iterator[OddView]:
    """Score pictures one by one, and show what is known so far.

    Args:
        pipe: the model; without a calibration it scores by "score-norm" and there are no p-values.
        pictures: by name, of the model's size and mode.
        wrong: lines about files that are no pictures, to show above.
        stop: ends the work after the picture that is scored now.

    Raises:
        Stopped: ``stop`` was set.
        InputError: there are no pictures.
        NumericalError: a score is not finite.
    """
    problems = "".join(map(problem, wrong))
    if not pictures:
        if wrong:
            yield OddView(problems, "", "")
            return
        raise InputError("expected pictures, got none; drop some, or take the examples")
    statistics = pipe.model.statistics
    score = "score-norm" if statistics is None else default_score(pipe.model)
    judged: list[Judged] = []
    for k, (name, picture) in enumerate(pictures, start=1):
        if stop.is_set():
            raise Stopped
        share = (k - 1) / len(pictures)
        doing = working(f"picture {k} of {len(pictures)}: {name}", share)
        yield OddView(problems + doing, table(judged, pipe.model), "")
        found = pipe.score(picture, score, return_map=True, progress=False)
        if found.maps is None:
            raise TypeError("expected heat maps")
        p_value = None if found.p_values is None else float(found.p_values[0])
        heat = found.maps[0].double().numpy()
        judged.append(Judged(name, picture, float(found.scores[0]), p_value, heat))
    done = said(f"done: score “{score}”, higher is odder")
    yield OddView(problems + done, table(judged, pipe.model), histogram(judged, pipe.model, score))


def table(judged: Sequence[Judged], model: CDRLModel) -> str:
    """A card for each picture: the picture, its heat map at the scale of all, score and words."""
    if not judged:
        return ""
    count = 0 if model.statistics is None else len(model.statistics.held_out)
    top = max(float(one.heat.max()) for one in judged)
    cards = []
    for k, one in enumerate(judged, start=1):
        p = "" if one.p_value is None else f", p = {one.p_value:.2g}"
        words = f"score {one.score:.4g}{p}\n{in_words(one.p_value, count)}"
        over = figure(heated(one.picture, one.heat, top)[0], words, f"heat map over {one.name}")
        cards.append(row([figure(one.picture, f"{k}. {one.name}"), over]))
    scale = f"heat maps at one scale: black 0, white {top:.3g}"
    bar = wide(uri(colour_bar(256, 1)), "the colours of the scale", scale, "cdrl-bar")
    return f"<div class='cdrl-cards'>{''.join(cards)}</div>{bar}"


def histogram(judged: Sequence[Judged], model: CDRLModel, score: str) -> str:
    """The scores of in-distribution pictures, with a numbered mark for each picture."""
    plot = new_figure()
    plot.set_size_inches(4.8, 3.2)  # legible on a phone
    reference = None
    if model.statistics is not None:
        values = model.statistics.scores(score).numpy()
        reference = Reference(values, f"ordinary: {model.statistics.data}")
    scores = np.array([one.score for one in judged])
    draw_histogram(plot, scores, name=score, reference=reference, marks=True)
    file = io.BytesIO()
    plot.savefig(file, format="png", dpi=140)
    return wide(png_uri(file.getvalue()), "histogram of scores with a mark for each picture")
