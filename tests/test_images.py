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
    open_image,
    read_images,
    read_masks,
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


def test_pictures_are_opened_as_grey_or_rgb(tmp_path: Path) -> None:
    grey, red = Image.new("L", (3, 2), 7), Image.new("RGB", (3, 2), "red")
    for given, modes in ((grey, ("1", "L", "LA", "RGB", "RGBA", "P")), (red, ("RGB", "RGBA", "P"))):
        for mode in modes:
            given.convert(mode).save(tmp_path / "a.png")
            picture = open_image(tmp_path / "a.png")
            assert (picture.mode, picture.size) == (given.mode, (3, 2))
            if mode != "1":
                assert picture.tobytes() == given.tobytes()
            assert open_image(tmp_path / "a.png", grey=True).mode == "L"
            assert open_image(tmp_path / "a.png", 3).mode == "RGB"
    with pytest.raises(InputError, match=r"a.png: expected a grey picture, got colours; grey=True"):
        open_image(tmp_path / "a.png", 1)


def test_a_decompression_bomb_is_refused_unpacked(tmp_path: Path) -> None:
    """10,000 × 10,000 pixels in 12 kB: a real one, below the size at which Pillow itself stops."""
    Image.new("1", (10_000, 10_000)).save(tmp_path / "bomb.png", optimize=True)
    assert (tmp_path / "bomb.png").stat().st_size < 20_000
    with pytest.raises(InputError, match=r"bomb.png cannot be read as an image: .*bomb"):
        open_image(tmp_path / "bomb.png")


def test_formats_that_run_programs_are_not_opened(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    with pytest.raises(InputError, match="cannot be read as an image: cannot identify"):
        open_image(tmp_path / "a.png")


class TestReading:
    """What a caller gives -> tensors; what is refused is in test_inpainting.py, where users meet it."""

    def test_rows_columns_and_channels_stay_in_place(self) -> None:
        array = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
        expected = torch.from_numpy(array).permute(2, 0, 1)[None].float() / 255
        given = [
            array,
            array[None],
            Image.fromarray(array),
            torch.from_numpy(array).permute(2, 0, 1),
            array / 255,
            array[::-1][::-1],  # strides below zero
            np.asarray(Image.fromarray(array)),  # not writable
        ]
        for image in given:
            found = read_images(image, (3, 5, 7))
            assert found.dtype == torch.float32
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-7)
        assert torch.equal(read_images(given[0], (3, 5, 7)), expected)

    def test_lists_of_several_kinds(self) -> None:
        grey = np.arange(35, dtype=np.uint8).reshape(5, 7)
        several = [
            grey,
            Image.fromarray(grey),
            torch.from_numpy(grey)[None],
            np.stack([grey] * 2)[..., None],
        ]
        found = read_images(several, (1, 5, 7))
        assert found.shape == (5, 1, 5, 7)
        assert (found == torch.from_numpy(grey).float() / 255).all()

    def test_a_caller_keeps_what_was_given(self) -> None:
        grey, mask = np.zeros((5, 7), dtype=np.float32), np.ones((5, 7), dtype=bool)
        read_images(grey, (1, 5, 7)).fill_(1)
        read_masks(mask, (1, 5, 7)).fill_(False)
        assert not grey.any() and mask.all()

    def test_a_mask_picture_is_cut_at_half_white(self) -> None:
        ramp = np.tile(np.array([0, 127, 128, 255], dtype=np.uint8), (3, 1))
        for picture in (Image.fromarray(ramp), Image.fromarray(ramp).convert("RGB")):
            hole = read_masks(picture, (3, 3, 4))
            assert hole.shape == (1, 1, 3, 4) and hole.dtype == torch.bool
            assert hole[0, 0].tolist() == [[False, False, True, True]] * 3

    def test_masks_of_several_images(self) -> None:
        masks = np.zeros((3, 5, 7))
        masks[0, 1, 2] = masks[1, 3, 4] = masks[2, 0, 6] = 255
        found = read_masks(masks, (1, 5, 7))
        assert found.nonzero().tolist() == [[0, 0, 1, 2], [1, 0, 3, 4], [2, 0, 0, 6]]
        assert torch.equal(read_masks(list(masks), (1, 5, 7)), found)
        assert torch.equal(read_masks(torch.from_numpy(masks)[:, None], (1, 5, 7)), found)

    def test_resizing(self) -> None:
        picture = Image.new("L", (14, 10), 40)
        picture.paste(200, (0, 0, 7, 10))  # left half
        found = read_images(picture, (1, 5, 7), resize=True)
        expected = np.asarray(picture.resize((7, 5), Image.Resampling.LANCZOS)) / np.float32(255)
        assert np.array_equal(found[0, 0].numpy(), expected)
        hole = read_masks(picture, (1, 5, 8), resize=True)[0, 0]  # 3.5 pixels would be grey
        assert hole.shape == (5, 8) and hole[:, :4].all() and not hole[:, 4:].any()
