"""Fashion-MNIST in colour: the garment, the colour and the background of each image are known.

The set is made to compose concepts. Some pairs of garment and colour never occur in training, so a model
that draws them has composed them itself.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cdrl_infer.errors import InputError
from cdrl_infer.model import Attribute
from cdrl_train.data.image_set import ImageSet
from cdrl_train.data.registry import Source
from cdrl_train.data.sources import data_name, empty, load_images

GARMENTS = Attribute(
    "garment",
    (
        *("t-shirt", "trouser", "pullover", "dress", "coat"),
        *("sandal", "shirt", "sneaker", "bag", "boot"),
    ),
)
COLOURS = Attribute("colour", ("red", "yellow", "green", "blue"))
BACKGROUNDS = Attribute("background", ("dark", "light"))
ATTRIBUTES = (GARMENTS, COLOURS, BACKGROUNDS)
HELD_OUT = (
    ("sneaker", "red"),
    ("dress", "blue"),
    ("bag", "green"),
    ("coat", "yellow"),
    ("trouser", "red"),
    ("boot", "blue"),
)

RGB = torch.tensor([(0.90, 0.15, 0.15), (0.90, 0.75, 0.10), (0.15, 0.65, 0.25), (0.20, 0.35, 0.90)])
GREY = torch.tensor([0.10, 0.90])
RGB_SPREAD, GREY_SPREAD = 0.05, 0.04  # standard deviations, one draw per image and channel


def render(clothes: ImageSet, seed: int, held_out: tuple[tuple[str, str], ...] = ()) -> ImageSet:
    """Paint grey clothes on a grey background, each image in a random colour.

    With g the grey value in [0, 1]: opacity ``min(1, 3g)``, paint ``colour · (0.4 + 0.6 g)``.

    Args:
        clothes: (N, 1, H, W) images with the ten classes of Fashion-MNIST.
        seed: seed of the colours, the backgrounds and their spread.
        held_out: pairs (garment, colour) that must not occur; the other colours of that garment occur
            more often.

    Returns:
        (N, 3, H, W) images with labels (N, 3) of `ATTRIBUTES`.

    Raises:
        InputError: the images are not grey, or do not have ten classes.
    """
    if clothes.labels is None or clothes.num_classes != (len(GARMENTS.values),):
        raise InputError(
            f"expected grey clothes of {len(GARMENTS.values)} classes to colour, got labels of "
            f"{clothes.num_classes or 'no'} classes"
        )
    if clothes.images.shape[1] != 1:
        raise InputError(f"expected grey images, got {clothes.images.shape[1]} channels")
    generator = torch.Generator().manual_seed(seed)
    count = len(clothes)
    garment = clothes.labels[:, 0]
    allowed = torch.ones(len(GARMENTS.values), len(COLOURS.values))
    for name, colour_name in held_out:
        allowed[GARMENTS.values.index(name), COLOURS.values.index(colour_name)] = 0
    colour = torch.multinomial(allowed[garment], 1, generator=generator)[:, 0]
    background = torch.randint(len(BACKGROUNDS.values), (count,), generator=generator)

    def spread(mean: Tensor, deviation: float) -> Tensor:
        drawn = mean + deviation * torch.randn(mean.shape, generator=generator)
        return drawn.clamp(0, 1)[:, :, None, None]

    paint = spread(RGB[colour], RGB_SPREAD)
    ground = spread(GREY[background][:, None], GREY_SPREAD)
    images = torch.empty(count, 3, *clothes.images.shape[2:], dtype=torch.uint8)
    for first in range(0, count, 4096):
        part = slice(first, first + 4096)
        grey = clothes.images[part].float() / 255
        opacity = (3 * grey).clamp(max=1)
        mixed = opacity * paint[part] * (0.4 + 0.6 * grey) + (1 - opacity) * ground[part]
        images[part] = (255 * mixed).round().to(torch.uint8)
    return ImageSet(images, torch.stack([garment, colour, background], dim=1), ATTRIBUTES)


class Coloured(Source):
    """``coloured:SOURCE``: the clothes of another source, coloured; held-out pairs only in "test"."""

    def read(self, rest: str, split: str, in_memory: int) -> ImageSet:
        """Read and colour SOURCE."""
        clothes = load_images(rest, split, in_memory=in_memory)
        train = split == "train"
        return render(clothes, 0, HELD_OUT) if train else render(clothes, 1)

    def empty(self, rest: str) -> ImageSet | None:
        """Colour no images of SOURCE."""
        clothes = empty(rest)
        return None if clothes is None else render(clothes, 0)

    def display_name(self, rest: str) -> str:
        """The name of SOURCE."""
        return data_name(rest)


COLOURED = Coloured()
