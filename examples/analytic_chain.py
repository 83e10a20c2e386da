"""CDRL without a network: data whose energy is known at every level, and what the sampler makes of it.

python examples/analytic_chain.py  # 2 s on one core

Three clusters of unequal weight in the plane. The picture shows x_6 (noise) … x_0, left to right; the
printed weights are those of the clusters, true and recovered.
"""

from __future__ import annotations

from pathlib import Path

import click
import torch
from PIL import Image
from torch import Tensor

from cdrl_infer.energies.analytic import GaussianMixtureEnergy, PosteriorMeanProposal
from cdrl_infer.random import BatchRandom
from cdrl_infer.sampler import CooperativeSampler, LevelEnd
from cdrl_infer.schedule import NoiseSchedule

WEIGHTS = (0.5, 0.3, 0.2)
MEANS = ((-1.2, -0.8), (1.3, -0.6), (0.1, 1.3))
SIZE, REACH = 160, 3.0  # pixels of a panel; it shows [-REACH, REACH]²


def panel(points: Tensor) -> Image.Image:
    """A 2-D histogram of (N, 2) points, darker = more."""
    counts, _ = torch.histogramdd(
        points.flip(1), bins=[SIZE, SIZE], range=[-REACH, REACH, -REACH, REACH]
    )
    shade = 255 * (1 - (counts / counts.max().clamp(min=1)).sqrt()).flip(0)
    return Image.fromarray(shade.to(torch.uint8).numpy())


@click.command()
@click.option("--points", default=20_000, show_default=True)
@click.option("--steps", default=15, show_default=True, help="Langevin steps per level.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default="analytic.png",
    show_default=True,
    help="The picture.",
)
def main(points: int, steps: int, out: Path) -> None:
    """Sample, print the recovered weights, draw the levels."""
    energy = GaussianMixtureEnergy(WEIGHTS, MEANS, [[0.05, 0.05]] * 3)
    schedule = NoiseSchedule(logsnr_max=4.0, step_rule="curvature", step_size=0.5)

    def noise() -> BatchRandom:
        return BatchRandom(points, torch.Generator().manual_seed(0))

    panels = [panel(noise().normal((2,)))]  # x_6 is the first that the sampler draws

    def show(end: LevelEnd) -> None:
        panels.append(panel(end.refined))

    sampler = CooperativeSampler(schedule, langevin_steps=steps)
    result = sampler.sample(energy, PosteriorMeanProposal(energy), noise(), (2,), show)
    nearest = torch.cdist(result.samples, torch.tensor(MEANS)).argmin(1)
    for k, weight in enumerate(WEIGHTS):
        print(f"cluster {k}: weight {weight:.3f}, recovered {(nearest == k).float().mean():.3f}")
    film = Image.new("L", (SIZE * len(panels), SIZE), 255)
    for k, picture in enumerate(panels):
        film.paste(picture, (k * SIZE, 0))
    film.save(out)


if __name__ == "__main__":
    main()
