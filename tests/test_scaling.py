"""docs/scaling.md says what the counter says, and the model of several processes is arithmetic."""

from __future__ import annotations

from pathlib import Path

import pytest
from scaling import of_preset, preset_rows, sample_rows, step_seconds

from cdrl_train.cost import Work

DOCS = Path(__file__).parents[1] / "docs" / "scaling.md"


@pytest.mark.parametrize("name", ["fashion-mnist"])
def test_the_page_has_the_figures_of_the_counter(name: str) -> None:
    page = DOCS.read_text(encoding="utf-8")
    found = [[cell.strip() for cell in line.strip("| ").split("|")] for line in page.splitlines()]
    costs = {name: of_preset(name)}
    for row in (*preset_rows(costs), *sample_rows(costs)):
        assert row in found, row


def test_the_time_of_a_step_on_several_processes() -> None:
    work = Work(flops=8_000, moved=0, peak=0)
    one = step_seconds(work, exchanged=600, processes=1, rate=100.0, bandwidth=30.0)
    assert one == (80.0, 0.0)
    four = step_seconds(work, exchanged=600, processes=4, rate=100.0, bandwidth=30.0)
    assert four == pytest.approx((20.0, 2 * 3 / 4 * 600 / 30))
