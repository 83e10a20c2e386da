"""A whole run of the benchmark of out-of-distribution scores, on a tiny model."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import ood
import ood_autoencoder
import ood_scores
import pytest
import torch
from click.testing import CliRunner
from conftest import make_mpdr
from numpy.typing import NDArray
from test_ood_baselines import RECIPE, SIDE, bright_images, rng, slow_clock

from cdrl_infer.errors import InputError
from cdrl_infer.model import CDRLModel
from cdrl_infer.pipeline import CDRLPipeline
from cdrl_infer.scoring import SCORES
from cdrl_infer.scoring.calibration import calibrate
from cdrl_infer.scoring.features import NoisedImages
from cdrl_infer.scoring.reference import STATISTICS
from cdrl_infer.storage.folder import save_model
from cdrl_train.calibrate import choose
from cdrl_train.data.image_set import ImageSet
from cdrl_train.data.sources import load_images


class Measured(Exception):
    """Raised in place of measuring."""


@pytest.fixture
def train() -> ImageSet:
    return bright_images()


@pytest.fixture
def data(train: ImageSet, tmp_path: Path) -> str:
    """The training images, and 44 test images of the same kind."""
    arrays: dict[str, NDArray[Any]] = {}
    for split, some in (("train", slice(48)), ("test", slice(44))):
        assert train.labels is not None
        arrays[f"{split}_images"] = train.images[some, 0].numpy()
        arrays[f"{split}_labels"] = train.labels[some, 0].numpy()
    arrays["test_images"] = arrays["test_images"] + np.uint8(1)
    np.savez(tmp_path / "tiny.npz", **arrays)
    return str(tmp_path / "tiny.npz")


@pytest.fixture
def calibrated_folder(model: CDRLModel, train: ImageSet, tmp_path: Path) -> Path:
    """With statistics of training images."""
    images = choose(train.images, None, 3)
    statistics = calibrate(model, images, data="tiny", seed=3, progress=False)
    model = dataclasses.replace(model, statistics=statistics, training={"hours": 0.2 / 3600})
    save_model(model, tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def options(calibrated_folder: Path, data: str, tmp_path: Path) -> dict[str, Any]:
    images = rng().integers(0, 256, (30, SIDE, SIDE), dtype=np.uint8)
    np.savez(tmp_path / "mnist.npz", test_images=images)
    return {
        "model": str(calibrated_folder),
        "data": data,
        "sources": [f"mnist={tmp_path / 'mnist.npz'}"],
        "beside": [],
        "count": 22,
        "seed": 3,
        "bootstrap": 40,
        "reference_images": None,
        "autoencoder_minutes": None,
        "map_images": 5,
        "batch_size": 16,
        "device": "cpu",
        "cache": tmp_path / "cache",
        "recipe": RECIPE,
    }


def test_everything_is_measured_and_found_again(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("sklearn")
    slow_clock(monkeypatch)
    text, more, results = ood.evaluate(**options)
    json.dumps(results, allow_nan=False)
    found = {row["name"]: row for row in results["detectors"]}
    assert set(SCORES) < set(found)
    assert list(found)[len(SCORES) : len(SCORES) + 6] == [
        *("compressed size", "pixel Gaussian", "PCA residual", "autoencoder"),
        *("classifier softmax", "classifier energy"),
    ]
    for name in ("combined", "compressed size", "pixel Gaussian", "PCA residual", "autoencoder"):
        for noise in ("uniform", "mnist"):  # which here is noise too
            figures = found[name]["sets"][noise]
            assert figures["AUROC"]["value"] > 0.9, name
            assert figures["AUROC"]["low"] <= figures["AUROC"]["value"] <= figures["AUROC"]["high"]
    assert found["compressed size"]["sets"]["constant"]["AUROC"]["value"] < 0.5
    additional = {row["name"]: row["additional"] for row in results["sets"]}
    assert additional["blended"] is additional["mnist"] is False and additional["patched"] is True
    second_half = load_images(options["data"], "test").images[22:44].numpy()
    sha = {row["name"]: row["sha256"] for row in results["sets"]}
    assert sha["inverted"] == hashlib.sha256((255 - second_half).tobytes()).hexdigest()[:16]
    named = [name for name in additional if not additional[name]]
    mean = np.mean([found["combined"]["sets"][name]["AUROC"]["value"] for name in named])
    assert found["combined"]["mean_auroc"]["value"] == pytest.approx(mean)
    assert "patched +" in text and "Not given: notmnist (--outside)" in text
    assert "48 training images, seed 3 (those stored with the model are the same)" in text
    assert "| AUPR " in more and "| FPR95 " in more
    assert "NOT AN EQUAL TIME" not in text
    kept = sorted(file.name for file in options["cache"].iterdir())

    def never(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("it is on the disk")

    (Path(options["model"]) / STATISTICS).unlink()  # it makes its own
    monkeypatch.setattr(NoisedImages, "of", never)
    monkeypatch.setattr(ood_autoencoder, "_step", never)
    monkeypatch.setattr(CDRLPipeline, "score", never)
    again, *others = ood.evaluate(**options)
    assert (
        "none are stored with the model" in again
        and again.splitlines()[2:] == text.splitlines()[2:]
    )
    assert others[0] == more and others[1]["detectors"] == results["detectors"]
    assert sorted(file.name for file in options["cache"].iterdir()) == kept


def test_a_second_model_and_both_together(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its rows are those of the pipeline's scores; together is -log p - log q of both p-values."""
    pytest.importorskip("sklearn")
    slow_clock(monkeypatch)
    save_model(make_mpdr(), tmp_path / "second")
    scored: dict[str, Any] = {}

    def watch(detectors: Any, inside: Any, *_: Any) -> Any:
        scored.update({d.name: d.score(inside) for d in detectors}, inside=inside)
        raise Measured

    monkeypatch.setattr(ood, "measure", watch)
    with pytest.raises(Measured):
        ood.evaluate(**{**options, "beside": [f"mpdr={tmp_path / 'second'}"]})
    data = load_images(options["data"], "train").images
    first = CDRLPipeline.from_pretrained(options["model"])
    second = CDRLPipeline.from_pretrained(tmp_path / "second")
    images = torch.from_numpy(scored["inside"])
    for pipe in (first, second):
        pipe.calibrate(choose(data, None, 3), seed=3, progress=False)
    ours, theirs = first.score(images, progress=False), second.score(images, progress=False)
    assert scored["mpdr energy"] == pytest.approx(theirs.scores.numpy(), rel=1e-4)
    u = images / 127.5 - 1
    error = (u - second.model.initializer.reconstruct(u)).square().flatten(1).sum(1)
    assert scored["mpdr reconstruction"] == pytest.approx(error.numpy(), rel=1e-4)
    assert ours.p_values is not None and theirs.p_values is not None
    expected = -(ours.p_values * theirs.p_values).log().numpy()
    assert scored["combined and mpdr"] == pytest.approx(expected, abs=1e-3)


