"""Runs with an energy that knows its normaliser, and one normaliser per level of a chain."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from runs import fit, trainer
from snl_parts import (
    LEVEL,
    POINT,
    energy,
    generator,
    log_z,
    models,
)
from torch import Tensor

from cdrl_infer.energies.neural import NeuralEnergy
from cdrl_infer.errors import ConfigError
from cdrl_infer.model import ImageShape
from cdrl_infer.networks.distributions import GaussianDistribution
from cdrl_infer.networks.mlp import MLPEnergy
from cdrl_infer.networks.tilted import TiltedEnergy
from cdrl_infer.random import BatchRandom
from cdrl_infer.schedule import Level
from cdrl_train.config import TrainConfig
from cdrl_train.data.image_set import ImageSet
from cdrl_train.data.plane import branches, points
from cdrl_train.data.sources import load_images
from cdrl_train.data.stream import Batch
from cdrl_train.export import to_model
from cdrl_train.objectives import Models, weighted
from cdrl_train.objectives.losses import noised_pair
from cdrl_train.objectives.normalised import Normalised, log_ratios
from cdrl_train.presets import preset


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


@torch.no_grad()
def levels_of_data(ebm: TiltedEnergy, pairs: Tensor) -> Tensor:
    """The distribution function of y given x at each pair (N, 2), by a grid: uniform if calibrated."""
    y = torch.linspace(-1.5, 1.5, 301)
    columns = torch.stack(torch.broadcast_tensors(pairs[:, :1], y), -1).reshape(-1, *POINT)
    log_p = -NeuralEnergy(ebm)(columns, LEVEL) - ebm.base.log_given(columns)
    shares = log_p.reshape(len(pairs), -1).softmax(1)
    return (shares * (y < pairs[:, 1:])).sum(1)


def test_regression_is_calibrated(tmp_path: Path) -> None:
    """The density of a short run fits both branches; data of one branch alone do not fit it."""
    config = preset("snl-regression").override(
        ["snl.steps=300", "snl.batch_size=64", "snl.draws=4", "ebm.width=32", "ebm.num_blocks=1"]
    )
    run = trainer(config, tmp_path, data=load_images("plane:bimodal"))
    fit(run)
    ebm = to_model(run).ebm
    pairs = points("bimodal", 1000, generator(5))

    def far_from_uniform(levels: Tensor) -> float:
        expected = (torch.arange(len(levels)) + 0.5) / len(levels)
        return float((levels.sort().values - expected).abs().max())

    assert far_from_uniform(levels_of_data(ebm, pairs)) < 0.12
    low, high, _ = branches(pairs[:, 0])
    upper = (pairs[:, 1] - high).abs() < (pairs[:, 1] - low).abs()
    assert far_from_uniform(levels_of_data(ebm, pairs[upper])) > 0.25


@pytest.mark.parametrize(
    ("assignments", "message"),
    [
        (["initializer=null"], "'snl' needs a proposal with a density, and initializer is null"),
        (
            ['initializer={"class": "SphereAutoencoder"}'],
            "'snl' needs a proposal with a density, got the initializer 'SphereAutoencoder'; use a",
        ),
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


# -- One normaliser per level -------------------------------------------------------------------------


class PosteriorMean:
    """The initializer that Gaussian data with variance v have: E[y | x_t]."""

    def __init__(self, variance: float) -> None:
        self.variance = variance

    def condition(self, level: Level, labels: Tensor | None = None) -> Tensor:
        prior = level.alpha**2 * self.variance + level.sigma_bar**2
        signal = level.alpha_in**2 * self.variance + level.sigma_bar_in**2
        return level.scale * (1 - level.noise_variance).sqrt() * prior / signal

    def __call__(self, x: Tensor, condition: Tensor) -> Tensor:
        return condition.reshape(-1, 1, 1, 1) * x


def gaussian_chain(variance: float) -> Models:
    """Energies of noised Gaussian data, which are exact but for their constants."""
    schedule = preset("toy-2d").schedule
    ebm = MLPEnergy(width=8, num_blocks=1, data_variance=variance).requires_grad_(False)
    return Models(ebm, ebm, PosteriorMean(variance), schedule)


def true_log_ratio(found: Models, variance: float, t: Tensor) -> Tensor:
    """``log Z_{t-1}/Z_t``: of y = m x below, of x above, where N(0, I) is normalised."""
    level = found.schedule.level(t)
    below = level.alpha**2 * variance + level.sigma_bar**2
    above = level.alpha_in**2 * variance + level.sigma_bar_in**2
    above = torch.where(t == found.schedule.num_levels, 1 / (2 * math.pi), above)
    return 2 * level.scale.log() + below.log() - above.log()


def test_levels_that_fit_have_one_ratio_for_all_points() -> None:
    variance, count = 0.002, 400
    found = gaussian_chain(variance)
    t = torch.arange(count) % found.schedule.num_levels + 1
    level, random = found.schedule.level(t), BatchRandom(count, generator())
    x = variance**0.5 * torch.randn(count, *POINT, generator=generator(1))
    pair = noised_pair(x, level, "markov", random)
    log_r = log_ratios(found, None, pair, level, 256, random)
    truth = true_log_ratio(found, variance, t)
    error = log_r - truth
    assert float(error.abs().max()) < 0.1 and float(error.mean().abs()) < 0.01


def test_the_ratio_of_each_level_is_averaged_by_itself() -> None:
    objective = Normalised(rate=0.5)
    objective.build(ImageShape(*POINT), ())
    t = torch.tensor([1, 3, 3])
    objective._average(torch.tensor([2.0, 1.0, 5.0]), t)
    first = math.log((math.exp(1.0) + math.exp(5.0)) / 2)
    assert objective.log_ratio[:4].tolist() == pytest.approx([2.0, 0.0, first, 0.0])
    objective._average(torch.tensor([4.0]), torch.tensor([1]))
    both = math.log((math.exp(2.0) + math.exp(4.0)) / 2)
    assert objective.log_ratio[:3].tolist() == pytest.approx([both, 0.0, first])
