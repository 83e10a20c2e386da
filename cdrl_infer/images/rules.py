"""The rules for transparent, grey and coloured pictures, in training, scoring and inpainting alike.

- *Transparency* is judged by the pixels. A picture whose pixels are all opaque loses its alpha channel.
  A picture with transparent pixels is refused, because the colour behind them is not known.
- *Grey* is judged by the pixels too. A picture with R = G = B everywhere is grey, however it is stored.
  A model of colour images takes it; a model of grey images takes a coloured one only with ``grey=True``.
- A picture has 8 bits per channel.
"""

from __future__ import annotations

import torch
from PIL import Image, ImageChops
from torch import Tensor

from cdrl_infer.errors import InputError

MODES = {1: "L", 3: "RGB"}
TRANSPARENT = (
    "expected an opaque picture, got transparent pixels; paste it on a background first: "
    "Image.alpha_composite(Image.new('RGBA', image.size, 'white'), image.convert('RGBA'))"
)
COLOURED = "expected a grey picture, got colours; grey=True (--grey) takes their brightness"


def alpha(picture: Image.Image) -> Image.Image | None:
    """The opacity 0 … 255 of each pixel, a picture of mode "L"; None if all pixels are opaque."""
    if not picture.has_transparency_data:
        return None
    found = picture.convert("RGBA").getchannel("A")
    return None if found.getextrema()[0] == 255 else found


def plain(picture: Image.Image, channels: int | None, grey: bool = False) -> Image.Image:
    """The picture as mode "L" (1 channel) or "RGB" (3).

    Args:
        picture: in any mode.
        channels: 1 or 3; None: 1 for a grey picture, 3 for a coloured one.
        grey: make 1 channel of a coloured picture, by the brightness of ITU-R 601-2.

    Raises:
        InputError: transparent pixels, colours for 1 channel, or more than 8 bits per channel.
    """
    if picture.mode.startswith(("I", "F")):  # convert() would cut all values over 255
        raise InputError(
            f"expected 8 bits per channel, got mode {picture.mode!r}; convert it to 8-bit first"
        )
    if alpha(picture) is not None:
        raise InputError(TRANSPARENT)
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
    if picture.mode not in ("1", "L"):
        picture = picture.convert("RGB")
    coloured = picture.mode == "RGB" and _has_colours(picture)
    if channels is None:
        channels = 3 if coloured and not grey else 1
    if coloured and channels == 1 and not grey:
        raise InputError(COLOURED)
    return picture.convert(MODES[channels])


def _has_colours(picture: Image.Image) -> bool:
    red, green, blue = picture.split()
    return any(ImageChops.difference(red, other).getbbox() for other in (green, blue))


def to_channels(values: Tensor, channels: int | None, grey: bool = False) -> Tensor:
    """Apply the rules to arrays: (N, K, H, W) -> (N, C, H, W), uint8 or float in [0, 1].

    Args:
        values: K = 2 and 4 are 1 and 3 with an alpha channel.
        channels: C; None: that of the values without alpha.
        grey: as for `plain`.

    Raises:
        InputError: transparent pixels, or colours for 1 channel.
    """
    kept = values.shape[1]
    if kept in (2, 4) and kept != channels:
        opaque = 255 if values.dtype == torch.uint8 else 1
        if bool((values[:, -1] != opaque).any()):
            raise InputError(TRANSPARENT)
        values = values[:, :-1]
    if values.shape[1] == 1 and channels == 3:
        return values.expand(-1, 3, -1, -1)
    if values.shape[1] != 3 or not (channels == 1 or grey):
        return values
    red, green, blue = values[:, 0:1], values[:, 1:2], values[:, 2:3]
    if torch.equal(red, green) and torch.equal(red, blue):
        return red
    if not grey:
        raise InputError(COLOURED)
    if values.dtype != torch.uint8:
        return 0.299 * red + 0.587 * green + 0.114 * blue
    weighted = 19595 * red.int() + 38470 * green.int() + 7471 * blue.int()  # as Pillow rounds
    return ((weighted + 2**15) >> 16).to(torch.uint8)
