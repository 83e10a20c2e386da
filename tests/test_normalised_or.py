"""OR of classes with unequal normalisers: the shares of both branches before and after normalising."""

from __future__ import annotations

import math
from typing import Literal

import pytest
import torch
from torch import Tensor

from cdrl_infer.conditions.expressions import Concept
from cdrl_infer.energies.analytic import GaussianMixtureEnergy, PosteriorMeanProposal
from cdrl_infer.energies.composed import ComposedEnergy
from cdrl_infer.energies.neural import NeuralEnergy
from cdrl_infer.likelihood.telescope import Effort, normalise
from cdrl_infer.proposals import make_proposal
from cdrl_infer.random import BatchRandom
from cdrl_infer.sampler import CooperativeSampler
from cdrl_infer.schedule import Level, NoiseSchedule

SCHEDULE = NoiseSchedule(num_levels=6, step_rule="curvature", step_size=0.4)
LEFT, RIGHT = Concept("left", 0, 1), Concept("right", 0, 2)
MEANS, VARIANCE = ([-0.6, 0.0], [0.6, 0.2]), [0.04, 0.1]
LAWS = (
    GaussianMixtureEnergy([0.5, 0.5], [*MEANS], [VARIANCE, VARIANCE]),
    *(GaussianMixtureEnergy([1.0], [mean], [VARIANCE]) for mean in MEANS),
)
COUNT = 2000


class Classes:
    """Exact log-densities of no class and two; a constant is added to that of "left" at all levels."""

    output_unit: Literal["nats", "step"] = "nats"

    def __init__(self, constant: float) -> None:
        self.constant = constant

    def condition(self, level: Level, labels: Tensor | None = None) -> tuple[Level, Tensor]:
        assert labels is not None
        return level, labels[:, 0]

    def __call__(self, y: Tensor, condition: tuple[Level, Tensor]) -> Tensor:
        level, labels = condition
        densities = torch.stack([-law(y, level) for law in LAWS])
        densities[1] = densities[1] + self.constant
        rows = torch.arange(len(y))
        return densities[labels.expand(len(y)), rows]


def share_of_left(network: Classes, offsets: Tensor | None) -> float:
    """Of samples of "left | right", by the side on which they lie."""
    labels = torch.tensor([0, 1, 2])[:, None, None].expand(3, COUNT, 1)
    expression = LEFT | RIGHT
    energy = ComposedEnergy(
        network,
        labels,
        lambda ratios: expression.log_ratio({LEFT: ratios[0], RIGHT: ratios[1]}),
        offsets,
    )
    random = BatchRandom(COUNT, torch.Generator().manual_seed(1))
    sampler = CooperativeSampler(SCHEDULE, langevin_steps=30)
    drawn = sampler.sample(energy, make_proposal(None), random, (2,)).samples
    level = SCHEDULE.level(1)
    left, right = (law(level.scale * drawn, level) for law in LAWS[1:])
    return float(((right - left).sigmoid()).mean())  # of each sample, the probability of "left"


def estimated_offsets(network: Classes) -> Tensor:
    """``log Z(c) - log Z(∅)``, (2, T), by `normalise`, which does not know the constant."""
    rows = []
    for label, law in enumerate(LAWS):
        generator = torch.Generator().manual_seed(label)
        effort = Effort(chains=64, pilots=16, batch_size=4096)
        data = law.sample(effort.points, generator).float()
        found = normalise(
            NeuralEnergy(network, torch.tensor([[label]])),
            PosteriorMeanProposal(law),
            SCHEDULE,
            (2,),
            generator,
            data=data,
            effort=effort,
        )
        assert found.verdict() == "sound"
        rows.append(torch.tensor(found.log_z))
    return torch.stack(rows[1:]) - rows[0]


@pytest.mark.parametrize("constant", [0.0, 1.0, 3.0])
def test_shares_before_and_after(constant: float) -> None:
    """Before, "left" has the share e^c / (e^c + 1); after, a half, as an OR of two densities."""
    network = Classes(constant)
    error = 0.5 / math.sqrt(COUNT)
    offsets = estimated_offsets(network)
    torch.testing.assert_close(offsets[0], torch.full((6,), constant), atol=0.15, rtol=0)
    before, after = share_of_left(network, None), share_of_left(network, offsets)
    assert abs(before - 1 / (1 + math.exp(-constant))) < 4 * error + 0.02
    assert abs(after - 0.5) < 4 * error + 0.03
