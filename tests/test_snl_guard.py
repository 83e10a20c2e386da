"""The divergence guard stops SNL where its importance weights say nothing."""

from __future__ import annotations

from typing import Any

import pytest
from snl_parts import energy, mixture, models, step

from cdrl_infer.errors import ConfigError
from cdrl_infer.networks.distributions import GaussianDistribution
from cdrl_train.engine.guard import Diverged, Guard
from cdrl_train.objectives.snl import SelfNormalised


def stopped_by(proposal: Any, count: int, **options: float) -> set[str]:
    """The names of the limits that a first step reaches."""
    objective, guard = SelfNormalised(draws=4, fit="fixed", **options), Guard(0)
    found = step(objective, models(energy(), proposal), count).by_level
    for limit in objective.limits(2):
        if limit.result in found:
            guard.watch(limit, "1", float(found[limit.result].mean()))
    try:
        guard.settle(0)
    except Diverged as error:
        return {name.partition("/")[0] for name in error.record()["symptoms"]}
    return set()


def test_a_proposal_that_covers_the_energy_passes() -> None:
    assert stopped_by(mixture(), 1000) == set()


def test_a_proposal_that_is_too_narrow_is_stopped() -> None:
    """A few draws far out decide."""
    assert stopped_by(GaussianDistribution(scale=0.05), 250) == {"pareto_k", "largest_share"}


def test_the_largest_of_four_weights_has_at_least_a_quarter() -> None:
    """So few weights have no Pareto k̂."""
    assert stopped_by(mixture(), 1, max_share=0.25) == {"largest_share"}


def test_the_limits_are_options() -> None:
    advice = {limit.advice for limit in SelfNormalised().limits(2)}
    assert advice == {"lower ebm_lr, raise draws or rate, or choose a wider proposal"}
    narrow = GaussianDistribution(scale=0.05)
    assert stopped_by(narrow, 250, max_pareto_k=2.0, max_share=1.0) == set()


@pytest.mark.parametrize("option", [{"max_share": 0.0}, {"max_share": 1.5}, {"max_pareto_k": 0.0}])
def test_limits_out_of_range_are_refused(option: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(option))):
        SelfNormalised(**option)
