"""Pictures, folders and arrays as people have them: training, scoring and inpainting read them alike."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset

from cdrl_infer.errors import InputError
from cdrl_infer.images import (
    each_image,
    open_image,
    read_header,
    read_images,
    read_masks,
)
from cdrl_train.data.sources import load_images

SHAPE = (1, 5, 7)
PIXELS = np.random.default_rng(0).integers(0, 200, (3, 5, 7), dtype=np.uint8)
GREY = Image.fromarray(PIXELS[0])
RGB = Image.fromarray(np.moveaxis(PIXELS, 0, -1).copy())


def stored(picture: Image.Image, folder: Path, name: str = "a.png", **options: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    picture.save(folder / name, **options)
    return folder / name


# -- one rule for transparency, grey and orientation -------------------------------------------


def clear(picture: Image.Image, opacity: int) -> Image.Image:
    """One pixel of this opacity; the others are opaque."""
    mode = "LA" if picture.mode == "L" else "RGBA"
    layer = Image.new("L", picture.size, 255)
    layer.putpixel((3, 2), opacity)
    picture = picture.convert(mode)
    picture.putalpha(layer)
    return picture


@pytest.mark.parametrize(
    ("picture", "options", "fault"),
    [
        (clear(GREY, 255), {}, ""),
        (clear(GREY, 254), {}, "transparent pixels"),
        (GREY.convert("RGBA"), {}, ""),
        (GREY.convert("P"), {}, ""),
        (GREY, {"transparency": 255}, ""),  # no pixel has this value
        (GREY, {"transparency": int(PIXELS[0, 0, 0])}, "transparent pixels"),
        (GREY.convert("P"), {"transparency": int(PIXELS[0, 0, 0])}, "transparent pixels"),
        (clear(RGB, 0), {}, "transparent pixels"),
        (clear(RGB, 255), {}, "got colours"),
        (RGB, {}, "got colours"),
        (RGB.quantize(8), {}, "got colours"),
        (Image.fromarray(PIXELS[0].astype(np.uint16)), {}, "8 bits per channel"),
    ],
)
def test_pictures_mean_the_same_everywhere(
    tmp_path: Path, picture: Image.Image, options: dict[str, Any], fault: str
) -> None:
    path = stored(picture, tmp_path, **options)
    ways: list[Callable[[], Any]] = [
        lambda: 255 * read_images(path, SHAPE),
        lambda: 255 * read_images([Image.open(path)], SHAPE),
        lambda: load_images(str(tmp_path), channels=1).images,
    ]
    for way in ways:
        if fault:
            with pytest.raises(InputError, match=fault) as caught:
                way()
            assert "\n" not in str(caught.value)
        else:
            assert np.array_equal(way()[0, 0].numpy().round(), PIXELS[0])
    if "colours" in fault:
        expected = picture.convert("RGB").convert("L")
        for found in (
            255 * read_images(path, SHAPE, grey=True),
            load_images(str(tmp_path), grey=True).images,
        ):
            assert np.array_equal(found[0, 0].numpy().round(), np.asarray(expected))


def test_a_folder_has_the_channels_that_its_pictures_need(tmp_path: Path) -> None:
    stored(GREY.convert("RGB"), tmp_path, "a.png")
    stored(GREY, tmp_path, "b.png")
    data = load_images(str(tmp_path))
    assert data.images.shape == (2, 1, 5, 7) and torch.equal(*data.images)
    assert load_images(str(tmp_path), channels=3).images.shape == (2, 3, 5, 7)
    stored(RGB, tmp_path, "c.png")
    assert load_images(str(tmp_path)).images.shape == (3, 3, 5, 7)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_as_their_exif_says(tmp_path: Path, orientation: int) -> None:
    back = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Pillow's number of the inverse
    tag = Image.Exif()
    tag[0x0112] = orientation
    held = GREY if orientation == 1 else GREY.transpose(Image.Transpose(back[orientation]))
    for name in ("a.tif", "a.png"):
        packed = {"compression": "tiff_lzw"} if name == "a.tif" else {}
        path = stored(held, tmp_path, name, exif=tag, **packed)
        assert read_header(path).size == GREY.size
    for given in (path, Image.open(path), tmp_path / "a.tif", Image.open(tmp_path / "a.tif")):
        assert np.array_equal((255 * read_images(given, SHAPE))[0, 0].round(), PIXELS[0])
    assert np.array_equal(load_images(str(tmp_path)).images[0, 0], PIXELS[0])


def test_a_tiff_that_pillow_scrambles_is_refused(tmp_path: Path) -> None:
    tag = Image.Exif()
    tag[0x0112] = 6
    with pytest.raises(InputError, match=r"a.tif cannot be read .* save it upright"):
        open_image(stored(GREY, tmp_path, "a.tif", exif=tag))


def test_damaged_exif_does_not_spoil_a_picture(tmp_path: Path) -> None:
    path = stored(GREY, tmp_path, exif=b"Exif\0\0no tiff")
    assert open_image(path).tobytes() == GREY.tobytes()


@pytest.mark.parametrize("name", ["pipe.png", "zero.png"])
def test_only_regular_files_are_read(tmp_path: Path, name: str) -> None:
    if name == "pipe.png":
        os.mkfifo(tmp_path / name)
    else:
        (tmp_path / name).symlink_to("/dev/zero")
    with pytest.raises(InputError, match=f"{name} cannot be read .*expected a regular file"):
        open_image(tmp_path / name)
    stored(GREY, tmp_path)
    assert len(load_images(str(tmp_path))) == 1


# -- masks ---------------------------------------------------------------------------------------

TOP = np.zeros((5, 7), dtype=np.uint8)
TOP[:2] = 1


def layer(colour: tuple[int, ...], ground: tuple[int, ...]) -> Image.Image:
    picture = Image.new("RGBA", (7, 5), ground)
    picture.paste(colour, (0, 0, 7, 2))
    return picture


@pytest.mark.parametrize(
    "mask",
    [
        layer((255, 255, 255, 255), (255, 255, 255, 0)),
        layer((0, 0, 0, 255), (0, 0, 0, 0)),
        layer((200, 30, 30, 130), (200, 30, 30, 120)),
        layer((255, 255, 255, 255), (255, 255, 255, 0)).convert("LA"),
        layer((255, 255, 255, 255), (0, 0, 0, 255)),
        Image.fromarray(TOP.astype(np.float32)),
        Image.fromarray(TOP),
        Image.fromarray(255 * TOP.astype(np.int32)),
        TOP[..., None],
        TOP.astype(np.float64),
        torch.from_numpy(TOP).half(),
        TOP.astype(bool),
    ],
)
def test_masks_paint_where_the_brush_painted(mask: Any) -> None:
    assert np.array_equal(read_masks(mask, SHAPE)[0, 0], TOP == 1)


@pytest.mark.parametrize(
    ("mask", "fault"),
    [
        (clear(RGB, 0), "strokes of one colour"),
        (Image.fromarray(0.5 * TOP.astype(np.float32)), "of 0 and 255, got other values"),
        (Image.new("RGBA", (7, 5), (255, 255, 255, 0)), "a mask is empty"),
    ],
)
def test_masks_that_may_mean_either_are_refused(mask: Any, fault: str) -> None:
    with pytest.raises(InputError, match=fault):
        read_masks(mask, SHAPE)


# -- arrays, data sets, paths --------------------------------------------------------------------


class Numbered:
    """A map-style data set that never ends by itself."""

    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, k: int) -> Any:
        return self.items[k % len(self.items)]


TENSOR = torch.from_numpy(PIXELS)[:, None]


@pytest.mark.parametrize(
    "given",
    [
        PIXELS,
        (PIXELS / 255).astype(">f8"),
        PIXELS[:, None],
        PIXELS[..., None],
        np.stack([PIXELS] * 3, -1),
        np.stack([PIXELS, np.full_like(PIXELS, 255)], 1),
        TENSOR,
        TENSOR[:, 0],
        TENSOR.movedim(1, -1),
        TENSOR.expand(-1, 3, -1, -1),
        list(PIXELS),
        Numbered([(image, 7) for image in PIXELS]),
        Numbered(list(TENSOR)),
        TensorDataset(TENSOR, torch.arange(3)),
        DataLoader(TensorDataset(TENSOR, torch.eye(3)), batch_size=2),
        [(image, "coat") for image in TENSOR],
    ],
)
def test_arrays_come_in_many_layouts(given: Any) -> None:
    found = read_images(given, SHAPE)
    assert np.array_equal((255 * found[:, 0]).round(), PIXELS)


def test_colours_in_arrays_become_grey_as_in_pictures() -> None:
    array = np.asarray(RGB)
    expected = read_images(RGB, SHAPE, grey=True)
    assert torch.equal(read_images(array, SHAPE, grey=True), expected)
    floats = read_images(array / 255, SHAPE, grey=True)
    torch.testing.assert_close(floats, expected, atol=0.6 / 255, rtol=0)
    assert read_images(PIXELS[0], (3, 5, 7)).shape == (1, 3, 5, 7)


def test_paths_are_read(tmp_path: Path) -> None:
    paths = [stored(Image.fromarray(p), tmp_path, f"{k}.png") for k, p in enumerate(PIXELS)]
    for given in (tmp_path, str(tmp_path), paths, list(map(str, paths)), [(p, 1) for p in paths]):
        assert np.array_equal((255 * read_images(given, SHAPE)[:, 0]).round(), PIXELS)


ENDLESS: list[Any] = []
ENDLESS.append(ENDLESS)


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        (TensorDataset(TENSOR, TENSOR), "image 0: .* a tuple of 2 with several images"),
        (np.asarray(RGB), "got colours"),
        (np.asarray(clear(RGB, 3)), "transparent pixels"),
        (TENSOR.to_sparse(), "expected a dense tensor"),
        (TENSOR.to("meta"), "expected a dense tensor"),
        (TENSOR.float().to(torch.complex64), "expected uint8 or floats"),
        (np.zeros((3, 28, 28), np.uint8), r"5 x 7, got shape \(3, 28, 28\); give"),
        ({"image": GREY}, "got dict of 'image'; give its image alone"),
        (ENDLESS, "lists within lists"),
    ],
)
def test_what_is_no_image_is_refused(given: Any, fault: str) -> None:
    with pytest.raises(InputError, match=fault) as caught:
        list(each_image(given, SHAPE))
    assert "\n" not in str(caught.value)
