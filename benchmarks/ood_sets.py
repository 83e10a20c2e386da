"""Images that do not belong to the data: other sets, noise, and changed test images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from cdrl_infer.errors import InputError
from cdrl_train.evaluation.outside import generator, read_outside

Bytes = NDArray[np.uint8]  # (N, C, H, W)

BLUR = 5  # pixels
NOISE = 20  # grey levels, standard deviation
PATCH = 8  # pixels each way, at most half of the image's
VISIBLE = 32  # grey levels, mean absolute difference of a patch to the pixels under it
TRIES = 20  # places drawn for a patch until it is visible at one


class OutSet(NamedTuple):
    """Images that a score should call anomalous."""

    name: str
    images: Bytes
    named: bool  # one of the sets chosen beforehand; False for an additional one


def uniform_noise(base: Bytes, rng: np.random.Generator) -> Bytes:
    """Each pixel has one of the 256 values at random."""
    return rng.integers(0, 256, base.shape, dtype=np.uint8)


def constant(base: Bytes, rng: np.random.Generator) -> Bytes:
    """One colour per image, for at most 256 images; no grey level of a channel occurs twice."""
    count, channels = min(len(base), 256), base.shape[1]
    levels = [rng.permutation(256)[:count] for _ in range(channels)]
    colours = np.stack(levels, axis=1).astype(np.uint8)
    return np.broadcast_to(colours[..., None, None], (count, *base.shape[1:])).copy()


def blurred(base: Bytes, rng: np.random.Generator) -> Bytes:
    """Each pixel is the mean of `BLUR` neighbours in a row; edge pixels are repeated outside."""
    half = BLUR // 2
    wide = np.pad(base.astype(float), ((0, 0), (0, 0), (0, 0), (half, half)), mode="edge")
    return _bytes(np.lib.stride_tricks.sliding_window_view(wide, BLUR, axis=3).mean(-1))


def shuffled(base: Bytes, rng: np.random.Generator) -> Bytes:
    """The pixels of all images in the same random order."""
    order = rng.permutation(base.shape[2] * base.shape[3])
    return base.reshape(*base.shape[:2], -1)[..., order].reshape(base.shape)


def blended(base: Bytes, rng: np.random.Generator) -> Bytes:
    """The means of two images, as in the paper's interpolation; each image occurs twice."""
    return _bytes((base.astype(float) + np.roll(base, 1, axis=0)) / 2)


def inverted(base: Bytes, rng: np.random.Generator) -> Bytes:
    """Black becomes white."""
    return 255 - base


def flipped(base: Bytes, rng: np.random.Generator) -> Bytes:
    """The first row comes last."""
    return base[:, :, ::-1].copy()


def faded(base: Bytes, rng: np.random.Generator) -> Bytes:
    """Images with half of all values."""
    return _bytes(base / 2)


def noisy(base: Bytes, rng: np.random.Generator) -> Bytes:
    """Images plus Gaussian noise, cut at black and white."""
    return _bytes(base + rng.normal(0, NOISE, base.shape))


def striped(base: Bytes, rng: np.random.Generator) -> Bytes:
    """Vertical stripes: sine waves from black to white, with periods of 3 to 30 pixels."""
    period, phase = rng.uniform(3, 30, (len(base), 1)), rng.uniform(0, 1, (len(base), 1))
    waves = np.sin(2 * np.pi * (np.arange(base.shape[3]) / period + phase))
    return np.broadcast_to(_bytes(127.5 + 127.5 * waves)[:, None, None], base.shape).copy()


