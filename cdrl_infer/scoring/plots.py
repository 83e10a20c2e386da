"""Plots of the distribution of scores, and pictures of heat maps."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor

from cdrl_infer.errors import InputError, NumericalError, shown
from cdrl_infer.images import captioned, make_grid, viewing_scale
from cdrl_infer.optional import needed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BINS = 40
WIDE = 30  # the axis is logarithmic if positive scores differ by a larger factor
PANEL_PIXELS = 224  # side of the enlarged image
BAR_PIXELS = 10  # height of the colour bar


class Reference(NamedTuple):
    """(M,) scores of in-distribution images, and the name of the data."""

    scores: np.ndarray
    name: str


class Threshold(NamedTuple):
    """A threshold ``score``; the share ``fpr`` of in-distribution images lies above it."""

    score: float
    fpr: float


def new_figure() -> Figure:
    """An empty plot; it needs no display.

    Raises:
        InputError: matplotlib cannot be imported.
    """
    with needed("matplotlib", "plots need", "score"):
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def draw_histogram(
    figure: Figure,
    scores: np.ndarray,
    *,
    name: str,
    reference: Reference | None = None,
    threshold: Threshold | None = None,
    marks: bool = False,
) -> None:
    """Draw the distribution of scores, and that of in-distribution images to compare with.

    The bars are shares of images, so they do not depend on the numbers of images.

    Args:
        figure: the plot to draw in.
        scores: (N,) scores of the images.
        name: the name of the score.
        reference: the scores to compare with.
        threshold: the position of a vertical line.
        marks: mark each image by a line with its number, from 1, in place of their distribution.
    """
    both = scores if reference is None else np.concatenate([scores, reference.scores])
    logarithmic = both.min() > 0 and both.max() > WIDE * both.min()
    if logarithmic:
        edges = np.geomspace(both.min(), both.max(), BINS + 1)
    else:
        edges = np.histogram_bin_edges(both, BINS)
    bins = edges.tolist()
    axes = figure.add_subplot()
    if reference is not None:
        of = shown(reference.name, 80).replace("$", r"\$")  # a name, not a formula
        known, label = reference.scores, f"{of} ({len(reference.scores):,})"
        axes.hist(known, bins, weights=_shares(known), color="0.75", label=label)
    label = f"these images ({len(scores):,})"
    if marks:
        for k, score in enumerate(scores.tolist(), start=1):
            axes.axvline(score, color="C3", linewidth=1.5, label=label if k == 1 else None)
            at = (score, 1 - 0.05 * ((k - 1) % 5))  # neighbours at different heights
            axes.annotate(str(k), at, (2, -9), xycoords=("data", "axes fraction"), color="C3",
                          textcoords="offset points")  # fmt: skip
    else:
        axes.hist(scores, bins, weights=_shares(scores), histtype="step", linewidth=2, label=label)
    if threshold is not None:
        share = f"{100 * threshold.fpr:.3g} % of in-distribution images"
        label = f"threshold {threshold.score:.4g}: {share} lie above"
        axes.axvline(threshold.score, color="black", linestyle="--", label=label)
    axes.set_xscale("log" if logarithmic else "linear")
    axes.set_xlabel(f"score ({name}), higher = more anomalous")
    axes.set_ylabel("share of images")
    axes.legend()


def _shares(scores: np.ndarray) -> np.ndarray:
    return np.full(len(scores), 1 / len(scores))


def save_figure(figure: Figure, path: Path, metadata: Mapping[str, str]) -> None:
    """Write a PNG with one text chunk per entry of ``metadata``."""
    figure.savefig(path, format="png", dpi=120, metadata=dict(metadata))


def colours(values: np.ndarray) -> np.ndarray:
    """Convert values in [0, 1] of any shape to cubehelix colours (..., 3) uint8 from black to white.

    Brighter means more, also in grey print, because the luma ``0.30 R + 0.59 G + 0.11 B`` is the value
    (Green 2011, "A colour scheme for the display of astronomical intensity images"; start 0.5, -1.5
    rotations, hue 1). matplotlib has these colours too, but heat maps should not need matplotlib.
    """
    v = values.astype(np.float64)[..., None]
    angle = 2 * np.pi * (0.5 / 3 + 1 - 1.5 * v)
    red, green, blue = (-0.14861, 1.78277), (-0.29227, -0.90649), (1.97294, 0.0)
    cosine, sine = np.array([red, green, blue]).T
    colour = v + v * (1 - v) / 2 * (cosine * np.cos(angle) + sine * np.sin(angle))
    return np.asarray((colour.clip(0, 1) * 255).round(), dtype=np.uint8)


def overlay(image: Image.Image, heat: Tensor, caption: str = "") -> Image.Image:
    """Three panels and a scale: the image, the image with the heat map over it, and the heat map.

    Every pixel becomes a flat square without smoothing, so the colour gives the value of the map. Black
    is 0, and white is the largest value; the scale shows it.

    Args:
        image: (H, W), grey or RGB.
        heat: (H, W), at least 0.
        caption: a line of text at the bottom.

    Raises:
        InputError: the map has another size than the image, or negative values.
        NumericalError: the map has NaN or infinity.
    """
    values = heat.detach().cpu().double().numpy()
    if values.shape != (image.height, image.width):
        raise InputError(
            f"expected a heat map of {image.height} x {image.width} like the image, "
            f"got shape {values.shape}"
        )
    if not np.isfinite(values).all():
        raise NumericalError("expected a finite heat map, found NaN or infinity")
    if (values < 0).any():
        raise InputError(f"expected a heat map of values of at least 0, got {values.min():g}")
    top = float(values.max())
    panels = [image.convert("RGB"), *heated(image, values, top)]
    row = make_grid(panels, columns=3, upscale=viewing_scale(image, PANEL_PIXELS))
    result = Image.new("RGB", (row.width, row.height + BAR_PIXELS), "white")
    result.paste(row, (0, 0))
    result.paste(colour_bar(row.width, BAR_PIXELS), (0, row.height))
    result = captioned(result, f"black 0, white {top:.4g}")
    return captioned(result, caption) if caption else result


def heated(image: Image.Image, values: np.ndarray, top: float) -> tuple[Image.Image, Image.Image]:
    """The image with a heat map over it, and the heat map alone.

    Args:
        image: (H, W), grey or RGB.
        values: (H, W), at least 0.
        top: the value that becomes white; black is 0.
    """
    hot = Image.fromarray(colours((values / top).clip(max=1) if top > 0 else values))
    return Image.blend(image.convert("RGB"), hot, 0.6), hot


def colour_bar(width: int, height: int) -> Image.Image:
    """The colours from 0 to the largest value, from left to right."""
    return Image.fromarray(colours(np.broadcast_to(np.linspace(0, 1, width), (height, width))))
