"""`cdrl-train --presets`: every preset is listed, and its costs are what the counter counts."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from cdrl_train import cost
from cdrl_train.catalogue import table
from cdrl_train.cli import main
from cdrl_train.data.sources import expected
from cdrl_train.presets import NAMES, preset
from cdrl_train.presets.counted import COUNTED


def test_all_presets_are_listed() -> None:
    result = CliRunner().invoke(main, ["--presets"])
    assert result.exit_code == 0, result.output
    assert result.output.splitlines() == list(table())
    rows = {line.split()[0]: line for line in result.output.splitlines()[1 : 1 + len(NAMES)]}
    assert tuple(rows) == NAMES
    for name in NAMES:
        source = preset(name).data.source
        assert (source or "your own, --data") in rows[name]
        assert ("FLOP" in rows[name]) == bool(source)
    assert "52.4 EFLOP, 187 h" in rows["cifar10"]  # as in docs/scaling.md


def check(name: str) -> None:
    config = preset(name)
    counted = cost.count(config, *expected(config.data.source, config.data))
    assert counted.ebm + counted.initializer == pytest.approx(COUNTED[name].values, rel=0.01)
    assert counted.flops(config) == pytest.approx(COUNTED[name].flops, rel=0.01)


BUNDLED = ["toy-2d", "fashion-mnist", "coloured-fashion-mnist", "cifar10-compact"]


@pytest.mark.parametrize("name", BUNDLED)
def test_costs_are_those_counted(name: str) -> None:
    check(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({*COUNTED} - {*BUNDLED}))
def test_all_costs_are_those_counted(name: str) -> None:
    check(name)
