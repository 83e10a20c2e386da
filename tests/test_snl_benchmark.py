"""The comparison of objectives in the plane measures what it says."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import snl
import torch
from click.testing import CliRunner

from cdrl_infer.model import CDRLModel, ImageShape
from cdrl_infer.networks.distributions import GaussianDistribution
from cdrl_infer.networks.tilted import TiltedEnergy
from cdrl_infer.schedule import Level

SPREAD = 0.4


def gaussian(scale: float = SPREAD, log_z: float = 0.0) -> CDRLModel:
    """``exp(-E) = Z N(0, scale²)``."""
    ebm = TiltedEnergy(GaussianDistribution(scale=scale), width=8)
    with torch.no_grad():
        ebm.log_normaliser.fill_(-log_z)
    return CDRLModel(ebm, None, snl.ONE_LEVEL, ImageShape(1, 1, 2))


def masses(scale: float) -> torch.Tensor:
    log_p = -0.5 * (snl.grid() / scale).square().flatten(1).sum(1).double()
    return log_p.softmax(0).reshape(snl.CELLS, snl.CELLS)


def test_a_model_is_compared_with_the_truth_in_nats() -> None:
    found = snl.compare(gaussian(log_z=0.7), masses(SPREAD))
    entropy = 1 + math.log(2 * math.pi * SPREAD**2)
    assert found.log_likelihood == pytest.approx(-entropy, abs=1e-3)
    assert found.divergence == pytest.approx(0, abs=1e-4)
    assert found.variation == pytest.approx(0, abs=1e-4)
    assert found.log_z == pytest.approx(0.7, abs=1e-3)
    other = snl.compare(gaussian(1.5 * SPREAD), masses(SPREAD))
    assert other.divergence == pytest.approx(math.log(2.25) + 1 / 2.25 - 1, abs=1e-3)


def test_the_truth_is_the_data_with_the_noise_of_the_level(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its second moments are those of the data plus σ̄²; the checkerboard's law is known."""
    monkeypatch.setattr(snl, "DRAWS", 200_000)
    level: Level = snl.ONE_LEVEL.level(1)
    truth = snl.true_masses("checkerboard", level).flatten()
    square = snl.grid().flatten(1).double().square()
    expected = float(level.alpha**2 / 3 + level.sigma_bar**2)
    assert (truth[:, None] * square).sum(0).tolist() == pytest.approx([expected] * 2, rel=5e-3)


def test_all_objectives_have_the_same_cost() -> None:
    for label, method in snl.METHODS.items():
        phases = method.phases(200_000)
        assert sum(phase.steps for phase in phases) > 90, label


def test_it_prints_a_row_for_each_objective_and_keeps_its_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snl, "DRAWS", 20_000)
    options = ["--data", "clusters", "--evaluations", "4000", "--seeds", "1"]
    options += ["--results", str(tmp_path / "results.jsonl")]
    result = CliRunner().invoke(snl.main, options)
    assert result.exit_code == 0, result.output
    names = [line.split("|")[2].strip() for line in result.stdout.splitlines()[2:]]
    assert names == [*snl.METHODS]
    monkeypatch.setattr(snl, "train", None)  # nothing is left to train
    assert CliRunner().invoke(snl.main, options).stdout == result.stdout
