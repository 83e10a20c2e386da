"""benchmarks/peers.py anomalies: every detector's time and AUROC, in one table, on a tiny scale."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import peers
import peers_anomalies
import pytest
from classifier import Recipe
from click.testing import CliRunner
from conftest import make_model
from subject import Subject

from cdrl_infer.storage.folder import save_model


def test_a_detector_has_the_precision_that_it_is_named_after(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (160, 1, 8, 8), dtype=np.uint8)
    arrays = {f"{split}_images": images[:, 0] for split in ("train", "test")}
    np.savez(tmp_path / "data.npz", **arrays)
    save_model(make_model(), tmp_path / "model")
    data = str(tmp_path / "data.npz")
    subject = Subject.load(str(tmp_path / "model"), data, "cpu", labels=False)
    detectors = peers_anomalies.own_detectors(subject, subject.train.images, "data", 64, tmp_path)
    scores = {each.name: each.score(images[:9]) for each in detectors}
    for score in ("combined", "combined-half"):
        full, low = scores[f"{score}, float32"], scores[f"{score}, bfloat16"]
        assert not np.array_equal(full, low)
        np.testing.assert_allclose(full, low, rtol=0.1, atol=0.1)


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    splits = {"train": 160, "test": 80}
    arrays = {}
    for split, count in splits.items():
        labels = np.arange(count, dtype=np.uint8) % 3
        noise = rng.integers(0, 60, (count, 8, 8), dtype=np.uint8)
        arrays[f"{split}_images"] = noise + 60 * labels[:, None, None]
        arrays[f"{split}_labels"] = labels
    np.savez(tmp_path / "data.npz", **arrays)
    save_model(make_model(), tmp_path / "model")
    evaluate, recipe = peers_anomalies.evaluate, Recipe(widths=(4,), epochs=1, batch_size=8)
    monkeypatch.setattr(peers_anomalies, "evaluate", lambda *a: evaluate(*a, recipe=recipe))
    call = ["anomalies", "--model", str(tmp_path / "model"), "--data", str(tmp_path / "data.npz")]
    call += ["--n", "30", "--reference-images", "150", "--autoencoder-minutes", "0.005"]
    call += [
        "--autoencoder-scale",
        "1",
        "--autoencoder-scale",
        "3",
        "--timed",
        "4",
        "--rounds",
        "2",
    ]
    call += ["--cache", str(tmp_path / "cache"), "--out", str(tmp_path / "found.json")]
    result = CliRunner().invoke(peers.main, call)
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "found.json").read_text())
    names = [f"{score}, {precision}" for score, precision in peers_anomalies.OURS]
    names += ["autoencoder, 1 x the size", "autoencoder, 3 x the size", "classifier energy"]
    assert [*found["milliseconds"]][: len(names)] == names
    assert found["auroc"].keys() == found["milliseconds"].keys()
    for name, times in found["milliseconds"].items():
        assert len(times) == 2 and min(times) > 0 and name in result.stdout
    assert {"constant", "joined", "turned"} <= found["auroc"]["combined, float32"].keys()
    many = CliRunner().invoke(peers.main, [*call, "--n", "41"])
    assert many.exit_code == 2 and "--n must be at most 40" in many.stderr
