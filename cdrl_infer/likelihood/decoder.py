"""What an image with the noise of a level says about the clean 8-bit image: a law for each pixel's value.

The energy of the level gives the posterior mean of the clean image, by Tweedie's formula

    x̂ = (x_i + σ̄_i² ∇ log p_i(x_i)) / α_i

and the decoder is, for each pixel, a law of its 256 grey values: black and white have probabilities of
their own, and the rest is ``∝ exp(-|v - x̂| / b)``. The two probabilities and the width b, for each of 16
ranges of x̂, are fitted to images. At level 0 there is another decoder, ``q(x_0 | x)`` normalised over
the values (`plain`), and the fit takes the better one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from cdrl_infer.device import default_switches
from cdrl_infer.energies.base import Energy
from cdrl_infer.errors import ConfigError, NumericalError
from cdrl_infer.networks.gaussian import log_normal
from cdrl_infer.random import BatchRandom
from cdrl_infer.schedule import Level, NoiseSchedule

GREATEST = 255  # grey value
BINS = 16  # ranges of x̂ that have a law of their own
ROUNDS = 30  # of expectation and maximisation
SHRINKAGE = 5  # pixels with the width of all bins that are added to those of each
PRIOR = 0.5  # pixels that are added to the black, and to the white ones
LEAST = 0.5  # grey values; a width. exp(-255 / 0.5) is still positive
TERMS = 2**23  # of sums over the values, in memory at once


@dataclass(frozen=True)
class Decoder:
    """``P(v | x̂) = p_0 [v = 0] + p_255 [v = 255] + (1 - p_0 - p_255) L_b(v | x̂)``.

    ``L_b`` is ``∝ exp(-|v - x̂| / b)`` over v = 0 … 255.

    Args:
        widths: b, grey values, for each of 16 ranges of x̂ in [0, 255]; () stands for the plain decoder.
        black, white: p_0 and p_255 for each of them.

    Raises:
        ConfigError: there are not 16 (or none) of each, or they are not positive, or too large.
    """

    widths: tuple[float, ...]
    black: tuple[float, ...]
    white: tuple[float, ...]

    def __post_init__(self) -> None:
        rows = (self.widths, self.black, self.white)
        if rows == ((), (), ()):
            return
        if any(len(row) != BINS for row in rows):
            raise ConfigError(f"a decoder must have {BINS} values of each kind, got {self!s:.60}")
        positive = all(0 < value < math.inf for row in rows for value in row)
        if not positive or any(p + q >= 1 for p, q in zip(self.black, self.white, strict=True)):
            raise ConfigError(
                f"a decoder must have positive widths, and positive probabilities whose sum is below 1, "
                f"got {self!s:.60}"
            )

    @property
    def is_plain(self) -> bool:
        """Whether it stands for ``q(x_0 | x)`` normalised over the values, see `plain`."""
        return not self.widths

    def log_prob(self, grey: Tensor, values: Tensor) -> Tensor:
        """``log P(x | x_i)``, (B,) float64 nats.

        Args:
            grey: (B, ...) x̂ in [0, 255].
            values: (B, ...) integers in 0 … 255.
        """
        table = torch.tensor([self.widths, self.black, self.white], dtype=torch.float64)
        width, black, white = table.to(grey.device)[:, _bins(grey)]
        parts = _parts(grey.double(), values, width, black, white)
        return parts.sum(0).log().flatten(1).sum(1)


PLAIN = Decoder((), (), ())


def denoised(energy: Energy, level: Level, x: Tensor) -> tuple[Tensor, Tensor]:
    """The energy of ``y = m x_i``, and the posterior mean of the clean image.

    Args:
        energy: the energies of all levels.
        level: the transition that ends at level i.
        x: (B, ...) images with the noise of level i.

    Returns:
        (B,) nats, and (B, ...) grey values in [0, 255].
    """
    clean, value = energy.denoised(x, level)
    return value, grey_values(clean).clamp(0, GREATEST)


def grey_values(images: Tensor) -> Tensor:
    """[-1, 1] -> [0, 255]; not rounded."""
    return (images + 1) * (GREATEST / 2)


@default_switches()
@torch.no_grad()
def fit(
    energy: Energy, schedule: NoiseSchedule, images: Tensor, seed: int, batch_size: int
) -> tuple[Decoder, ...]:
    """The decoders of every level, level 0 first; there the plain one if it is better.

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
    values = grey_values(images).round()
    found = []
    for t in range(1, schedule.num_levels + 1):
        level = schedule.level(t, images.device)
        x = level.diffused(images, random.normal(images.shape[1:]))
        parts = [denoised(energy, level, part) for part in torch.split(x, batch_size)]
        energies, grey = (torch.cat(column) for column in zip(*parts, strict=True))
        if not bool(energies.isfinite().all() and grey.isfinite().all()):
            raise NumericalError(f"the energies of level {t - 1} are not finite; check the model")
        decoder = _fitted(grey, values)
        if t == 1 and float((plain(x, images, level) - decoder.log_prob(grey, values)).mean()) > 0:
            decoder = PLAIN
        found.append(decoder)
    return tuple(found)


