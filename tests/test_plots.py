"""Plots and overlays: axes, colours, and maps that cannot be drawn."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cdrl_infer.errors import InputError, NumericalError
from cdrl_infer.images import to_pil
from cdrl_infer.scoring import plots


def outlined(polygon: Any) -> tuple[np.ndarray, np.ndarray]:
    """Edges and heights of the bins of a histogram drawn as steps."""
    x, y = polygon.get_xy().T
    return x[::2], y[1:-1:2]


def test_histogram_axes() -> None:
    for scores, scale in (
        ([1.0, 2.0, 1000.0], "log"),
        ([-5.0, 2.0, 1000.0], "linear"),
        ([0.0, 1000.0], "linear"),
        ([3.0], "linear"),
        ([3.0, 3.0], "linear"),
    ):
        figure = plots.new_figure()
        plots.draw_histogram(figure, np.array(scores), name="x")
        assert figure.axes[0].get_xscale() == scale
        edges, shares = outlined(figure.axes[0].patches[0])
        assert edges[0] <= min(scores) and edges[-1] >= max(scores)
        assert sum(shares) == pytest.approx(1)


def read_heat(panel: Image.Image, side: int, top: float) -> np.ndarray:
    """The values of the map, read off the third panel's colours."""
    step = 224 // side
    left = 2 * (224 + 2) + 2 + step // 2
    found = np.asarray(panel)[2 + step // 2 : 2 + 224 : step, left : left + 224 : step]
    known = plots.colours(np.linspace(0, 1, 1001)).astype(float)
    distance = ((found[:, :, None].astype(float) - known) ** 2).sum(-1)
    return distance.argmin(-1) / 1000 * top


def test_overlay_of_an_empty_map_and_of_bad_ones() -> None:
    image = Image.new("L", (4, 4), 90)
    for value in (0.0, 1e-300, 1e300):
        panel = plots.overlay(image, torch.full((4, 4), value, dtype=torch.float64))
        assert np.isfinite(np.asarray(panel)).all()
    black = plots.overlay(image, torch.zeros(4, 4))
    assert (read_heat(black, 4, 1.0) == 0).all()
    with pytest.raises(NumericalError, match="found NaN or infinity"):
        plots.overlay(image, torch.full((4, 4), torch.nan))
    with pytest.raises(InputError, match="of 4 x 4 like the image, got shape"):
        plots.overlay(image, torch.zeros(5, 4))
    with pytest.raises(InputError, match="of at least 0, got -1"):
        plots.overlay(image, -torch.ones(4, 4))
    large = to_pil(torch.zeros(1, 3, 300, 200))[0]
    assert plots.overlay(large, torch.ones(300, 200)).size[0] == 3 * 202 + 2


def test_more_is_brighter() -> None:
    v = np.linspace(0, 1, 256)
    luma = plots.colours(v) @ np.array([0.30, 0.59, 0.11]) / 255
    assert np.abs(luma - v).max() < 0.01
    assert (np.diff(luma) > 0).mean() > 0.99
    assert len(np.unique(plots.colours(v), axis=0)) == 256
