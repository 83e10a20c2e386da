"""Pictures of scores: how they are distributed, and where in an image they come from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor

from cdrl_infer.errors import InputError, NumericalError
from cdrl_infer.images import captioned, make_grid, viewing_scale

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BINS = 40
WIDE = 30  # positive scores that differ by more than this factor get a logarithmic axis
PANEL_PIXELS = 224  # side of the enlarged image
BAR_PIXELS = 10  # height of the colour bar


class Reference(NamedTuple):
    """(M,) scores of in-distribution images, and what these are."""

    scores: np.ndarray
    name: str


class Threshold(NamedTuple):
    """Above ``score`` lies the share ``fpr`` of in-distribution images."""

    score: float
    fpr: float


def new_figure() -> Figure:
    """An empty figure that needs no display.

    Raises:
        InputError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise InputError("plots need matplotlib: pip install 'cdrl[score]'") from None
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
) -> None:
    """How scores are distributed, beside those of in-distribution images.

    Both are shares of images per bin, so that the two can be compared whatever their number.

    Args:
        figure: to draw in.
        scores: (N,) of the images.
        name: of the score.
        reference: to compare them with.
        threshold: a line to draw.
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
        known, label = reference.scores, f"{reference.name} ({len(reference.scores):,})"
        axes.hist(known, bins, weights=_shares(known), color="0.75", label=label)
    label = f"these images ({len(scores):,})"
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
    """Values in [0, 1], of any shape, as colours (..., 3) uint8 from black to white.

    Brighter is more, also in grey: cubehelix has the luma ``0.30 R + 0.59 G + 0.11 B = v`` (Green 2011,
    "A colour scheme for the display of astronomical intensity images", with his start 0.5, -1.5
    rotations and hue 1, and his rounded coefficients).
    """
    v = values.astype(np.float64)[..., None]
    angle = 2 * np.pi * (0.5 / 3 + 1 - 1.5 * v)
    red, green, blue = (-0.14861, 1.78277), (-0.29227, -0.90649), (1.97294, 0.0)
    cosine, sine = np.array([red, green, blue]).T
    colour = v + v * (1 - v) / 2 * (cosine * np.cos(angle) + sine * np.sin(angle))
    return np.asarray((colour.clip(0, 1) * 255).round(), dtype=np.uint8)


def overlay(image: Image.Image, heat: Tensor, caption: str = "") -> Image.Image:
    """An image, the heat map over it, and the heat map alone, side by side; the scale under them.

    Every pixel becomes a flat square, nothing is smoothed, so that a value of the map can be read off
    by its colour: black is 0, white the map's largest value, which the scale names.

    Args:
        image: (H, W), grey or RGB.
        heat: (H, W), at least 0.
        caption: a line of text at the bottom.

    Raises:
        InputError: a map of another size than the image's, or negative.
        NumericalError: NaN or infinity in the map.
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
        raise InputError(f"expected a heat map of values from 0 on, got {values.min():g}")
    top = float(values.max())
    picture = image.convert("RGB")
    hot = Image.fromarray(colours(values / top if top > 0 else values))
    panels = [picture, Image.blend(picture, hot, 0.6), hot]
    row = make_grid(panels, columns=3, upscale=viewing_scale(image, PANEL_PIXELS))
    steps = np.broadcast_to(np.linspace(0, 1, row.width), (BAR_PIXELS, row.width))
    result = Image.new("RGB", (row.width, row.height + BAR_PIXELS), "white")
    result.paste(row, (0, 0))
    result.paste(Image.fromarray(colours(steps)), (0, row.height))
    result = captioned(result, f"black 0, white {top:.4g}")
    return captioned(result, caption) if caption else result
