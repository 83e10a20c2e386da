"""The detector: scikit-learn's own checks, and what they do not cover."""

from __future__ import annotations

import pickle
import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import CLASSES, make_model
from PIL import Image

pytest.importorskip("sklearn")

from sklearn.base import clone, is_outlier_detector
from sklearn.exceptions import NotFittedError
from sklearn.utils.estimator_checks import check_estimator

from cdrl_infer.errors import ConfigError, InputError
from cdrl_infer.model import CDRLModel, ImageShape
from cdrl_infer.networks.heads import InnerProductEnergy, ResidualInitializer
from cdrl_infer.networks.patch_unet import PatchUNet
from cdrl_infer.pipeline import CDRLPipeline
from cdrl_infer.schedule import NoiseSchedule
from cdrl_infer.scoring import SCORES, reference
from cdrl_infer.scoring import detector as module
from cdrl_infer.scoring.detector import CDRLDetector
from cdrl_infer.scoring.scorer import Scorer

CONTAMINATION = "number of predicted outliers is not equal to the expected"
EXPECTED = {  # scikit-learn's check: what it finds fault with
    # The threshold is set on the half of X that was not fitted to, so that it holds for new images.
    "check_outliers_train": CONTAMINATION,
    "check_outliers_fit_predict": CONTAMINATION,
    # Networks compute in float32: a batch of another size differs by rounding, the check allows 1e-7.
    "check_methods_subset_invariance": "not invariant when applied to a subset.*Mismatched",
    # joblib hashes a copy of a tensor to another number; that fit changes nothing is tested below.
    "check_estimators_overwrite_params": "should not change or mutate  the parameter pipe",
}


class AnyTable(CDRLDetector):
    """The detector, for the tables of any size and range that scikit-learn checks with."""

    def _unflatten(self, rows: np.ndarray, image: ImageShape) -> np.ndarray:
        repeated = np.resize(rows.T, (image.height * image.width, len(rows))).T
        squashed = 0.5 + 0.5 * repeated / (1 + np.abs(repeated))
        return squashed.reshape(-1, image.height, image.width, 1)


def tiny_pipe() -> CDRLPipeline:
    """One level and 4x4 pixels: for checks that fit a few dozen times."""
    sizes: dict[str, Any] = {"widths": (4,), "num_blocks": 1, "embedding_dim": 4}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        networks = (
            InnerProductEnergy(PatchUNet(**sizes)),
            ResidualInitializer(PatchUNet(**sizes)),
        )
        for network in networks:
            for parameter in network.parameters():
                if not parameter.any():
                    torch.nn.init.normal_(parameter, std=0.1)
    model = CDRLModel(*networks, schedule=NoiseSchedule(num_levels=1), image=ImageShape(1, 4, 4))
    return CDRLPipeline(model)


def rows(count: int, seed: int) -> np.ndarray:
    """Smooth 8x8 images in [0, 1], float64 (count, 64)."""
    random = np.random.default_rng(seed)
    base = random.uniform(0.2, 0.8, (count, 1)) + 0.02 * random.standard_normal((count, 64))
    return base.clip(0, 1)


@pytest.fixture(scope="module")
def tiny() -> CDRLPipeline:
    return CDRLPipeline(make_model(CLASSES), name="tiny")


@pytest.fixture(scope="module")
def fitted(tiny: CDRLPipeline) -> CDRLDetector:
    return CDRLDetector(tiny, contamination=0.05).fit(rows(300, 0))


def test_scikit_learns_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    for home in (module, reference):  # it checks with ten rows
        monkeypatch.setattr(home, "fewest_images", lambda num_levels: 8 * num_levels)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = check_estimator(
            AnyTable(tiny_pipe(), contamination=0.2), on_fail=None, on_skip=None
        )
    assert len(found) > 40
    failed = {c["check_name"]: str(c["exception"]) for c in found if c["status"] == "failed"}
    assert set(failed) == set(EXPECTED), failed
    for name, complaint in EXPECTED.items():
        assert re.search(complaint, failed[name], re.DOTALL), failed[name]
    skipped = {c["check_name"] for c in found if c["status"] == "skipped"}
    # without SCIPY_ARRAY_API and pandas
    assert skipped <= {"check_array_api_input", "check_classifier_data_not_an_array"}