def _fitted(grey: Tensor, values: Tensor) -> Decoder:
    """By expectation and maximisation: is a pixel black or white by itself, or by its x̂?"""
    grey, values = grey.flatten().double(), values.flatten().double()
    bins, distance = _bins(grey), (values - grey).abs()

    def summed(parts: Tensor) -> Tensor:
        return torch.zeros(BINS, dtype=torch.float64, device=bins.device).index_add(0, bins, parts)

    count, mean = summed(torch.ones_like(distance)), distance.mean()
    black = white = torch.full_like(count, 0.1)
    width = mean.clamp(min=LEAST).expand(BINS)
    for _ in range(ROUNDS):
        parts = _parts(grey, values, width[bins], black[bins], white[bins])
        own_black, own_white, rest = parts / parts.sum(0)
        black, white = (
            (summed(part) + PRIOR) / (count + 4 * PRIOR) for part in (own_black, own_white)
        )
        weight = summed(rest) + SHRINKAGE
        width = ((summed(rest * distance) + SHRINKAGE * mean) / weight).clamp(min=LEAST)
    return Decoder(tuple(width.tolist()), tuple(black.tolist()), tuple(white.tolist()))


def _parts(grey: Tensor, values: Tensor, width: Tensor, black: Tensor, white: Tensor) -> Tensor:
    """The three terms of P(v | x̂), (3, ...) float64.

    The sum over the 256 values of the last is that of two geometric series, one to each side of x̂.
    """
    below = grey.floor().clamp(max=GREATEST - 1)
    ratio = torch.exp(-1 / width)
    down = torch.exp((below - grey) / width) * (1 - ratio ** (below + 1))
    up = torch.exp((grey - below - 1) / width) * (1 - ratio ** (GREATEST - below))
    law = torch.exp(-(values - grey).abs() / width) * (1 - ratio) / (down + up)
    return torch.stack(
        [(values == 0) * black, (values == GREATEST) * white, (1 - black - white) * law]
    )


def plain(x_0: Tensor, images: Tensor, level: Level) -> Tensor:
    """``log P(x | x_0)`` of the decoder ``P ∝ q(x_0 | x)`` at level 0, (B,) float64 nats.

    Args:
        x_0: (B, ...).
        images: (B, ...) the clean images, in [-1, 1].
        level: the constants of t = 1.
    """
    return log_noise(x_0 - level.alpha * images, level) - decoder_sum(x_0, level)


def log_noise(difference: Tensor, level: Level) -> Tensor:
    """``log q(x_i | x)`` of ``x_i - α_i x`` (B, ...), (B,) float64 nats."""
    return log_normal(difference.double(), level.sigma_bar.double().square())


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
