"""Options: typed, checked, written and read again."""

from __future__ import annotations

import pytest

from cdrl_infer.errors import ConfigError
from cdrl_train.config import DataConfig, TrainConfig
from cdrl_train.presets import preset


def test_groups_are_dataclasses_after_a_round_trip() -> None:
    config = preset("celeba64")
    again = TrainConfig.from_dict(config.to_dict())
    assert again == config and isinstance(again.data, DataConfig)
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


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("data.attributes=Male", "'attributes' must be a list, each item a text or null"),
        ("data.in_memory_mib=-1", "in_memory_mib must be at least 0"),
        ("cooperative.initializer_start=2", r"initializer_start must be in \[0, 1\], got 2"),
        ("data.sauce=x", "unknown key 'sauce'.*did you mean 'source'"),
        ("width.ebm=3", "no group 'width'"),
    ],
)
def test_bad_options_are_named(assignment: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        preset("cifar10").override([assignment])
