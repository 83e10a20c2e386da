"""The divergence guard stops SNL where its importance weights say nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from snl_parts import energy, mixture, models, step

from cdrl_infer.errors import ConfigError
from cdrl_infer.networks.distributions import GaussianDistribution
from cdrl_train.engine.guard import Diverged, Guard
from cdrl_train.objectives.snl import AVERAGED, EVERY, SelfNormalised


def stopped_by(proposal: Any, count: int, **options: Any) -> set[str]:
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
    narrow = GaussianDistribution(scale=0.05)
    assert stopped_by(narrow, 250) == {"pareto_k", "largest_share"}
    assert stopped_by(narrow, 250, max_share=None) == {"pareto_k"}
    assert stopped_by(narrow, 250, max_pareto_k=None) == {"largest_share"}
    assert stopped_by(narrow, 250, max_pareto_k=None, max_share=None) == set()


def test_a_few_weights_are_not_judged() -> None:
    """One of four draws always has a quarter, and there is no Pareto k̂."""
    assert stopped_by(mixture(), 1, max_share=0.1) == set()
    assert stopped_by(mixture(), 4, max_share=0.01) == {"largest_share"}


def test_pareto_k_is_averaged_and_the_average_is_saved() -> None:
    """Single readings err; a run that goes on after a break reads at the same steps."""
    objective = SelfNormalised(draws=4, fit="fixed")
    tails = []
    for k, proposal in enumerate((mixture(), GaussianDistribution(scale=0.1))):
        parts = models(energy(), proposal)
        found = step(objective, parts, 1000, seed=k).by_level
        tails.append(float(found["pareto_k"][0]))
        for _ in range(EVERY - 1):
            assert "pareto_k" not in step(objective, parts, 4).by_level
    alone = float(
        step(SelfNormalised(draws=4, fit="fixed"), parts, 1000, seed=1).by_level["pareto_k"][0]
    )
    assert tails[1] == pytest.approx(tails[0] + AVERAGED * (alone - tails[0]), abs=0.02)
    again = SelfNormalised(draws=4, fit="fixed")
    again.load_state_dict(objective.state_dict())
    assert torch.equal(again.tail, objective.tail) and int(again.seen) == 2 * EVERY


def test_advice_fits_the_limit() -> None:
    advice = {limit.option: limit.advice for limit in SelfNormalised().limits(2)}
    assert advice.pop("max_error") == "lower ebm_lr, or raise draws or rate"
    assert set(advice.values()) == {"lower ebm_lr, raise draws, or choose a wider proposal"}


@pytest.mark.parametrize("option", [{"max_share": 0.0}, {"max_share": 1.0}, {"max_pareto_k": 0.0}])
def test_limits_out_of_range_are_refused(option: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(option))):
        SelfNormalised(**option)
