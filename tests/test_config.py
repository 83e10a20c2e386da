"""Options: typed, checked, changed, written and read again."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from runs import RESIDUAL, tiny

from cdrl_infer.config import Configurable, from_config
from cdrl_infer.errors import ConfigError, InputError
from cdrl_train.config import DataConfig, Phase, TrainConfig
from cdrl_train.networks import check_networks
from cdrl_train.presets import preset


def test_groups_are_dataclasses_after_a_round_trip() -> None:
    config = preset("celeba64")
    again = TrainConfig.from_dict(config.to_dict())
    assert again == config and isinstance(again.data, DataConfig)
    assert isinstance(again.phases[0], Phase)
    assert again.data.attributes == ("Male", "Smiling", "Young", "Black_Hair", "Eyeglasses")


def test_attributes_are_all_none_or_some() -> None:
    base = preset("celeba64")
    assert base.override(["data.attributes=null"]).data.attributes is None
    assert base.override(["data.attributes=[]"]).data.attributes == ()
    assert base.override(['data.attributes=["Male"]']).data.attributes == ("Male",)


def test_networks_take_single_arguments() -> None:
    config = preset("cifar10").override(["ebm.width=96", "ebm.activation=silu"])
    assert config.ebm == {**preset("cifar10").ebm, "width": 96, "activation": "silu"}
    assert config.assignments(preset("cifar10")) == ["ebm.width=96", 'ebm.activation="silu"']


def test_a_phase_is_named_by_its_objective_or_its_place() -> None:
    base = tiny()
    for name in ("cooperative", "phases.1"):
        config = base.override([f"{name}.langevin_steps=7", f"{name}.ebm_lr=0.5", "grad_clip=2"])
        assert config.phases[1].objective["langevin_steps"] == 7
        assert (config.phases[1].ebm_lr, config.grad_clip) == (0.5, 2.0)
        assert config.phases[0] == base.phases[0]


def test_phases_of_one_objective_are_numbered() -> None:
    first, second = tiny().phases
    config = tiny(phases=(first, second, dataclasses.replace(second, steps=2)))
    assert config.labels == ("score_matching", "cooperative", "cooperative-2")
    changed = config.override(["cooperative-2.batch_size=3"])
    assert [phase.batch_size for phase in changed.phases] == [8, 8, 3]
    assert changed.assignments(config) == ["cooperative-2.batch_size=3"]


def test_steps_belong_to_phases_in_order() -> None:
    config = tiny("score_matching.steps=2", "cooperative.steps=3")
    found = [config.phase_at(step) for step in range(7)]
    assert found == [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2), (1, 3), (1, 4)]
    assert config.override(["score_matching.steps=0"]).phase_at(0) == (1, 0)
    assert config.override(["cooperative.steps=0"]).phase_at(2) == (0, 2)
    assert (config.total_steps, config.total_images) == (5, 40)


def test_assignments_are_what_override_needs() -> None:
    base = tiny()
    changed = tiny(
        "score_matching.coupling=shared",
        grad_clip=2.0,
        data=DataConfig(flip=False),
        ebm=RESIDUAL,
    )
    assert base.assignments(base) == []
    assert base.override(changed.assignments(base)) == changed
    longer = tiny(phases=(base.phases[1],))  # other phases: all of them are told
    assert [text.partition("=")[0] for text in longer.assignments(base)] == ["phases"]
    assert base.override(longer.assignments(base)) == longer


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("data.attributes=Male", "'attributes' must be a list, each item a text or null"),
        ("data.in_memory_mib=-1", "in_memory_mib must be at least 0"),
        ("data.sauce=x", "unknown key 'sauce'.*did you mean 'source'"),
        ("data.label_dropout=7", r"label_dropout must be in \[0, 1\], got 7"),
        ("width.ebm=3", "no group 'width'"),
        ("nothing.steps=3", "no group 'nothing'"),
        ("phases.2.steps=3", r"no group 'phases\.2'"),
        ("phases=[]", "phases must have at least one entry, got none"),
        ("score_matching.step=3", "unknown option .*did you mean 'steps'"),
        ("score_matching.steps=three", "steps"),
        ("score_matching.coupling=both", "coupling"),
        ("score_matching.batch_size=0", r"batch_size must be in \[1, 1e\+06\], got 0"),
        ("score_matching.lr_warmup_steps=-3", "lr_warmup_steps"),
        ("score_matching.regression=-1", "regression must be at least 0, got -1"),
        ("cooperative.name=cooperativ", "unknown objective .*did you mean 'cooperative'"),
        ("cooperative.langevin_steps=-1", "langevin_steps must be at least 0"),
        ("cooperative.step_scale=0", "step_scale must be positive, got 0"),
        ("cooperative.ebm_lr=-1", "ebm_lr"),
        ("cooperative.initializer_lr_start=2", r"initializer_lr_start must be in \[0, 1\], got 2"),
        ("initializer=null", "'cooperative' needs an initializer, and initializer is null"),
        ("grad_clip", "expected KEY=VALUE"),
        ("grad_clip=0", "grad_clip"),
        ("seed=1.5", "seed"),
        ("seed=-1", "seed must be in"),
        ("log_every=0", "log_every must be at least 1"),
        ("keep_checkpoints=0", "keep_checkpoints"),
        ("ema_decay=1", "ema_decay"),
        ("phases.0.batch_size=" + "9" * 30, "batch_size must be in"),
        ("phases.0.ebm_lr=1e300", "ebm_lr must be in"),
        ("accumulate=" + "9" * 30, "accumulate must be in"),
        ("seed=" + "1" * 5000, "'seed' must be an integer, found '111"),
        ("seed=" + "[" * 5000 + "]" * 5000, r"'seed' must be an integer, found '\[\["),
        ("seed=NaN", "'seed' must be an integer, found 'NaN'"),
        ("sampler.langevin_steps=[1,2]", "one integer or 3, one per level, got 2"),
    ],
)
def test_bad_options_are_named(assignment: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny().override([assignment])


@pytest.mark.parametrize(
    "text",
    ["[" * 5000, "[" * 5000 + "]" * 5000, "[" * 99 + "]" * 99, "1" * 5000, "NaN", '{"a":1,"a":2}'],
)
def test_a_file_of_no_options_is_told(text: str, tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text(text)
    with pytest.raises(InputError, match=r"mine\.json: expected options in JSON, found none"):
        TrainConfig.read(tmp_path / "mine.json")


@pytest.mark.parametrize("width", [2**63, 2**62, 10**8, 10**5])
def test_absurd_networks_are_told(width: int) -> None:
    with pytest.raises(ConfigError, match=r"are absurd|may have at most"):
        check_networks(tiny(ebm={"class": "MLPEnergy", "num_pixels": 4, "width": width}))


def test_options_of_a_parent_are_options() -> None:
    class Parent(Configurable):
        def __init__(self, size: int = 1, name: str = "a", share: float = 0.5) -> None:
            if size < 1:
                raise ConfigError(f"size must be positive, got {size}")
            self.size = size

    class Child(Parent):
        def __init__(self, name: str = "b", depth: int = 3, **options: Any) -> None:
            super().__init__(name=name, **options)

    class Grandchild(Child):
        def __init__(self, size: int = 7, **options: Any) -> None:
            super().__init__(size=size, **options)

    assert Child().config == {"size": 1, "name": "b", "share": 0.5, "depth": 3}
    assert Grandchild().config == {"size": 7, "name": "b", "share": 0.5, "depth": 3}
    made = from_config(Grandchild, {"share": 1, "depth": 4}, "here")
    assert made.config == {"size": 7, "name": "b", "share": 1.0, "depth": 4} and made.size == 7
    with pytest.raises(
        ConfigError, match=r"here: unknown key 'sizes', expected .* did you mean 'size'"
    ):
        from_config(Child, {"sizes": 2}, "here")
    with pytest.raises(ConfigError, match="here: 'size' must be an integer, found 'x'"):
        from_config(Grandchild, {"size": "x"}, "here")
    with pytest.raises(ConfigError, match="here: size must be positive, got 0"):
        from_config(Child, {"size": 0}, "here")
