"""Pictures in files."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from PIL import Image, ImageFile

from cdrl_infer.errors import InputError
from cdrl_infer.images.rules import plain

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF")  # reading some others runs programs
SUFFIXES = (  # of files in these formats
    *(".apng", ".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg"),
    *(".png", ".tif", ".tiff", ".webp"),
)
MAX_FILE = (
    2**29
)  # bytes; the largest picture that Pillow's limit on pixels allows has about as many
ORIENTATION = 0x0112  # the EXIF tag: how a camera was held
SIDEWAYS = (5, 6, 7, 8)  # orientations that exchange width and height
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class Header(NamedTuple):
    """The facts of a picture that are known before it is decoded."""

    mode: str  # as Pillow names it: "L", "RGB", "RGBA" …
    size: tuple[int, int]  # width, height of the upright picture
    transparency: bool  # whether it may have transparent pixels


@contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[ImageFile.ImageFile]:
    try:
        if os.path.exists(path) and not os.path.isfile(path):  # reading a pipe may never end
            raise OSError("expected a regular file")
        if os.path.getsize(path) > MAX_FILE:
            raise OSError(f"expected at most {MAX_FILE:,} bytes")
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS) as image:
                yield image
    except Exception as error:  # a damaged picture can raise any error
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise InputError(f"{path} cannot be read as an image: {reason}") from error


def _orientation(image: Image.Image) -> int:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of damaged EXIF
            return int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # damaged EXIF is common, and the pixels are good without it
        return 1


def upright(image: ImageFile.ImageFile) -> Image.Image:
    """Decode a picture and turn or mirror it as its EXIF data say, so that it is what a viewer shows.

    Raises:
        OSError: the picture is a TIFF that Pillow would decode wrongly. A damaged picture can raise any
            error.
    """
    sideways_tiff = image.format == "TIFF" and _orientation(image) in SIDEWAYS
    if sideways_tiff and any(tile[0] != "libtiff" for tile in image.tile):
        raise OSError("it is a TIFF without compression and on its side; save it upright")
    image.load()  # this turns a TIFF
    turn = TURNS.get(_orientation(image))
    return image if turn is None else image.transpose(turn)


def read_header(path: str | os.PathLike[str]) -> Header:
    """Mode and size of the picture in a file.

    Raises:
        InputError: see `decode_image`.
    """
    with _opened(path) as image:
        width, height = image.size
        turned = image.format != "TIFF" and _orientation(image) in SIDEWAYS  # Pillow turns a TIFF
        size = (height, width) if turned else (width, height)
        return Header(image.mode, size, image.has_transparency_data)


def decode_image(path: str | os.PathLike[str]) -> Image.Image:
    """The picture in a file, upright; one that is too large is refused before it is decoded.

    Raises:
        InputError: the file is not a regular file with a picture in one of `FORMATS`, or the picture has
            more pixels than Pillow's limit against decompression bombs.
    """
    with _opened(path) as image:
        return upright(image)


def open_image(
    path: str | os.PathLike[str], channels: int | None = None, grey: bool = False
) -> Image.Image:
    """The picture in a file, as mode "L" or "RGB".

    Args:
        path: the file.
        channels, grey: see `cdrl_infer.images.rules.plain`.

    Raises:
        InputError: see `decode_image` and `cdrl_infer.images.rules.plain`.
    """
    image = decode_image(path)
    try:
        return plain(image, channels, grey)
    except (ValueError, OSError) as error:  # InputError is one; some modes cannot be converted
        raise InputError(f"{path}: {error}") from None