def test_it_says_what_the_pipeline_says(tiny: CDRLPipeline, fitted: CDRLDetector) -> None:
    X = rows(40, 1)
    calibrated = fitted.scorer_.score(X.reshape(-1, 8, 8, 1), threshold_fpr=0.05)
    assert calibrated.anomalous is not None and tiny.model.statistics is None
    scores = fitted.score_samples(X)
    np.testing.assert_allclose(scores, -calibrated.scores.numpy())
    np.testing.assert_allclose(fitted.decision_function(X), scores - fitted.offset_)
    assert fitted.offset_ == -calibrated.threshold
    assert (fitted.predict(X) == np.where(calibrated.anomalous.numpy(), -1, 1)).all()
    assert is_outlier_detector(fitted)


def test_outliers_are_minus_one_and_others_seldom(fitted: CDRLDetector) -> None:
    noise = np.random.default_rng(2).uniform(0, 1, (50, 64))
    assert (fitted.predict(noise) == -1).all()
    assert fitted.score_samples(noise).max() < fitted.score_samples(rows(50, 3)).min()
    alarms = (fitted.predict(rows(400, 4)) == -1).mean()
    # of 150 reference and 400 new images, 3 standard deviations
    assert abs(alarms - 0.05) < 3 * (0.05 * 0.95 * (1 / 150 + 1 / 400)) ** 0.5


def test_the_half_that_was_not_fitted_sets_the_threshold(fitted: CDRLDetector) -> None:
    held_out = fitted.statistics_.scores("combined")
    assert len(held_out) == 150
    assert int((-held_out < fitted.offset_).sum()) == int(0.05 * 151) - 1


@pytest.mark.parametrize("name", sorted(SCORES))
def test_every_score(name: str, tiny: CDRLPipeline) -> None:
    detector = CDRLDetector(tiny, score_name=name).fit(rows(60, 0))
    found = detector.decision_function(rows(5, 1))
    assert found.shape == (5,) and np.isfinite(found).all()
    expected = detector.scorer_.score(rows(5, 1).reshape(-1, 8, 8, 1), name).scores
    np.testing.assert_allclose(detector.score_samples(rows(5, 1)), -expected.numpy())


def test_images_in_every_form(fitted: CDRLDetector) -> None:
    pixels = (rows(6, 5) * 255).round().astype(np.uint8)
    arrays = pixels.reshape(-1, 8, 8)
    expected = fitted.score_samples(pixels)
    for given in (
        pixels / 255,
        (pixels / 255).tolist(),
        arrays,
        arrays[..., None],
        arrays / np.float32(255),
        list(arrays),
        [Image.fromarray(a) for a in arrays],
        torch.from_numpy(arrays)[:, None],
        torch.from_numpy(pixels),
    ):
        np.testing.assert_allclose(fitted.score_samples(given), expected, rtol=1e-5)


def test_colours_lie_side_by_side_in_a_row() -> None:
    """Row k is ``images[k].ravel()`` of (H, W, C)."""
    pipe = CDRLPipeline(make_model(channels=3))
    images = np.random.default_rng(0).uniform(0, 1, (60, 8, 8, 3))
    detector = CDRLDetector(pipe).fit(images)
    assert detector.n_features_in_ == 192
    again = CDRLDetector(pipe).fit(images.reshape(60, -1))
    assert again.offset_ == detector.offset_
    np.testing.assert_array_equal(
        detector.score_samples(images), again.score_samples(images.reshape(60, -1))
    )


def test_clone_and_pickle(fitted: CDRLDetector) -> None:
    X = rows(8, 6)
    stored = pickle.loads(pickle.dumps(fitted))
    np.testing.assert_array_equal(stored.predict(X), fitted.predict(X))
    np.testing.assert_allclose(stored.score_samples(X), fitted.score_samples(X))
    fresh = clone(fitted)
    assert fresh.get_params().keys() == {
        "pipe",
        "score_name",
        "contamination",
        "seed",
        "precision",
        "batch_size",
    }
    assert fresh.contamination == 0.05 and fresh.pipe is not fitted.pipe
    with pytest.raises(NotFittedError):
        fresh.score_samples(X)
    np.testing.assert_allclose(
        fresh.fit(rows(300, 0)).score_samples(X), fitted.score_samples(X), rtol=1e-6
    )


def test_fitting_leaves_the_pipeline_alone(tiny: CDRLPipeline) -> None:
    model, statistics = tiny.model, tiny.model.statistics
    weights = {k: v.clone() for k, v in model.ebm.state_dict().items()}
    detector = CDRLDetector(tiny).fit(rows(60, 0))
    same = CDRLDetector(Scorer(model)).fit(rows(60, 0))  # which needs no pipeline
    assert same.offset_ == detector.offset_
    assert detector.pipe is tiny and tiny.model is model and model.statistics is statistics
    assert detector.scorer_.model.ebm is model.ebm
    assert all(torch.equal(v, weights[k]) for k, v in model.ebm.state_dict().items())


