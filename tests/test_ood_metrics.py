"""AUROC, AUPR and FPR95, and their resamplings, on closed cases."""

from __future__ import annotations

import numpy as np
import pytest

from cdrl_infer.errors import NumericalError
from cdrl_train.evaluation.ood_metrics import (
    interval,
    pixel_auroc,
    resampled_separation,
    resamplings,
    separation,
)


def test_higher_is_more_anomalous() -> None:
    pytest.importorskip("sklearn")
    low, high = np.arange(100.0), np.arange(100.0) + 200
    assert separation(low, high).tolist() == [1, 1, 0]
    auroc, aupr, fpr = separation(high, low)
    assert auroc == 0 and aupr < 0.35 and fpr == 1


def test_a_case_counted_by_hand() -> None:
    pytest.importorskip("sklearn")
    inside = np.arange(20.0)  # 95 % of them, 19, are at most 18
    outside = np.array([18.5, 19.5, 18.0, -1.0])
    auroc, aupr, fpr = separation(inside, outside)
    assert auroc == pytest.approx((19 + 20 + 18.5 + 0) / 80)
    assert fpr == 0.5
    # Falling: 19.5 out · 19 in · 18.5 out · 18 both · … · -1 out
    assert aupr == pytest.approx((1 + 2 / 3 + 3 / 5 + 4 / 24) / 4)


@pytest.mark.parametrize("ties", [True, False])
def test_resamplings_have_the_values_of_the_images_drawn(ties: bool) -> None:
    pytest.importorskip("sklearn")
    a, b = np.random.default_rng(0).normal(0, 1, 60), np.random.default_rng(0).normal(0.5, 2, 40)
    if ties:
        a, b = a.round(), b.round()
    draws = [resamplings(n, 6, np.random.default_rng(0)) for n in (60, 40)]
    assert (draws[0].sum(1) == 60).all() and draws[0].max() > 1
    found = resampled_separation(a, b, *draws)
    for row, ours, others in zip(found, *draws, strict=True):
        expected = separation(a.repeat(ours), b.repeat(others))
        assert row == pytest.approx(expected, abs=1e-12)


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """AUROC of two unit Gaussians 1 apart is Φ(1/√2) = 0.7602."""
    generator, hits, repeats = np.random.default_rng(0), 0, 300
    draws = resamplings(80, 200, generator)
    for _ in range(repeats):
        a, b = generator.normal(0, 1, 80), generator.normal(1, 1, 80)
        found = resampled_separation(a, b, draws, draws[::-1])[:, 0]
        between = interval(0.0, found)
        hits += between.low <= 0.7602 <= between.high
    assert 0.90 <= hits / repeats <= 0.98


def test_scores_that_are_no_numbers() -> None:
    pytest.importorskip("sklearn")
    with pytest.raises(NumericalError, match="expected finite scores"):
        separation(np.array([0.0, np.nan]), np.array([1.0]))


def test_maps_are_judged_image_by_image() -> None:
    pytest.importorskip("sklearn")
    masks = np.zeros((2, 2, 2), bool)
    masks[0, 0, 0] = masks[1, 1] = True
    maps = np.array([[[9.0, 1], [2, 3]], [[100, 5], [7, 4]]])
    assert pixel_auroc(maps, masks).tolist() == [1, 0.25]
