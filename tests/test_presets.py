"""Named runs: what the paper says, round trips, variations."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from cdrl_infer.errors import ConfigError
from cdrl_train.config import TrainConfig
from cdrl_train.networks import build_network, check_networks
from cdrl_train.presets import FINE_TUNING, NAMES, preset
from cdrl_train.presets.variations import VARIATIONS


@pytest.mark.parametrize("name", NAMES)
def test_presets_survive_a_round_trip_and_build(name: str) -> None:
    config = preset(name)
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert config.name == name and (config.data.source or name in ("my-images", *FINE_TUNING))
    check_networks(config)


def test_sizes_are_the_papers() -> None:
    """34.8 M and 3.8 M values for CIFAR-10, and the lists of the authors' released code."""

    def values(name: str, role: str, classes: tuple[int, ...] = ()) -> int:
        with torch.device("meta"):
            network = build_network(role, getattr(preset(name), role), 3, classes)
        return sum(p.numel() for p in network.parameters())

    assert values("cifar10", "ebm") == pytest.approx(34.8e6, rel=2e-3)
    assert values("cifar10", "initializer") == pytest.approx(3.8e6, rel=1e-2)
    twice = preset("cifar10-large")
    assert twice.ebm["width"] == 256 and twice.initializer["backbone"]["widths"] == [128] * 3
    assert values("cifar10-large", "ebm") == pytest.approx(4 * 34.8e6, rel=0.01)


def test_options_are_the_papers() -> None:
    config = preset("cifar10")
    (phase,) = config.phases
    assert (phase.steps, phase.batch_size) == (500_000, 8 * 32)
    assert (phase.ebm_lr, phase.initializer_lr, phase.lr_warmup_steps) == (1e-4, 1e-5, 10_000)
    assert (phase.initializer_lr_start, phase.final_lr) == (0.05, 1.0)
    known = {"name": "cooperative", "coupling": "shared", "langevin_steps": 15, "weight": "paper"}
    assert phase.objective.items() >= known.items()
    assert (phase.objective["score_matching"], phase.objective["regression"]) == (0, 0)
    assert (config.ema_decay, config.grad_clip, config.spectral_norm) == (0.9999, 1.0, True)
    assert config.data.flip and config.data.attributes == ()
    schedule = config.schedule
    assert (schedule.num_levels, schedule.logsnr_max, schedule.logsnr_min) == (6, 9.8, -5.1)
    assert (schedule.step_rule, schedule.step_size) == ("paper", 4e-4)
    assert preset("imagenet32-cond").total_steps == 1_000_000
    assert preset("imagenet32-cond").initializer["backbone"]["num_blocks"] == 2
    assert preset("cifar10-cond").data.label_dropout == 0.1
    assert preset("cifar10-cond").data.attributes is None


def test_drl_is_the_ancestor() -> None:
    config = preset("drl")
    (phase,) = config.phases
    assert config.initializer is None and config.schedule.step_size == 2e-4
    assert (phase.objective["langevin_steps"], config.sampler.langevin_steps) == (30, 30)
    assert (phase.name, phase.objective["coupling"]) == ("drl", "markov")
    assert config.ebm == preset("cifar10").ebm
    (small,) = preset("fashion-mnist+drl").phases
    assert small.objective["score_matching"] == 0
    same = dataclasses.replace(preset("cifar10+drl"), name="drl")
    assert same == config


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("cifar10+no-shared-noise", ["cooperative.coupling"]),
        ("cifar10+no-spectral-norm", ["spectral_norm"]),
        ("mnist+no-warm-start", ["phases"]),
        ("mnist+no-score-matching", ["cooperative.score_matching"]),
        (
            "cifar10+no-spectral-norm+no-shared-noise",
            ["cooperative.coupling", "spectral_norm"],
        ),
    ],
)
def test_a_variation_leaves_one_thing_out(name: str, changed: list[str]) -> None:
    base = preset(name.partition("+")[0])
    found = [row.partition("=")[0] for row in preset(name).assignments(base)]
    assert sorted(found) == sorted(["name", *changed])


def test_a_run_without_a_warm_start_has_as_many_steps() -> None:
    whole = preset("fashion-mnist")
    warm, cooperative, *others = whole.phases
    later = ("persistent", "reconstruction", "manifold", "manifold-2")
    assert whole.labels == ("warm_start", "cooperative", *later) and warm.steps > 0
    cold = preset("fashion-mnist+no-warm-start")
    assert cold.labels == ("cooperative", *later)
    assert cold.phases[0].steps == warm.steps + cooperative.steps
    assert [*cold.phases[1:]] == others
    drl = preset("fashion-mnist+drl")
    assert (drl.labels, drl.total_steps) == (("drl",), whole.total_steps)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cifar11", "unknown preset 'cifar11', expected one of .*did you mean 'cifar10'"),
        ("cifar10+no-shared", "unknown variation 'no-shared' of cifar10, .*'no-shared-noise'"),
        ("fashion-mnist+no-shared-noise", "fashion-mnist has no shared noise to leave out"),
        ("fashion-mnist+no-spectral-norm", "no spectral norm"),
        ("cifar10+no-warm-start", "no warm start"),
        ("cifar10+no-score-matching", "cifar10 has no score matching"),
        ("cifar10+no-shared-noise+no-shared-noise", "no shared noise"),
        ("drl+drl", "drl has no initializer to leave out"),
        ("cifar10+", "unknown variation ''"),
    ],
)
def test_what_cannot_be_is_named(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        preset(name)
    assert "\n" not in str(caught.value)


def test_every_variation_has_a_preset() -> None:
    with_it = {"drl": "mnist", "no-warm-start": "mnist", "no-score-matching": "mnist"}
    for variation in VARIATIONS:
        base = preset(with_it.get(variation, "cifar10"))
        assert preset(f"{base.name}+{variation}") != base


@pytest.mark.parametrize(
    ("name", "assignment", "message"),
    [
        ("cifar10", "ebm.widht=96", "ebm: unknown key 'widht', .*did you mean 'width'"),
        ("cifar10", "ebm.width=wide", "'width' must be an integer"),
        ("cifar10", "initializer.backbone.widths=[48]", "multiples of groups"),
        ("cifar10", "ebm.class=ResidualEBN", "did you mean 'ResidualEBM'"),
        ("cifar10", "ebm.in_channels=3", "comes from the data"),
        ("mnist", "spectral_norm=true", "not defined for PatchUNet"),
    ],
)
def test_options_of_networks_are_checked_without_data(
    name: str, assignment: str, message: str
) -> None:
    config = preset(name).override([assignment])
    with pytest.raises(ConfigError, match=message):
        check_networks(config)