def test_networks_that_change_after_fit_are_refused() -> None:
    """They are the pipeline's."""
    pipe = CDRLPipeline(make_model(CLASSES))
    detector = CDRLDetector(pipe).fit(rows(60, 0))
    detector.predict(rows(4, 1))
    pipe.model.ebm.load_state_dict(make_model(CLASSES, seed=1).ebm.state_dict())
    for ask in (detector.predict, detector.score_samples, detector.decision_function):
        with pytest.raises(ConfigError, match="since the detector was fitted; fit it again"):
            ask(rows(4, 1))
    detector.fit(rows(60, 0)).predict(rows(4, 1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"score_name": "energies"}, "score_name must be one of .*did you mean 'energy'"),
        ({"contamination": 0.0}, r"must lie in \(0, 0.5\], got 0"),
        ({"contamination": 0.6}, r"must lie in \(0, 0.5\], got 0.6"),
        ({"contamination": "auto"}, "must be a finite number, got 'auto'"),
        ({"contamination": 0.01}, r"must be at least 0.032 .*got 0.01; calibrate with more"),
        ({"seed": -1}, "a seed must be"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"pipe": "fashion-mnist"}, "expected a CDRLPipeline or a Scorer, got 'fashion-mnist'"),
    ],
)
def test_parameters_are_checked_before_any_work(
    options: dict[str, Any],
    message: str,
    tiny: CDRLPipeline,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "measure", lambda *_, **__: pytest.fail("work was done"))
    with pytest.raises(InputError, match=message):
        CDRLDetector(**{"pipe": tiny, **options}).fit(rows(60, 0))


@pytest.mark.parametrize(
    ("X", "message"),
    [
        (np.zeros((60, 63)), r"rows of 64 values, the pixels of 8 x 8 x 1 .*got 63"),
        (np.zeros((60, 9, 8)), r"1 channels, 8 x 8, got shape \(60, 9, 8, 1\)"),
        (rows(60, 0) * 255, r"finite values in \[0, 1\]"),
        ((rows(60, 0) * 255).astype(np.int64), r"finite values in \[0, 1\]"),
        (np.full((60, 64), np.nan), "NaN"),
        (np.full((60, 8, 8), np.nan), r"finite values in \[0, 1\]"),
        (rows(35, 0), r"minimum of 36 is required"),
        (rows(35, 0).reshape(-1, 8, 8), "needs at least 36 images, got 35"),
        (np.zeros((60, 64)), "not positive definite"),
        (np.zeros((0, 64)), "0 sample"),
        (np.zeros((0, 8, 8)), "at least one image"),
        ([], "empty|1D|Expected 2D"),
    ],
)
def test_images_are_checked(X: Any, message: str, tiny: CDRLPipeline) -> None:
    detector = CDRLDetector(tiny)
    with pytest.raises(ValueError, match=message):
        detector.fit(X)
    with pytest.raises(NotFittedError):
        detector.predict(rows(2, 0))


def test_what_is_scored_is_checked(fitted: CDRLDetector) -> None:
    with pytest.raises(ValueError, match=r"X has 63 features.*expecting 64"):
        fitted.predict(np.zeros((3, 63)))
    with pytest.raises(InputError, match="1 channels, 8 x 8"):
        fitted.predict(np.zeros((3, 8, 9)))
    with pytest.raises(InputError, match=r"finite values in \[0, 1\]"):
        fitted.predict(np.full((3, 64), 1.5))


def test_metrics_of_pytorch_ood_take_its_scores(fitted: CDRLDetector) -> None:
    """They want more = more anomalous, and labels below 0 for what is outside."""
    metrics = pytest.importorskip("pytorch_ood.metrics")
    inside, outside = rows(40, 7), np.random.default_rng(8).uniform(0, 1, (30, 64))
    scores = torch.from_numpy(-fitted.score_samples(np.concatenate([inside, outside])))
    labels = torch.cat([torch.zeros(40), -torch.ones(30)]).long()
    found = metrics.AUROC().update(scores, labels).compute()
    assert found["AUROC"] == pytest.approx(1)
    assert metrics.AUROC().update(-scores, labels).compute()["AUROC"] == pytest.approx(0)


def test_scikit_learn_is_asked_for_only_when_needed() -> None:
    code = """
import sys
sys.modules["sklearn"] = None
import cdrl_infer
from cdrl_infer import *
try:
    from cdrl_infer import CDRLDetector
except cdrl_infer.InputError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "CDRLDetector needs scikit-learn: pip install 'cdrl[score]'\n"
