"""What an image with the noise of a level says about the clean 8-bit image: a law for each pixel's value.

The energy of the level gives the posterior mean of the clean image, by Tweedie's formula

    x̂ = (x_i + σ̄_i² ∇ log p_i(x_i)) / α_i

and the decoder is ``P(x | x_i) ∝ Π_j exp(-|x_j - x̂_j| / b(x̂_j))`` over the 256 grey values of each pixel
j. The widths b, one for each of 16 ranges of x̂_j, are fitted to images. At level 0 there is another
decoder, ``q(x_0 | x)`` normalised over the values (`plain`), and the fit takes the better one.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cdrl_infer.device import default_switches
from cdrl_infer.energies.base import Energy
from cdrl_infer.errors import NumericalError
from cdrl_infer.random import BatchRandom
from cdrl_infer.schedule import Level, NoiseSchedule

GREATEST = 255  # grey value
BINS = 16  # ranges of x̂ that have a width of their own
SHRINKAGE = 50  # pixels with the width of all bins that are added to those of each
LEAST = 0.1  # grey values; a width

TERMS = 2**23  # of sums over the values, in memory at once

Widths = tuple[float, ...]  # () stands for the plain decoder


def denoised(energy: Energy, level: Level, x: Tensor) -> tuple[Tensor, Tensor]:
    """The energy of ``y = m x_i``, and the posterior mean of the clean image.

    Args:
        energy: the energies of all levels.
        level: the transition that ends at level i.
        x: (B, ...) images with the noise of level i.

    Returns:
        (B,) nats, and (B, ...) grey values in [0, 255].
    """
    value, grad = energy.at(level).value_and_grad(x * level.scale)
    clean = (x - level.sigma_bar**2 * level.scale * grad) / level.alpha
    return value, ((clean + 1) * (GREATEST / 2)).clamp(0, GREATEST)


@default_switches()
@torch.no_grad()
def fit(
    energy: Energy, schedule: NoiseSchedule, images: Tensor, seed: int, batch_size: int
) -> tuple[Widths, ...]:
    """The widths of every level, level 0 first: the mean distance of grey values from x̂.

    Args:
        energy: the energies of all levels, for any number of images.
        schedule: the noise levels.
        images: (N, ...) clean images in [-1, 1].
        seed: of the noise.
        batch_size: images at once.

    Raises:
        NumericalError: an energy or its gradient is not finite.
    """
    generator = torch.Generator(images.device).manual_seed(seed)
    random = BatchRandom(len(images), generator)
    values, found = (images + 1) * (GREATEST / 2), []
    for t in range(1, schedule.num_levels + 1):
        level = schedule.level(t, images.device)
        x = level.diffused(images, random.normal(images.shape[1:]))
        parts = [denoised(energy, level, part) for part in torch.split(x, batch_size)]
        energies, grey = (torch.cat(column) for column in zip(*parts, strict=True))
        distance, bins = (values - grey).abs().flatten().double(), _bins(grey).flatten()
        sums = torch.zeros(BINS, dtype=torch.float64, device=bins.device)
        sums, counts = (
            sums.index_add(0, bins, part) for part in (distance, torch.ones_like(distance))
        )
        widths = (sums + SHRINKAGE * distance.mean()) / (counts + SHRINKAGE)
        if not bool(energies.isfinite().all() and widths.isfinite().all()):
            raise NumericalError(f"the energies of level {t - 1} are not finite; check the model")
        found.append(tuple(widths.clamp(min=LEAST).tolist()))
        if (
            t == 1
            and float((plain(x, images, level) - log_decoder(grey, values, found[0])).mean()) > 0
        ):
            found[0] = ()
    return tuple(found)


def log_decoder(grey: Tensor, values: Tensor, widths: Widths) -> Tensor:
    """``log P(x | x_i)``, (B,) float64 nats.

    The sum over 256 values is that of two geometric series, one to each side of x̂.

    Args:
        grey: (B, ...) x̂ in [0, 255].
        values: (B, ...) integers in 0 … 255.
        widths: of the 16 ranges.
    """
    width = torch.tensor(widths, dtype=torch.float64, device=grey.device)[_bins(grey)]
    grey = grey.double()
    below = grey.floor().clamp(max=GREATEST - 1)
    ratio = torch.exp(-1 / width)
    down = torch.exp((below - grey) / width) * (1 - ratio ** (below + 1))
    up = torch.exp((grey - below - 1) / width) * (1 - ratio ** (GREATEST - below))
    total = ((down + up) / (1 - ratio)).log()
    return (-(values - grey).abs() / width - total).flatten(1).sum(1)


def plain(x_0: Tensor, images: Tensor, level: Level) -> Tensor:
    """``log P(x | x_0)`` of the decoder ``P ∝ q(x_0 | x)`` at level 0, (B,) float64 nats.

    Args:
        x_0: (B, ...).
        images: (B, ...) the clean images, in [-1, 1].
        level: the constants of t = 1.
    """
    noise = (x_0 - level.alpha * images) / level.sigma_bar
    spread = 0.5 * math.log(2 * math.pi) + math.log(level.sigma_bar)
    log_q = -0.5 * noise.double().square().flatten(1).sum(1) - images[0].numel() * spread
    return log_q - decoder_sum(x_0, level)


def decoder_sum(x_0: Tensor, level: Level) -> Tensor:
    """``Σ_i log Σ_v N(x_0i; α_0 v, σ̄_0²)`` over pixels i and their 256 values v, (B,) float64 nats."""
    v = torch.linspace(-1, 1, GREATEST + 1, dtype=torch.float64).to(x_0)
    constant = 0.5 * math.log(2 * math.pi) + math.log(level.sigma_bar)
    rows = max(1, TERMS // ((GREATEST + 1) * x_0[0].numel()))
    sums = []
    for part in torch.split(x_0.flatten(1), rows):
        z = (part[:, :, None] - level.alpha * v) / level.sigma_bar
        sums.append((-0.5 * z.square()).logsumexp(2).double().sum(1))
    return torch.cat(sums) - x_0[0].numel() * constant


def _bins(grey: Tensor) -> Tensor:
    return (grey * (BINS / GREATEST)).long().clamp(0, BINS - 1)  # 0 for NaN
