"""Compare a model of the checkerboard with the true density, which is known at every level."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from cdrl_infer.energies.base import Energy
from cdrl_infer.energies.neural import NeuralEnergy
from cdrl_infer.errors import InputError, NumericalError
from cdrl_infer.images import captioned, make_grid
from cdrl_infer.model import CDRLModel
from cdrl_infer.options import find_kernel
from cdrl_infer.proposals import make_proposal
from cdrl_infer.random import BatchRandom
from cdrl_infer.sampler import CooperativeSampler, LevelEnd
from cdrl_infer.schedule import Level
from cdrl_train.data.checkerboard import POINT, SQUARES, draw

EXTENT = 2.4  # the comparison uses the square [-EXTENT, EXTENT]²
FINE, COARSE = 192, 48  # cells on a side, for densities and for histograms
SAMPLES = 10_000


def centres(cells: int) -> Tensor:
    """(cells,) coordinates of the centres of the cells, float64."""
    return EXTENT * ((2 * torch.arange(cells, dtype=torch.float64) + 1) / cells - 1)


def true_masses(level: Level) -> Tensor:
    """(FINE, FINE) probabilities of the cells for ``α_{t-1} x + σ̄_{t-1} ε``.

    The board is an equal mixture of (even columns) x (even rows) and (odd columns) x (odd rows). With
    noise, a stripe [a, a + w] has the density ``(Φ((u - a)/σ̄) - Φ((u - a - w)/σ̄)) / w``.
    """
    edges = level.alpha.double() * torch.linspace(-1, 1, SQUARES + 1, dtype=torch.float64)
    step = torch.special.ndtr((centres(FINE)[:, None] - edges) / level.sigma_bar.double())
    stripes = (step[:, :-1] - step[:, 1:]) / (edges[1] - edges[0])
    even, odd = stripes[:, 0::2].mean(1), stripes[:, 1::2].mean(1)
    return (torch.outer(even, even) + torch.outer(odd, odd)) / 2 * (2 * EXTENT / FINE) ** 2


@torch.no_grad()
def energy_masses(energy: Energy, level: Level) -> Tensor:
    """(FINE, FINE) probabilities of the cells under ``exp(-E)``; their sum is 1."""
    middles = centres(FINE)
    x = torch.cartesian_prod(middles, middles).float().reshape(-1, *POINT.shape)
    log_density = -energy(x * level.scale, level).double()
    return log_density.softmax(0).reshape(FINE, FINE)


def histogram(points: Tensor) -> Tensor:
    """Points (N, 1, 1, 2) -> (COARSE, COARSE), the share of the points in each cell.

    The sum is below 1 if points lie outside all cells.
    """
    counts, _ = torch.histogramdd(
        points.reshape(-1, 2).double(), bins=[COARSE] * 2, range=[-EXTENT, EXTENT] * 2
    )
    return counts / len(points)


def coarse(masses: Tensor) -> Tensor:
    """Sum the probabilities of fine cells (FINE, FINE) to coarse cells (COARSE, COARSE)."""
    size = FINE // COARSE
    return F.avg_pool2d(masses[None], size)[0] * size**2


def total_variation(p: Tensor, q: Tensor) -> float:
    """``½ Σ |p - q|``; the probability outside all cells counts as one more cell."""
    outside = (p.sum() - q.sum()).abs()
    return float(((p - q).abs().sum() + outside) / 2)


class Fit(NamedTuple):
    """A model's energy and samples at one level, and their total variations from the true density."""

    i: int  # the level
    truth: Tensor  # (FINE, FINE)
    density: Tensor  # (FINE, FINE), the density exp(-E)
    samples: Tensor  # (COARSE, COARSE)
    energy_tv: float  # density against truth, both normalised on [-EXTENT, EXTENT]²
    samples_tv: float  # samples against truth, with the probability outside all cells
    exact_tv: float  # the same number of exact draws against truth; no sampler does better


