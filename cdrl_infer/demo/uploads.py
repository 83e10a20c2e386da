"""Uploaded files to pictures; a file that is no picture is named in one line."""

from __future__ import annotations

import os
from pathlib import Path

from PIL import Image, ImageOps

from cdrl_infer.errors import InputError
from cdrl_infer.images import decode_image
from cdrl_infer.images.rules import alpha, plain
from cdrl_infer.model import ImageShape

MAX_UPLOAD = 10 * 2**20  # bytes of one file
MAX_FILES = 24  # of one upload


def read_upload(path: str | os.PathLike[str], image: ImageShape) -> Image.Image:
    """The picture in an uploaded file as the model takes it.

    Another shape is cropped to the middle, transparent parts become white, and a model of grey images
    gets the brightness.

    Args:
        path: the file.
        image: the shape of the model's images.

    Raises:
        InputError: the file is too large, is no picture, or has more than 8 bits per channel; the
            message has its name without the folder.
    """
    name = Path(path).name
    if os.path.getsize(path) > MAX_UPLOAD:
        raise InputError(f"{name}: expected a file of at most {MAX_UPLOAD // 2**20} MB")
    try:
        picture = decode_image(path)
    except InputError:
        raise InputError(
            f"{name}: expected a picture (PNG, JPEG, WebP, GIF, BMP or TIFF), found something else"
        ) from None
    if alpha(picture) is not None:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    try:
        picture = plain(picture, image.channels, grey=True)
    except (ValueError, OSError) as error:  # InputError is one; some modes cannot be converted
        raise InputError(f"{name}: {error}") from None
    return ImageOps.fit(picture, (image.width, image.height), Image.Resampling.LANCZOS)
