"""Fashion-MNIST in colour: garment, colour and background, of which the truth is known.

A set to compose concepts with. Some pairs of garment and colour are never shown in training, so that a
model that draws them has put them together itself.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cdrl_infer.errors import InputError
from cdrl_infer.model import Attribute
from cdrl_train.data.image_set import ImageSet

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
    """Paint grey clothes on a grey ground, each image in a random colour.

    With g the grey value in [0, 1]: opacity ``min(1, 3g)``, paint ``colour · (0.4 + 0.6 g)``.

    Args:
        clothes: (N, 1, H, W) with the ten classes of Fashion-MNIST.
        seed: of colours, backgrounds and their spread.
        held_out: pairs (garment, colour) that do not occur; the other colours of that garment then
            occur more often.

    Returns:
        (N, 3, H, W), with labels (N, 3) of `ATTRIBUTES`.

    Raises:
        InputError: images that are not grey, or not of ten classes.
    """
    if clothes.labels is None or clothes.num_classes != (len(GARMENTS.values),):
        raise InputError(f"expected clothes of {len(GARMENTS.values)} classes to be coloured")
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
