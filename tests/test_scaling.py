"""docs/scaling.md says what the counter says, and the model of several processes is arithmetic."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import two_processes
from runs import tiny
from scaling import HEADER, measured_row, of_preset, preset_rows, sample_rows, step_seconds
from two_processes import EXCHANGES, Measured, Spent, measure, run

from cdrl_infer.errors import CDRLError
from cdrl_infer.model import ImageShape
from cdrl_train.cost import Work

DOCS = Path(__file__).parents[1] / "docs" / "scaling.md"


@pytest.mark.parametrize("name", ["fashion-mnist"])
def test_the_page_has_the_numbers_of_the_counter(name: str) -> None:
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


def test_what_was_measured_stands_beside_what_is_predicted() -> None:
    found = Measured(
        processes=2,
        batch_size=32,
        exchanged=6_000_000,
        one=[0.9, 1.0, 9.0],
        several=[0.8, 0.6, 0.7],
        exchanges=[0.01, 0.02, 0.03],
    )
    assert found.bandwidth == pytest.approx(6e6 / 0.02)  # 2 (P - 1)/P = 1
    row = measured_row("a", found, Work(flops=10**11, moved=0, peak=0))
    assert len(row) == len(HEADER)
    assert row[:5] == ["a", "32", "100", "6.00", "300"]
    assert row[5:] == ["1,000", "700 (600 - 800)", "500 + 20.0", "1.43", "1.92"]


def job(**changes: Any) -> dict[str, Any]:
    image = {"channels": 1, "height": 8, "width": 8}
    config = tiny(**changes).to_dict()
    return {"config": config, "image": image, "num_classes": [3], "exchanged": 4_000, "steps": 2}


def test_two_processes_do_the_steps_of_a_job_together() -> None:
    found = run(job(), 2)
    assert len(found.steps) == 2 and len(found.exchanges) == EXCHANGES
    assert min(*found.steps, *found.exchanges) > 0


def test_a_process_that_fails_ends_the_measurement() -> None:
    with pytest.raises(CDRLError, match=r"code 1: .*batch_size must be a multiple of 3 \(1 proc"):
        run(job(accumulate=3), 1)


def test_one_process_and_two_are_measured_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def spent(given: dict[str, Any], processes: int) -> Spent:
        assert given == job()
        asked.append(processes)
        return Spent([float(len(asked))] * 2, [0.5] if processes > 1 else [])

    monkeypatch.setattr(two_processes, "run", spent)
    found = measure(tiny(), ImageShape(1, 8, 8), (3,), 4_000, steps=2, rounds=2)
    assert asked == [1, 2, 1, 2] and found.batch_size == 8
    assert found.one == [1, 1, 3, 3] and found.several == [2, 2, 4, 4]
    assert found.exchanges == [0.5, 0.5]
