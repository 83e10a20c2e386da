"""What the tests of `cdrl-score` share: a calibrated model, pictures, and the command."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

from cdrl_infer.cli.score import main
from cdrl_infer.pipeline import CDRLPipeline
from cdrl_infer.scoring.calibration import calibrate
from cdrl_infer.scoring.scorer import Scorer
from cdrl_infer.storage.folder import load_model, save_model


def pixels(count: int, seed: int) -> np.ndarray:
    """(N, 8, 8) uint8: what the tiny model is calibrated with."""
    return np.random.default_rng(seed).integers(100, 160, (count, 8, 8), dtype=np.uint8)


@pytest.fixture(scope="module")
def calibrated(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = load_model(folder)
    images = torch.from_numpy(pixels(80, 1))[:, None]
    found = calibrate(model, images, data="greys", seed=4, progress=False)
    path = tmp_path_factory.mktemp("calibrated") / "tiny"
    save_model(dataclasses.replace(model, statistics=found), path)
    return path


@pytest.fixture(scope="module")
def scorer(calibrated: Path) -> CDRLPipeline:
    return CDRLPipeline.from_pretrained(calibrated)


@pytest.fixture
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Image.Image]:
    """Six greys and a white one, in images/, where the command then runs."""
    monkeypatch.chdir(tmp_path)
    Path("images").mkdir()
    made = [Image.fromarray(image) for image in [*pixels(6, 2), np.full((8, 8), 255, np.uint8)]]
    for k, image in enumerate(made):
        image.save(f"images/{k}.png")
    return made


@pytest.fixture
def score(calibrated: Path, pictures: list[Image.Image]) -> Any:
    def run(*arguments: str) -> Result:
        return CliRunner().invoke(main, ["--model", str(calibrated), *arguments])

    return run


@pytest.fixture
def idle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Scorer, "scored", lambda *a, **k: pytest.fail("worked"))
