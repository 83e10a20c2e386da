"""Small energies with a normaliser, proposals and a grid, for the tests of self-normalised likelihood."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor

from cdrl_infer.energies.neural import NeuralEnergy
from cdrl_infer.networks.distributions import GaussianDistribution, MixtureDistribution
from cdrl_infer.networks.tilted import TiltedEnergy
from cdrl_infer.random import BatchRandom
from cdrl_train.data.plane import points
from cdrl_train.data.stream import Batch
from cdrl_train.objectives import Losses, Models
from cdrl_train.presets import preset

POINT = (1, 1, 2)
SCHEDULE = preset("snl-2d").schedule
LEVEL = SCHEDULE.level(1)
CELLS, EXTENT = 240, 3.0


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def grid() -> tuple[Tensor, float]:
    """The centres of cells of the plane, (N, 1, 1, 2), and the log-area of a cell."""
    centres = EXTENT * ((2 * torch.arange(CELLS) + 1) / CELLS - 1)
    return torch.cartesian_prod(centres, centres).reshape(-1, *POINT), 2 * math.log(
        2 * EXTENT / CELLS
    )


def mixture(num_given: int = 0, covariance: Any = "full") -> MixtureDistribution:
    """Three skewed components."""
    torch.manual_seed(3)
    made = MixtureDistribution(components=3, covariance=covariance, scale=0.8, num_given=num_given)
    with torch.no_grad():
        made.log_scales += 0.3 * torch.randn(made.log_scales.shape)
        made.logits += torch.tensor([0.5, 0.0, -1.0])
        if made.lower is not None:
            made.lower += 0.4 * torch.randn(made.lower.shape)
    return made


def energy(num_given: int = 0) -> TiltedEnergy:
    """With a random tilt, whose normaliser is not 1."""
    torch.manual_seed(4)
    made = TiltedEnergy(
        GaussianDistribution(scale=0.6, num_given=num_given), width=16, num_blocks=1
    )
    with torch.no_grad():
        made.mlp.head.weight.normal_(std=0.5)
        made.mlp.head.bias.fill_(2.0)
    return made


@torch.no_grad()
def log_z(network: TiltedEnergy) -> float:
    """The log-normaliser of ``exp(-E)`` by a grid."""
    where, area = grid()
    return float((-NeuralEnergy(network)(where, LEVEL).double()).logsumexp(0)) + area


def models(ebm: TiltedEnergy, initializer: Any) -> Models:
    return Models(ebm, copy.deepcopy(ebm).requires_grad_(False), initializer, SCHEDULE)


def step(objective: Any, found: Models, count: int = 4000, seed: int = 0) -> Losses:
    x = points("clusters", count, generator(9)).reshape(-1, *POINT)
    level = SCHEDULE.level(torch.ones(count, dtype=torch.int64))
    losses: Losses = objective.losses(
        found, Batch(x, None), level, BatchRandom(count, generator(seed))
    )
    return losses