def measure(
    model: CDRLModel,
    *,
    num_samples: int = SAMPLES,
    langevin_steps: int | Sequence[int] | None = None,
    seed: int = 0,
    on_level_end: Callable[[LevelEnd], None] = lambda end: None,
) -> list[Fit]:
    """Compare a model of the checkerboard with the truth at each level, the noisiest level first.

    The truth at a level is the checkerboard plus the noise of the level, so the last denoising step does
    not matter.

    Args:
        model: an unconditional model of images of two pixels.
        num_samples: how many samples to draw, all at once.
        langevin_steps: K, one number or one per transition; None for the model's default.
        seed: seed of the samples and of the exact draws.
        on_level_end: called after each level.

    Raises:
        InputError: the model is for other images.
        NumericalError: the samples are not finite.
    """
    if model.image != POINT or model.labels:
        raise InputError(
            f"expected an unconditional model of images {POINT.shape}, got {model.image.shape} and "
            f"{len(model.labels)} attributes"
        )
    energy, schedule = NeuralEnergy(model.ebm), model.schedule
    steps = model.sampler.langevin_steps if langevin_steps is None else langevin_steps
    sampler = CooperativeSampler(
        schedule, steps, find_kernel(model.sampler.kernel), model.sampler.step_scale
    )
    chains, exact = (torch.Generator().manual_seed(2 * seed + k) for k in range(2))
    fits: list[Fit] = []

    def compare(end: LevelEnd) -> None:
        if not bool(end.refined.isfinite().all()):
            raise NumericalError(
                f"the samples of transition {end.t} are not finite; a smaller schedule.step_size may help"
            )
        level = schedule.level(end.t)
        truth, density = true_masses(level), energy_masses(energy, level)
        samples = histogram(end.refined)
        x = draw(num_samples, exact)
        noised = level.alpha * x + level.sigma_bar * torch.randn(x.shape, generator=exact)
        blocks = coarse(truth)
        fits.append(
            Fit(
                i=end.t - 1,
                truth=truth,
                density=density,
                samples=samples,
                energy_tv=total_variation(density, truth / truth.sum()),
                samples_tv=total_variation(samples, blocks),
                exact_tv=total_variation(histogram(noised), blocks),
            )
        )
        on_level_end(end)

    proposal, random = make_proposal(model.initializer), BatchRandom(num_samples, chains)
    sampler.sample(energy, proposal, random, POINT.shape, compare)
    return fits


def summary(fits: Sequence[Fit]) -> str:
    """The total variations at the cleanest level, in one line."""
    last = fits[-1]
    return (
        f"total variation from the checkerboard at level {last.i}: energy {last.energy_tv:.3f}, "
        f"samples {last.samples_tv:.3f} (exact ones {last.exact_tv:.3f})"
    )


def plot(fits: Sequence[Fit]) -> Image.Image:
    """One column per level, with the truth, ``exp(-E)`` and the samples; darker is denser."""
    columns = []
    for fit in fits:
        top = float(fit.truth.max())  # one scale per column
        columns.append(
            (
                captioned(panel(fit.truth, top), f"level {fit.i}: truth"),
                captioned(panel(fit.density, top), f"energy, TV {fit.energy_tv:.3f}"),
                captioned(panel(fit.samples, top), f"samples, TV {fit.samples_tv:.3f}"),
            )
        )
    return make_grid([picture for row in zip(*columns, strict=True) for picture in row], len(fits))


def panel(masses: Tensor, top: float) -> Image.Image:
    """Probabilities (S, S) as a picture of FINE x FINE pixels; x₁ goes right, x₂ goes up."""
    size = FINE // len(masses)
    shade = 255 * (1 - (masses / (top * size**2)).clamp(max=1).sqrt())
    pixels = shade.T.flip(0).round().to(torch.uint8).numpy()
    return Image.fromarray(pixels).resize((FINE, FINE), Image.Resampling.NEAREST)