def pasted(base: Bytes, rng: np.random.Generator) -> tuple[Bytes, NDArray[np.bool_]]:
    """Images with a patch from the middle of the next image, at a random place where it is `VISIBLE`.

    Returns:
        The images, and masks (N, H, W) that are True on the patch.
    """
    height, width = base.shape[2:]
    side = min(PATCH, height // 2, width // 2)
    top, left = (height - side) // 2, (width - side) // 2
    pieces = np.roll(base, -1, axis=0)[:, :, top : top + side, left : left + side]
    images, masks = base.copy(), np.zeros((len(base), height, width), bool)
    for image, mask, piece in zip(images, masks, pieces, strict=True):
        corners = rng.integers((0, 0), (height - side + 1, width - side + 1), (TRIES, 2))
        places = [np.s_[:, row : row + side, column : column + side] for row, column in corners]
        shows = [np.abs(image[place].astype(float) - piece).mean() for place in places]
        enough = [k for k, difference in enumerate(shows) if difference >= VISIBLE]
        place = places[enough[0] if enough else int(np.argmax(shows))]
        image[place] = piece
        mask[place[1:]] = True
    return images, masks


def patched(base: Bytes, rng: np.random.Generator) -> Bytes:
    """`pasted` without the masks."""
    return pasted(base, rng)[0]


def joined(base: Bytes, rng: np.random.Generator) -> Bytes:
    """The left half of an image beside the right half of the next image."""
    images, half = base.copy(), base.shape[3] // 2
    images[..., half:] = np.roll(base, -1, axis=0)[..., half:]
    return images


def turned(base: Bytes, rng: np.random.Generator) -> Bytes:
    """A quarter turn to the left of the square in the middle, which is all of a square image."""
    images, (height, width) = base.copy(), base.shape[2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = np.s_[:, :, top : top + side, left : left + side]
    images[square] = np.rot90(base[square], axes=(2, 3))
    return images


# Name -> (function that makes the set, whether it was chosen beforehand)
MADE: dict[str, tuple[Callable[[Bytes, np.random.Generator], Bytes], bool]] = {
    "uniform": (uniform_noise, True),
    "constant": (constant, True),
    "blurred": (blurred, True),
    "shuffled": (shuffled, True),
    "blended": (blended, True),
    "inverted": (inverted, False),
    "flipped": (flipped, False),
    "faded": (faded, False),
    "noisy": (noisy, False),
    "striped": (striped, False),
    "patched": (patched, False),
    "joined": (joined, False),
    "turned": (turned, False),
}


def inside_and_sets(
    images: Tensor, sources: Sequence[str], count: int, seed: int
) -> tuple[Bytes, Bytes, list[OutSet]]:
    """The first test images, those that the other sets are made of, and all other sets.

    Args:
        images: (N, C, H, W) uint8, the test images.
        sources: other sets, ``NAME=SOURCE``, see `read_sets`.
        count: images of each set.
        seed: of the sets.

    Raises:
        InputError: there are fewer than twice as many test images; or see `read_outside`.
    """
    if 2 * count > len(images):
        raise InputError(
            f"--n must be at most {len(images) // 2}, half of the test images (the second half makes "
            f"other sets), got {count}"
        )
    inside, base = images[:count].numpy(), images[count : 2 * count].numpy()
    _, channels, height, width = images.shape
    found = read_sets(sources, (channels, height, width), count, seed)
    return inside, base, found + make_sets(base, seed)


def make_sets(base: Bytes, seed: int) -> list[OutSet]:
    """Make every set of `MADE` from at least two test images (N, C, H, W)."""
    return [
        OutSet(name, make(base, generator(seed, name)), named)
        for name, (make, named) in MADE.items()
    ]


def read_sets(
    sources: Sequence[str], shape: tuple[int, int, int], count: int, seed: int
) -> list[OutSet]:
    """Read other sets, given as ``NAME=SOURCE``: ``count`` random images of each test split.

    Raises:
        InputError: see `read_outside`.
    """
    found = read_outside(sources, shape, count, seed, taken=MADE)
    return [OutSet(name, images, True) for name, images in found.items()]


def _bytes(values: NDArray[Any]) -> Bytes:
    """Round to the nearest integer, and cut at 0 and 255."""
    result: Bytes = np.clip(np.rint(values), 0, 255).astype(np.uint8)
    return result
