"""The checkerboard in the plane: data without a file, whose density is known at every level.

A point is an image of two pixels, so that all that trains, samples and stores images serves for it. The
density is that of the usual toy (a 4 x 4 board, uniform on its 8 dark squares), scaled to [-1, 1]².
"""

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
from cdrl_infer.kernels.langevin import Langevin
from cdrl_infer.model import CDRLModel, ImageShape
from cdrl_infer.proposals import InitializerProposal
from cdrl_infer.random import BatchRandom
from cdrl_infer.sampler import CooperativeSampler, LevelEnd
from cdrl_infer.schedule import Level
from cdrl_train.data.image_set import ImageSet

CHECKERBOARD = "checkerboard"  # the source
POINT = ImageShape(channels=1, height=1, width=2)
SQUARES = 4  # on a side of the board
REACH = 2.4  # densities are compared on [-REACH, REACH]²
FINE, COARSE = 192, 48  # cells on a side: of densities, of histograms
SAMPLES = 10_000


def checkerboard() -> ImageSet:
    """All 32,768 dark points of a board of 256 x 256: dequantised, each is a draw of the density."""
    value = torch.arange(256) * SQUARES // 256
    dark = ((value[:, None] + value) % 2 == 0).nonzero()
    return ImageSet(dark.to(torch.uint8).reshape(-1, *POINT.shape))


def draw(num: int, generator: torch.Generator) -> Tensor:
    """(num, 1, 1, 2) exact and independent draws."""
    points = checkerboard().images
    chosen = points[torch.randint(len(points), (num,), generator=generator)].float()
    return (chosen + torch.rand(chosen.shape, generator=generator)) / 128 - 1


def centres(cells: int) -> Tensor:
    """(cells,) coordinates of the cells' middles, float64."""
    return REACH * ((2 * torch.arange(cells, dtype=torch.float64) + 1) / cells - 1)


def true_masses(level: Level) -> Tensor:
    """(FINE, FINE) probabilities of the cells under ``α_{t-1} x + σ̄_{t-1} ε``.

    The board is half the even columns times the even rows, half the odd times the odd; a stripe of width
    w convolved with the noise has the density ``(Φ((u - a)/σ̄) - Φ((u - a - w)/σ̄)) / w``.
    """
    edges = level.alpha.double() * torch.linspace(-1, 1, SQUARES + 1, dtype=torch.float64)
    step = torch.special.ndtr((centres(FINE)[:, None] - edges) / level.sigma_bar.double())
    stripes = (step[:, :-1] - step[:, 1:]) / (edges[1] - edges[0])
    even, odd = stripes[:, 0::2].mean(1), stripes[:, 1::2].mean(1)
    return (torch.outer(even, even) + torch.outer(odd, odd)) / 2 * (2 * REACH / FINE) ** 2


@torch.no_grad()
def energy_masses(energy: Energy, level: Level) -> Tensor:
    """(FINE, FINE) probabilities of the cells by ``exp(-E)``, normalised on all of them."""
    middles = centres(FINE)
    x = torch.cartesian_prod(middles, middles).float().reshape(-1, *POINT.shape)
    log_density = -energy(x * level.scale, level).double()
    return log_density.softmax(0).reshape(FINE, FINE)


def shares(points: Tensor) -> Tensor:
    """Points (N, 1, 1, 2) -> (COARSE, COARSE) the share of them in each cell; some lie in none."""
    counts, _ = torch.histogramdd(
        points.reshape(-1, 2).double(), bins=[COARSE] * 2, range=[-REACH, REACH] * 2
    )
    return counts / len(points)


def coarse(masses: Tensor) -> Tensor:
    """(FINE, FINE) -> (COARSE, COARSE): sums."""
    size = FINE // COARSE
    return F.avg_pool2d(masses[None], size)[0] * size**2


def total_variation(p: Tensor, q: Tensor) -> float:
    """``½ Σ |p - q|``, where what p and q lack of a sum of 1 counts as one further cell."""
    elsewhere = (p.sum() - q.sum()).abs()
    return float(((p - q).abs().sum() + elsewhere) / 2)


