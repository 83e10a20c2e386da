"""Pixels: clamped, rounded, never wrapped; pictures with their data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cdrl_infer.errors import InputError, NumericalError
from cdrl_infer.images import (
    captioned,
    make_grid,
    save_gif,
    save_png,
    to_numpy,
    to_pil,
    to_uint8,
    to_unit,
    viewing_scale,
)


def test_values_are_clamped_and_rounded_never_wrapped() -> None:
    values = torch.tensor([-1e9, -1.01, -1.0, 0.0, 1.0, 1.004, 1.01, 3.0, 1e9, float("inf")])
    expected = torch.tensor([0, 0, 0, 128, 255, 255, 255, 255, 255, 255], dtype=torch.uint8)
    assert torch.equal(to_uint8(values), expected)
    every = torch.arange(256, dtype=torch.float32) / 127.5 - 1
    assert torch.equal(to_uint8(every), torch.arange(256, dtype=torch.uint8))
    assert torch.equal(to_uint8(every + 0.49 / 127.5), to_uint8(every))


def test_nan_is_reported_not_painted() -> None:
    with pytest.raises(NumericalError, match="found NaN"):
        to_unit(torch.tensor([0.0, float("nan")]))


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_pictures_are_upright_and_come_back(channels: int, mode: str) -> None:
    images = torch.full((2, channels, 4, 6), -1.0)
    images[0, 0, 0, 5] = 1.0  # first channel, top row, right-most column
    pictures = to_pil(images)
    assert [p.mode for p in pictures] == [mode, mode]
    assert pictures[0].size == (6, 4)
    assert np.argwhere(np.asarray(pictures[0])).tolist()[0][:2] == [0, 5]
    assert pictures[0].getpixel((5, 0)) == (255 if channels == 1 else (255, 0, 0))
    arrays = torch.from_numpy(np.stack([np.asarray(p) for p in pictures]))
    back = arrays.reshape(2, 4, 6, channels).permute(0, 3, 1, 2).float() / 127.5 - 1
    assert torch.equal(back, images)


def test_arrays_have_channels_last() -> None:
    unit = torch.rand(2, 3, 4, 5)
    array = to_numpy(unit)
    assert array.shape == (2, 4, 5, 3) and array.dtype == np.float32
    assert array[1, 2, 3, 0] == unit[1, 0, 2, 3]


def test_wrong_shapes() -> None:
    with pytest.raises(InputError, match=r"1 or 3 channels, got shape \(1, 2, 4, 4\)"):
        to_pil(torch.zeros(1, 2, 4, 4))
    with pytest.raises(InputError, match="got shape"):
        to_pil(torch.zeros(3, 4, 4))
    for pictures in ([], [Image.new("L", (2, 2)), Image.new("L", (2, 3))]):
        with pytest.raises(InputError, match="pictures of one size"):
            make_grid(pictures)


def test_grid_places_every_picture_in_reading_order() -> None:
    pictures = [Image.new("L", (3, 2), 10 * k) for k in range(5)]
    grid = make_grid(pictures, columns=3, padding=1, upscale=2)
    assert grid.size == (3 * 7 + 1, 2 * 5 + 1)
    corners = [(1 + 7 * (k % 3), 1 + 5 * (k // 3)) for k in range(5)]
    assert [grid.getpixel(c) for c in corners] == [0, 10, 20, 30, 40]
    assert [grid.getpixel((x + 5, y + 3)) for x, y in corners] == [0, 10, 20, 30, 40]
    assert grid.getpixel((0, 0)) == 255
    assert grid.getpixel((15, 6)) == 255  # the place of the sixth
    assert make_grid(pictures, padding=0).size == (9, 4)


def test_small_pictures_are_scaled_for_viewing() -> None:
    assert [viewing_scale(Image.new("L", (s, s))) for s in (8, 28, 32, 64, 256)] == [8, 2, 2, 1, 1]


def test_png_carries_its_data(tmp_path: Path) -> None:
    data = {"seed": str(2**63 - 1), "label": "T-shirt/top → ∅", "model": "m"}
    save_png(Image.new("L", (4, 4), 7), tmp_path / "a.png", data)
    with Image.open(tmp_path / "a.png") as image:
        assert image.text == data
        assert image.getpixel((0, 0)) == 7


def test_film_has_its_frames_and_times(tmp_path: Path) -> None:
    frames = [captioned(Image.new("L", (20, 20), 60 * k), f"level {k}") for k in range(4)]
    assert frames[0].width > 20 and frames[0].height > 20
    save_gif(frames, tmp_path / "film.gif", [100, 100, 100, 300])
    with Image.open(tmp_path / "film.gif") as film:
        assert film.n_frames == 4
        assert film.info["duration"] == 100 and film.info["loop"] == 0
        film.seek(3)
        assert film.info["duration"] == 300
        assert film.convert("L").getpixel((3, 3)) == pytest.approx(180, abs=2)
