"""Self-normalised likelihood: densities, proposals, the bound, and that planted errors are seen."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import fit, trainer
from torch import Tensor

from cdrl_infer.energies.neural import NeuralEnergy
from cdrl_infer.errors import ConfigError
from cdrl_infer.networks.distributions import GaussianDistribution, MixtureDistribution
from cdrl_infer.networks.heads import ResidualInitializer
from cdrl_infer.networks.mlp import MLP
from cdrl_infer.networks.tilted import TiltedEnergy
from cdrl_infer.proposals import DistributionProposal, InitializerProposal, make_proposal
from cdrl_infer.random import BatchRandom, PerImageRandom, Repeated
from cdrl_train.config import TrainConfig
from cdrl_train.data.image_set import ImageSet
from cdrl_train.data.plane import points
from cdrl_train.data.stream import Batch
from cdrl_train.export import to_model
from cdrl_train.objectives import Losses, Models, weighted
from cdrl_train.objectives.nce import NoiseContrastive
from cdrl_train.objectives.snl import SelfNormalised
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


# -- Distributions ------------------------------------------------------------------------------------


@pytest.mark.parametrize("covariance", ["full", "diagonal"])
def test_a_mixture_is_normalised_and_draws_what_it_says(covariance: str) -> None:
    made = mixture(covariance=covariance)
    where, area = grid()
    with torch.no_grad():
        log_q = made.log_prob(where).double()
    assert abs(float(log_q.logsumexp(0)) + area) < 0.01
    draws = made.draw(POINT, BatchRandom(40_000, generator())).flatten(1)
    weights = log_q.softmax(0)[:, None]
    flat = where.flatten(1).double()
    mean = (weights * flat).sum(0)
    covariances = (weights * (flat - mean)).T @ (flat - mean)
    torch.testing.assert_close(draws.mean(0).double(), mean, atol=0.02, rtol=0)
    torch.testing.assert_close(draws.T.cov().double(), covariances, atol=0.03, rtol=0.03)
    torch.testing.assert_close(made.mean().detach().double(), mean, atol=0.01, rtol=0)


def test_the_other_value_is_drawn_given_the_first() -> None:
    made = mixture(num_given=1)
    x = 0.3
    y = torch.linspace(-4, 4, 2001)
    pairs = torch.stack([torch.full_like(y, x), y], 1).reshape(-1, *POINT)
    with torch.no_grad():
        log_q = made.log_prob(pairs) - made.log_given(pairs)
    density = log_q.exp() * float(y[1] - y[0])
    assert abs(float(density.sum()) - 1) < 1e-3
    given = torch.tensor([x, 7.0]).reshape(1, *POINT).expand(40_000, *POINT)
    draws = made.draw(POINT, BatchRandom(40_000, generator()), given).flatten(1)
    assert bool((draws[:, 0] == torch.tensor(x)).all())
    cdf = density.cumsum(0)
    found = torch.searchsorted(draws[:, 1].sort().values, y) / 40_000
    assert float((found - cdf).abs().max()) < 0.02


def test_a_draw_does_not_depend_on_the_batch() -> None:
    made = mixture()
    alone = made.draw(POINT, PerImageRandom.from_seeds([7], "cpu"))
    batch = made.draw(POINT, PerImageRandom.from_seeds([5, 7, 9], "cpu"))
    assert torch.equal(alone[0], batch[1])


def test_repeated_draws_are_neighbours_and_of_their_own_streams() -> None:
    two = Repeated(PerImageRandom.from_seeds([5, 7], "cpu"), 3)
    one = Repeated(PerImageRandom.from_seeds([7], "cpu"), 3)
    assert torch.equal(two.normal((2,))[3:], one.normal((2,)))
    assert torch.equal(two.uniform()[3:], one.uniform())


def test_the_initializers_gaussian_has_a_density() -> None:
    level = preset("toy-2d").schedule.level(3)
    network = ResidualInitializer(MLP(1, 2, 8))
    proposal = make_proposal(network)
    assert isinstance(proposal, InitializerProposal)
    x_t = torch.randn(5, *POINT)
    y = proposal.sample(x_t, level, BatchRandom(5, generator()))
    mean = proposal.mean(x_t, level)
    law = torch.distributions.Normal(mean, level.proposal_variance.sqrt())
    expected = law.log_prob(y).flatten(1).sum(1)
    torch.testing.assert_close(proposal.log_prob(y, x_t, level), expected)


# -- The bound ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_given", [0, 1])
def test_b_starts_at_the_log_of_the_normaliser(num_given: int) -> None:
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


# -- Training -----------------------------------------------------------------------------------------


def small(*assignments: str) -> TrainConfig:
    return preset("snl-2d").override(
        [
            "snl.steps=300",
            "snl.lr_warmup_steps=0",
            "ebm.width=32",
            "ebm.num_blocks=1",
            "initializer.components=4",
            "log_every=100",
            *assignments,
        ]
    )


def test_training_makes_an_energy_that_is_its_own_log_likelihood(tmp_path: Path) -> None:
    """The mean of -E is the grid-normalised log-likelihood, and near minus the entropy of the data."""
    x = points("clusters", 20_000, generator())
    data = ImageSet(((x + 1) * 128).to(torch.uint8).reshape(-1, *POINT))
    run = trainer(small(), tmp_path, data=data)
    fit(run)
    model = to_model(run)
    error = log_z(model.ebm)
    assert abs(error) < 0.03
    held_out = points("clusters", 10_000, generator(1)).reshape(-1, *POINT)
    with torch.no_grad():
        mean = float(-NeuralEnergy(model.ebm)(held_out, LEVEL).mean())
    entropy = math.log(3) + 1 + math.log(2 * math.pi) + 2 * math.log(0.12)
    assert -entropy - 0.08 < mean - error < -entropy + 0.02
    assert float(run.state.objective.begun) == 1.0


@pytest.mark.parametrize(
    ("assignments", "message"),
    [
        (["initializer=null"], "'snl' needs a proposal with a density, and initializer is null"),
        (["schedule.num_levels=2"], "'snl' needs schedule.num_levels=1"),
        (['ebm={"class": "MLPEnergy"}'], "got 'MLPEnergy'; use a 'TiltedEnergy'"),
        (["initializer.num_given=1"], "the same given values .*initializer.num_given=1"),
    ],
)
def test_a_run_that_cannot_work_is_refused_at_once(assignments: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        small(*assignments)


def test_cooperative_training_refuses_a_proposal_without_a_mean_for_x_t() -> None:
    with pytest.raises(ConfigError, match="'cooperative' needs an initializer that gives a mean"):
        preset("toy-2d").override(['initializer={"class": "MixtureDistribution"}'])


def test_weights_of_given_values_are_conditional() -> None:
    """The marginal of x cancels: a proposal with another marginal and the same q(y|x) weighs the same."""
    ebm = energy(num_given=1)
    first = GaussianDistribution(num_given=1)
    other = GaussianDistribution(num_given=1)
    with torch.no_grad():
        other.means[0, 0], other.log_scales[0, 0] = 0.4, 0.2
    x = points("clusters", 50, generator(9)).reshape(-1, *POINT)
    found = [
        weighted.weigh(models(ebm, q), Batch(x, None), 4, "fixed", BatchRandom(50, generator()))
        for q in (first, other)
    ]
    torch.testing.assert_close(found[0].log_weights, found[1].log_weights)