def test_scores_are_those_of_the_pipeline(calibrated_folder: Path, train: ImageSet) -> None:
    pipe = CDRLPipeline.from_pretrained(calibrated_folder)
    assert pipe.model.statistics is not None
    rows = ood_scores.ModelScores(pipe, pipe.model.statistics, "", 5)(train.images[:7].numpy())
    for k, name in enumerate(SCORES):
        expected = pipe.score(train.images[:7], name, progress=False).scores.numpy()
        assert rows[:, k] == pytest.approx(expected, rel=1e-4, abs=1e-4), (
            name
        )  # combined-energy may be near 0
    assert (rows[:, -1] > 0).all()


def test_false_alarms_are_counted(calibrated_folder: Path) -> None:
    statistics = CDRLPipeline.from_pretrained(calibrated_folder).model.statistics
    assert statistics is not None
    rows = np.stack([statistics.scores(name).numpy() for name in SCORES], axis=1)
    assert all(share == 0 for share, _ in ood_scores.false_alarms(rows, statistics).values())
    rows[-6:, 0] = rows[-1, 0] + 1
    alarms = ood_scores.false_alarms(rows, statistics)
    assert alarms["combined"][0] == 6 / 24 and alarms["energy"][0] == 0
    assert alarms["combined"][1] == pytest.approx((0.05 * 0.95 * 2 / 24) ** 0.5)


def test_statistics_that_are_stored_may_be_others(calibrated_folder: Path, train: ImageSet) -> None:
    pipe = CDRLPipeline.from_pretrained(calibrated_folder)
    used = pipe.model.statistics
    assert used is not None
    near = dataclasses.replace(used, mean=used.mean * (1 + 1e-6))
    assert ood_scores.stored_ones(near, used) == "those stored with the model are the same"
    for images, seed in ((train.images, 4), (train.images.flip(-1), 3)):
        others = calibrate(pipe.model, images, data="tiny", seed=seed, progress=False)
        assert ood_scores.stored_ones(others, used) == "those stored with the model are others"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--out", "missing/out.json"], "--out missing"),
        (["--markdown", "missing/out.md"], "--markdown missing"),
        (["--autoencoder-minutes", "0"], "--autoencoder-minutes"),
        (["--n", "23"], "--n must be at most 22"),
        (["--n", "22", "--outside", "mnist"], "must be NAME=DATA"),
        (["--beside", "second"], "--beside must be NAME=FOLDER, got 'second'"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str], expected: str, options: dict[str, Any]
) -> None:
    pytest.importorskip("sklearn")
    asked = ["--model", options["model"], "--data", options["data"], *arguments]
    result = CliRunner().invoke(ood.main, asked)
    assert result.exit_code == 2 and expected in result.output
    assert result.output.startswith("ood.py: error: ") and result.output.count("\n") == 1
    assert not options["cache"].exists()


def test_what_is_missing_is_said_before_any_work(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "sklearn", None)
        with pytest.raises(InputError, match=r"pip install 'cdrl\[eval\]'"):
            ood.evaluate(**options)
    pytest.importorskip("sklearn")
    with pytest.raises(InputError, match="expected at most 48 images"):
        ood.evaluate(**{**options, "reference_images": 49})
    timeless = CDRLPipeline.from_pretrained(options["model"]).model
    save_model(dataclasses.replace(timeless, training={}), tmp_path / "timeless")
    with pytest.raises(InputError, match="--autoencoder-minutes is needed"):
        ood.evaluate(**{**options, "model": str(tmp_path / "timeless")})
    assert not options["cache"].exists()
