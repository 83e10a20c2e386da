"""Self-normalised likelihood: the bound, its normaliser, and that planted errors are seen."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from snl_parts import (
    LEVEL,
    POINT,
    SCHEDULE,
    energy,
    generator,
    grid,
    log_z,
    mixture,
    models,
    step,
)

from cdrl_infer.energies.neural import NeuralEnergy
from cdrl_infer.networks.distributions import GaussianDistribution
from cdrl_infer.networks.tilted import TiltedEnergy
from cdrl_infer.proposals import DistributionProposal
from cdrl_infer.random import BatchRandom
from cdrl_train.data.plane import points
from cdrl_train.data.stream import Batch
from cdrl_train.objectives.nce import NoiseContrastive
from cdrl_train.objectives.snl import SelfNormalised


def test_b_starts_at_the_log_of_the_normaliser() -> None:
    """Catches a b that starts at Z: here Z is about 7 and log Z about 2."""
    ebm, proposal = energy(), mixture()
    truth = log_z(ebm)
    assert truth > 1.5
    step(SelfNormalised(draws=8), models(ebm, proposal))
    assert abs(float(ebm.log_normaliser) - truth) < 0.03
    assert abs(log_z(ebm)) < 0.03


def test_a_missing_density_of_the_proposal_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    ebm = energy()
    truth = log_z(ebm)
    monkeypatch.setattr(DistributionProposal, "log_prob", lambda self, y, *_: 0 * y.sum((1, 2, 3)))
    step(SelfNormalised(draws=8, fit="fixed"), models(ebm, mixture()))
    assert abs(float(ebm.log_normaliser) - truth) > 0.3


def test_the_loss_is_the_bound_and_least_at_the_log_normaliser() -> None:
    ebm, proposal = energy(), mixture()
    truth = log_z(ebm)
    objective = SelfNormalised(draws=8, fit="fixed")
    objective.begun.fill_(1.0)
    found = {}
    for b in (truth - 0.5, truth, truth + 0.5):
        with torch.no_grad():
            ebm.log_normaliser.fill_(b)
            x = points("clusters", 4000, generator(9)).reshape(-1, *POINT)
            expected = float(NeuralEnergy(ebm)(x, LEVEL).mean()) + math.exp(truth - b) - 1
            found[b] = float(step(objective, models(ebm, proposal)).total)
        assert abs(found[b] - expected) < 0.03
    assert found[truth] < min(found[truth - 0.5], found[truth + 0.5])


def test_the_gradient_is_that_of_the_likelihood() -> None:
    ebm, proposal = energy(), mixture()
    with torch.no_grad():
        ebm.log_normaliser.fill_(log_z(ebm))
    objective = SelfNormalised(draws=32, fit="fixed")
    objective.begun.fill_(1.0)
    x = points("clusters", 4000, generator(9)).reshape(-1, *POINT)
    step(objective, models(ebm, proposal)).total.backward()
    weight = ebm.mlp.head.weight
    assert weight.grad is not None
    found, weight.grad = weight.grad, None
    where, _ = grid()
    potential = NeuralEnergy(ebm).at(LEVEL)
    (potential(x).mean() + (-potential(where)).logsumexp(0)).backward()
    assert weight.grad is not None
    torch.testing.assert_close(found, weight.grad, atol=0.02, rtol=0.05)
    assert ebm.log_normaliser.grad is None


@pytest.mark.parametrize("update", ["newton", "gradient"])
def test_b_moves_to_the_log_normaliser(update: Any) -> None:
    ebm, proposal = energy(), mixture()
    truth = log_z(ebm)
    objective = SelfNormalised(draws=4, update=update, rate=0.1, fit="fixed")
    objective.begun.fill_(1.0)
    with torch.no_grad():
        ebm.log_normaliser.fill_(truth + 0.7)
    for seed in range(60):
        step(objective, models(ebm, proposal), 500, seed)
    assert abs(float(ebm.log_normaliser) - truth) < 0.03


def test_the_normaliser_of_each_condition_is_learnt() -> None:
    """b(x) against an integral over y at several x; the energy itself does not move."""
    ebm, proposal = energy(num_given=1), mixture(num_given=1)
    given = ebm.given_normaliser
    assert given is not None
    optimizer = torch.optim.Adam(given.parameters(), lr=1e-2)
    objective = SelfNormalised(draws=16, fit="fixed")
    for seed in range(150):
        optimizer.zero_grad()
        step(objective, models(ebm, proposal), 400, seed).total.backward()
        optimizer.step()
    y = torch.linspace(-4, 4, 801)
    for x in (-0.4, 0.0, 0.4):
        pairs = torch.stack([torch.full_like(y, x), y], 1).reshape(-1, *POINT)
        with torch.no_grad():
            log_p = -NeuralEnergy(ebm)(pairs, LEVEL) - ebm.base.log_given(pairs)
        mass = float(log_p.logsumexp(0)) + math.log(float(y[1] - y[0]))
        assert abs(mass) < 0.05, x


@pytest.mark.parametrize("kind", ["likelihood", "kl"])
def test_the_proposal_learns_the_data_or_the_energy(kind: Any) -> None:
    """From the data its own log-likelihood grows; from the energy the weights become equal."""
    ebm, proposal = energy(), mixture()
    optimizer = torch.optim.Adam(proposal.parameters(), lr=2e-2)
    x = points("clusters", 4000, generator(9)).reshape(-1, *POINT)
    with torch.no_grad():
        before = float(proposal.log_prob(x).mean())
    shares = []
    for seed in range(60):
        optimizer.zero_grad()
        losses = step(SelfNormalised(fit=kind), models(ebm, proposal), 500, seed)
        losses.totals["initializer"].backward()
        optimizer.step()
        shares.append(float(losses.by_level["effective_share"][0]))
    with torch.no_grad():
        gain = float(proposal.log_prob(x).mean()) - before
    if kind == "kl":
        assert shares[0] < 0.6 and shares[-1] > 0.85
    else:
        assert gain > 0.3 and shares[-1] < shares[0]


def test_noise_contrast_is_least_at_the_density_of_the_data() -> None:
    """With E the density of the data, a constant added to it or taken from it raises the loss."""
    torch.manual_seed(0)
    ebm = TiltedEnergy(GaussianDistribution(scale=0.5), width=8, num_blocks=1)
    objective, proposal = NoiseContrastive(draws=2, fit="fixed"), mixture()
    x = 0.5 * torch.randn(8000, *POINT, generator=generator())
    level = SCHEDULE.level(torch.ones(8000, dtype=torch.int64))
    found = []
    for shift in (-0.3, 0.0, 0.3):
        with torch.no_grad():
            ebm.log_normaliser.fill_(shift)
            random = BatchRandom(8000, generator(1))
            losses = objective.losses(models(ebm, proposal), Batch(x, None), level, random)
        found.append(float(losses.total))
    assert found[1] < min(found[0], found[2])
