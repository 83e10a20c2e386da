"""Distributions as proposals: densities, draws, given values."""

from __future__ import annotations

import pytest
import torch
from snl_parts import (
    POINT,
    SCHEDULE,
    generator,
    grid,
    mixture,
)
from torch import Tensor

from cdrl_infer.networks.heads import ResidualInitializer
from cdrl_infer.networks.mlp import MLP
from cdrl_infer.proposals import DistributionProposal, InitializerProposal, make_proposal
from cdrl_infer.random import BatchRandom, PerImageRandom, Repeated
from cdrl_train.presets import preset


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("covariance", ["full", "diagonal"])
def test_a_mixture_is_normalised_and_draws_what_it_says(covariance: str, training: bool) -> None:
    made = mixture(covariance=covariance).train(training)
    assert len(made.log_shares()) == (4 if training else 3)  # the wide one is for training
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


def test_inpainting_proposes_the_other_value_given_the_known_one() -> None:
    network = mixture(num_given=1)
    proposal, known = DistributionProposal(network), torch.full((3, *POINT), 0.25)
    x_t, level = torch.zeros(3, *POINT), SCHEDULE.level(1)
    first, second = torch.tensor([True, False]), torch.tensor([False, True])

    def drawn(unknown: Tensor) -> Tensor:
        held = proposal.holding(known, unknown.expand(3, *POINT))
        return held.sample(x_t, level, BatchRandom(3, generator())).flatten(1)

    assert bool((drawn(second)[:, 0] == 0.25).all())
    free = proposal.sample(x_t, level, BatchRandom(3, generator())).flatten(1)
    assert torch.equal(drawn(first), free)  # y is no condition of this density
    assert torch.equal(drawn(first | second), free)


def test_densities_given_values_are_ratios() -> None:
    for covariance in ("full", "diagonal"):
        made = mixture(num_given=1, covariance=covariance)
        y = torch.randn(7, *POINT)
        expected = made.log_prob(y) - made.log_given(y)
        torch.testing.assert_close(made.log_conditional(y), expected)
