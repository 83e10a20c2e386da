"""The log-likelihood of images under a chain of levels whose normalisers are known.

``log p_i(x_i) = -E(m x_i) - log Z_i + d log m`` is the density of the data plus the noise of level i. The
bound for clean 8-bit images (Kingma et al. 2021, "Variational diffusion models") is, for
``x_i = α_i x + σ̄_i ε`` and any decoder ``P(x | x_i)`` over the 256 values of each pixel,

    log P(x) ≥ E[log p_i(x_i) - log q(x_i | x) + log P(x | x_i)]

The decoder is that of `cdrl_infer.likelihood.decoder`, which costs a gradient. Where none was fitted, or
it is worse, it is ``q(x_0 | x)`` normalised over the values:

    log P(x) ≥ E[log p_0(x_0) - Σ_j log Σ_v N(x_0j; α_0 v, σ̄_0²)]
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cdrl_infer.arguments import (
    MAX_SEED,
    Progress,
    as_list,
    check_choice,
    check_seed,
    flag,
    positive,
    progress_bar,
)
from cdrl_infer.conditions.labels import ImageLabel, read_labels
from cdrl_infer.device import default_switches
from cdrl_infer.energies.base import Energy
from cdrl_infer.energies.neural import NeuralEnergy
from cdrl_infer.errors import NumericalError, listing
from cdrl_infer.images import read_images
from cdrl_infer.likelihood.decoder import (
    GREATEST,
    PLAIN,
    Decoder,
    decoder_sum,
    denoised,
    grey_values,
    log_noise,
)
from cdrl_infer.likelihood.normalisers import (
    NORMALISE,
    Normaliser,
    TransitionResult,
    stored_normaliser,
)
from cdrl_infer.model import CDRLModel
from cdrl_infer.random import PerImageRandom, RandomSource
from cdrl_infer.schedule import Level

CLEAN = "8-bit"
NOISED = "level-{}"
BOUNDS = 2.0  # standard errors of the noise that lower and upper lie further apart


@dataclass(frozen=True)
class LikelihoodOutput:
    """The log-likelihood of N images; all tensors are (N,) float64, on the CPU.

    Attributes:
        log_prob: nats.
        bits_per_dim: ``-log_prob / (d log 2)``. For a noised density it counts in steps of 1/255 of the
            pixel's range, so that all figures have one scale.
        standard_error: of ``log_prob``, nats, from the normaliser and from the noise in the images.
        lower, upper: estimates of ``log_prob`` that err to either side, nats. For "8-bit" they are
            estimates of the bound.
        normaliser_error: the part of the error that all images share, nats.
        density: "8-bit", a lower bound of the log-probability of the clean 8-bit image, or "level-0" …,
            the log-density of ``α_i x + σ̄_i ε``. Only the first is comparable with published figures.
        level: the level i whose energy and normaliser were used. For "8-bit" it is the lowest that is not
            refused, or 0 if the model has no decoders.
        normalisers: those that were used, one for each set of labels.
        draws: of noise per image.
        seed: of the first image's noise.
    """

    log_prob: Tensor
    bits_per_dim: Tensor
    standard_error: Tensor
    lower: Tensor
    upper: Tensor
    normaliser_error: Tensor
    density: str
    level: int
    normalisers: tuple[Normaliser, ...]
    draws: int
    seed: int

    @property
    def verdict(self) -> str:
        """ "sound", or the reason why only lower and upper are to be believed."""
        found = [one.verdict(self.level) for one in self.normalisers]
        return next((verdict for verdict in found if verdict != "sound"), "sound")

    @property
    def ess(self) -> float:
        """The smallest effective sample size of all transitions and directions."""
        return min(min(r.ess_forward, r.ess_reverse) for r in self._results)

    @property
    def pareto_k(self) -> float | None:
        """The largest Pareto k̂ of all transitions; None if there are too few weights."""
        found = [r.pareto_k for r in self._results if r.pareto_k is not None]
        return max(found, default=None)

    @property
    def jeffreys(self) -> tuple[float, ...]:
        """How far adjacent levels from `level` up contradict each other, nats; over labels the most."""
        columns = zip(*(one.transitions[self.level :] for one in self.normalisers), strict=True)
        return tuple(max(r.jeffreys for r in column) for column in columns)

    @property
    def method(self) -> str:
        """How the normalisers were found."""
        long = [r.t for r in self.normalisers[0].transitions[self.level :] if r.temperatures > 1]
        return (
            "Bennett's acceptance ratio between adjacent levels in both directions, "
            + (f"annealed at transitions {listing(long)}" if long else "by importance sampling")
            + f"; energy of level {self.level}, draws of noise per image: {self.draws}"
        )

    @property
    def _results(self) -> list[TransitionResult]:
        return [r for one in self.normalisers for r in one.transitions[self.level :]]


def log_density(energy: Energy, level: Level, x: Tensor, log_z: Tensor | float) -> Tensor:
    """``log p_i(x_i) = -E(m x_i) - log Z_i + d log m``, (B,) float64 nats.

    Args:
        energy: the energy.
        level: the constants of the transition that ends at level i.
        x: (B, ...) x_i.
        log_z: log Z_i, nats; () or (B,).
    """
    return _with_volume(energy(x * level.scale, level), level, x) - log_z


def bound(energy: Energy, level: Level, x: Tensor, noise: Tensor, decoder: Decoder) -> Tensor:
    """One draw of the bound plus log Z_i; its mean over the noise is the bound.

    Args:
        energy: the energy.
        level: the constants of the transition that ends at level i.
        x: (B, ...) clean images in [-1, 1].
        noise: (B, ...) of x_i.
        decoder: that of level i.

    Returns:
        (B,) float64 nats.
    """
    x_i = level.diffused(x, noise)
    value, grey = denoised(energy, level, x_i)
    log_q = log_noise(level.sigma_bar * noise, level)
    log_p = decoder.log_prob(grey, grey_values(x).round())
    return _with_volume(value, level, x) - log_q + log_p


def _with_volume(energies: Tensor, level: Level, x: Tensor) -> Tensor:
    """``-E + d log m``, (B,) float64."""
    return -energies.double() + x[0].numel() * math.log(level.scale)


@default_switches()
@torch.no_grad()
def log_likelihood(
    model: CDRLModel,
    name: str,
    images: Any,
    labels: ImageLabel | Iterable[ImageLabel] = None,
    *,
    density: str = CLEAN,
    draws: int = 4,
    seed: int = 0,
    resize: bool = False,
    grey: bool = False,
    batch_size: int = 64,
    progress: Progress = None,
) -> LikelihoodOutput:
    """The log-likelihood of images. All arguments, and the normalisers, are checked before any work.

    Args:
        model: with its normalisers; the networks are on one device.
        name: the model's name in messages.
        images: see `cdrl_infer.images.each_image`; values are rounded to 8 bits.
        labels: one per image, as for a call of the pipeline; None: the unconditional density.
        density: "8-bit", "level-0", "level-1", …; see `LikelihoodOutput`.
        draws: of noise per image; with 1, the standard error lacks the noise.
        seed: of the noise of the first image; image k has seed + k.
        resize, grey: see `cdrl_infer.images.each_image`.
        batch_size: images at once.
        progress: see `cdrl_infer.arguments.progress_bar`.

    Raises:
        InputError: an argument is invalid, or the model has no normalisers (for these labels).
        ConfigError: the normalisers belong to other weights.
        NumericalError: the normalisers are refused, or an energy is not finite.
    """
    noised = tuple(NOISED.format(k) for k in range(model.schedule.num_levels))
    check_choice("density", density, (CLEAN, *noised))
    draws, batch_size = positive("draws", draws, 1000), positive("batch_size", batch_size)
    seed = check_seed(seed)
    shape = model.image.shape
    given = read_images(images, shape, resize=flag("resize", resize), grey=flag("grey", grey))
    table = read_labels(as_list(labels), model.labels, len(given))
    rows: list[tuple[int, ...]] = [()] * len(given)
    if table is not None:
        rows = [tuple(row) for row in table.tolist()]
    used = {row: stored_normaliser(model, row, name) for row in dict.fromkeys(rows)}
    sound = _lowest([*used.values()])
    decoders = () if model.normalisers is None else model.normalisers.decoders
    if density == CLEAN:
        place = sound if decoders and sound is not None else 0
    else:
        place = noised.index(density)
    _refuse(name, [*used.values()], place, sound, density)
    device = model.device
    level = model.schedule.level(place + 1, device)
    decoder = decoders[place] if decoders else PLAIN
    parts = []
    with progress_bar(progress, total=len(given), unit="image") as bar:
        for first in range(0, len(given), batch_size):
            part = slice(first, min(first + batch_size, len(given)))
            x = ((given[part] * 255).round() / 127.5 - 1).to(device)
            seeds = [(seed + k) % (MAX_SEED + 1) for k in range(part.start, part.stop)]
            random = PerImageRandom.from_seeds(seeds, device)
            energy = NeuralEnergy(model.ebm, None if table is None else table[part].to(device))
            parts.append(_drawn(energy, level, x, random, density, draws, decoder).cpu())
            bar.update(len(x))
    return _output(torch.cat(parts, 1), rows, used, given[0].numel(), density, place, seed)


def _lowest(used: list[Normaliser]) -> int | None:
    """The lowest level that is not refused for any labels; None if all levels of one are."""
    found = [one.lowest for one in used]
    return None if None in found else max((k for k in found if k is not None), default=None)


def _refuse(name: str, used: list[Normaliser], place: int, sound: int | None, density: str) -> None:
    """`NumericalError` if the level is refused for any labels, with what works instead."""
    bad = [one for one in used if one.faults(place)]
    if not bad:
        return
    worst = min(bad, key=lambda one: one.lowest is not None)
    given = f" with the labels {listing(worst.labels)}" if any(worst.labels) else ""
    mend = "" if sound is None else f"; density={NOISED.format(sound)!r} works"
    if mend and density == CLEAN:
        mend += f", and {NORMALISE} again stores a decoder, so that {CLEAN!r} goes by that level"
    raise NumericalError(
        f"the likelihood of {name!r}{given} is refused: {worst.faults(place)[0]}{mend}"
    )


def _drawn(
    energy: Energy,
    level: Level,
    x: Tensor,
    random: RandomSource,
    density: str,
    draws: int,
    decoder: Decoder,
) -> Tensor:
    """(draws, B) float64, the log-likelihood without the normaliser for each draw of the noise."""
    rows = []
    for _ in range(draws):
        noise = random.normal(x.shape[1:])
        if density == CLEAN and not decoder.is_plain:
            rows.append(bound(energy, level, x, noise, decoder))
            continue
        x_i = level.diffused(x, noise)
        values = log_density(energy, level, x_i, 0.0)
        rows.append(values - decoder_sum(x_i, level) if density == CLEAN else values)
    return torch.stack(rows)


def _output(
    table: Tensor,
    rows: list[tuple[int, ...]],
    used: dict[tuple[int, ...], Normaliser],
    dim: int,
    density: str,
    level: int,
    seed: int,
) -> LikelihoodOutput:
    bad = (~table.isfinite().all(0)).nonzero().flatten().tolist()
    if bad:
        raise NumericalError(
            f"the energies of images {listing(bad)} are not finite; check the model"
        )

    def column(field: str) -> Tensor:
        return torch.tensor([getattr(used[row], field)[level] for row in rows], dtype=torch.float64)

    draws = len(table)
    spread = table.std(0) / math.sqrt(draws) if draws > 1 else torch.zeros(table.shape[1])
    mean, shared = table.mean(0), column("error")
    log_prob = mean - column("log_z")
    unit = math.log(2 / GREATEST) if density != CLEAN else 0.0
    return LikelihoodOutput(
        log_prob=log_prob,
        bits_per_dim=-(log_prob / dim + unit) / math.log(2),
        standard_error=(spread.square() + shared.square()).sqrt(),
        lower=mean - column("upper") - BOUNDS * spread,
        upper=mean - column("lower") + BOUNDS * spread,
        normaliser_error=shared,
        density=density,
        level=level,
        normalisers=tuple(used.values()),
        draws=draws,
        seed=seed,
    )