class Fit(NamedTuple):
    """A model against the truth at one level; three distributions and how far two are from the first."""

    i: int  # the level, t - 1
    truth: Tensor  # (FINE, FINE)
    density: Tensor  # (FINE, FINE), of exp(-E)
    samples: Tensor  # (COARSE, COARSE)
    of_density: float  # total variation from the truth, both on [-REACH, REACH]² alone
    of_samples: float  # the same of the samples, wherever they are
    of_exact: float  # of as many exact draws: the least that samples can have


def measure(
    model: CDRLModel,
    *,
    num_samples: int = SAMPLES,
    langevin_steps: int | Sequence[int] | None = None,
    seed: int = 0,
    on_level_end: Callable[[LevelEnd], None] = lambda end: None,
) -> list[Fit]:
    """Energies and samples of a model of the checkerboard against the truth, noisiest level first.

    Each level is compared with the truth convolved with its noise, so the last denoising plays no part.

    Args:
        model: of images of two pixels, unconditional.
        num_samples: all drawn at once.
        langevin_steps: K; by default the model's.
        seed: of all that is random.
        on_level_end: called after each level.

    Raises:
        InputError: a model of other images.
        NumericalError: sampling left the finite numbers.
    """
    if model.image != POINT or model.labels:
        raise InputError(
            f"expected an unconditional model of images {POINT.shape}, got {model.image.shape} and "
            f"{len(model.labels)} attributes"
        )
    energy, schedule = NeuralEnergy(model.ebm), model.schedule
    steps = model.sampler.langevin_steps if langevin_steps is None else langevin_steps
    sampler = CooperativeSampler(schedule, steps, Langevin(model.sampler.step_scale))
    chains, exact = (torch.Generator().manual_seed(2 * seed + k) for k in range(2))
    fits: list[Fit] = []

    def compare(end: LevelEnd) -> None:
        if not bool(end.refined.isfinite().all()):
            raise NumericalError(
                f"sampling left the finite numbers at level {end.t}; expected finite values: "
                "a smaller schedule.step_size may help"
            )
        level = schedule.level(end.t)
        truth, density = true_masses(level), energy_masses(energy, level)
        samples = shares(end.refined)
        x = draw(num_samples, exact)
        noised = level.alpha * x + level.sigma_bar * torch.randn(x.shape, generator=exact)
        blocks = coarse(truth)
        fits.append(
            Fit(
                i=end.t - 1,
                truth=truth,
                density=density,
                samples=samples,
                of_density=total_variation(density, truth / truth.sum()),
                of_samples=total_variation(samples, blocks),
                of_exact=total_variation(shares(noised), blocks),
            )
        )
        on_level_end(end)

    proposal, random = InitializerProposal(model.initializer), BatchRandom(num_samples, chains)
    sampler.sample(energy, proposal, random, POINT.shape, compare)
    return fits


def spoken(fits: Sequence[Fit]) -> str:
    """The figures of the cleanest level, in one line."""
    last = fits[-1]
    return (
        f"total variation from the checkerboard at level {last.i}: energy {last.of_density:.3f}, "
        f"samples {last.of_samples:.3f} (exact ones {last.of_exact:.3f})"
    )


def figure(fits: Sequence[Fit]) -> Image.Image:
    """A column per level: the truth, ``exp(-E)`` and the samples, darker = denser."""
    columns = []
    for fit in fits:
        top = float(fit.truth.max())  # one scale for a column
        columns.append(
            (
                captioned(panel(fit.truth, top), f"level {fit.i}: truth"),
                captioned(panel(fit.density, top), f"energy, TV {fit.of_density:.3f}"),
                captioned(panel(fit.samples, top), f"samples, TV {fit.of_samples:.3f}"),
            )
        )
    return make_grid([picture for row in zip(*columns, strict=True) for picture in row], len(fits))


def panel(masses: Tensor, top: float) -> Image.Image:
    """Probabilities (S, S) as a picture of FINE pixels a side, x₁ to the right and x₂ upwards."""
    size = FINE // len(masses)
    shade = 255 * (1 - (masses / (top * size**2)).clamp(max=1).sqrt())
    pixels = shade.T.flip(0).round().to(torch.uint8).numpy()
    return Image.fromarray(pixels).resize((FINE, FINE), Image.Resampling.NEAREST)
