"""The benchmark of out-of-distribution scores: its sets, figures and baselines on closed cases, a run."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import ood
import ood_autoencoder
import ood_sets
import pytest
import torch
from classifier import Recipe, last_features, train_classifier
from click.testing import CliRunner
from numpy.typing import NDArray
from ood_autoencoder import (
    AutoencoderRecipe,
    autoencoder_of,
    count_values,
    load_or_train_autoencoder,
)
from ood_baselines import (
    ClassifierOutputs,
    PixelGaussian,
    energy_score,
    pytorch_ood_detectors,
    softmax_score,
)
from quality import model_digest

from cdrl_infer.errors import InputError, NumericalError
from cdrl_infer.model import Attribute, CDRLModel
from cdrl_infer.pipeline import CDRLPipeline
from cdrl_infer.scoring import SCORES
from cdrl_infer.scoring.features import NoisedImages
from cdrl_infer.scoring.reference import STATISTICS
from cdrl_infer.storage.folder import save_model
from cdrl_train.calibrate import calibrate, choose
from cdrl_train.data.image_set import ImageSet
from cdrl_train.data.sources import load_images
from cdrl_train.evaluation import ood_metrics

RECIPE = Recipe(widths=(4,), epochs=1, batch_size=8)
SIDE, CLASSES = 8, 3


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def smooth_images(count: int, seed: int = 0, channels: int = 1) -> NDArray[np.uint8]:
    """(N, C, 8, 8) upright ramps of random slope: few directions hold them."""
    slopes = np.random.default_rng(seed).uniform(5, 25, (count, channels, 1, 1))
    return np.broadcast_to(slopes * np.arange(SIDE), (count, channels, SIDE, SIDE)).astype(np.uint8)


@pytest.fixture
def train() -> ImageSet:
    """48 images, brighter with the class."""
    labels = torch.arange(48) % CLASSES
    images = torch.from_numpy(smooth_images(48).copy() // 3) + (
        50 * labels[:, None, None, None]
    ).to(torch.uint8)
    return ImageSet(images, labels[:, None], (Attribute("class", tuple("012")),))


# The sets


@pytest.mark.parametrize("channels", [1, 3])
def test_every_set_is_made_alone_and_again_of_the_same_images(channels: int) -> None:
    base = smooth_images(6, channels=channels)
    sets = ood_sets.make_sets(base, 0)
    assert [s.name for s in sets] == list(ood_sets.MADE)
    for other in sets:
        assert other.images.shape == base.shape and other.images.dtype == np.uint8
        make, _ = ood_sets.MADE[other.name]
        assert (make(base, ood_sets.generator(0, other.name)) == other.images).all()
    assert (base == smooth_images(6, channels=channels)).all()
    assert (ood_sets.make_sets(base, 1)[0].images != sets[0].images).any()


def test_what_the_sets_are() -> None:
    base = rng().integers(0, 256, (40, 1, SIDE, SIDE), dtype=np.uint8)
    made = {s.name: s.images for s in ood_sets.make_sets(base, 0)}
    assert len(np.unique(made["constant"].reshape(40, -1), axis=1)) == 40
    assert len({int(image[0, 0, 0]) for image in made["constant"]}) == 40
    assert (np.sort(made["shuffled"].reshape(40, -1)) == np.sort(base.reshape(40, -1))).all()
    twins = ood_sets.shuffled(np.stack([base[0], base[0]]), rng())
    assert (twins[0] == twins[1]).all() and (twins[0] != base[0]).any()
    halves = np.abs(made["blended"] - (base[3] / 2.0 + base[2] / 2.0)).reshape(40, -1).max(1)
    assert np.flatnonzero(halves <= 0.5).tolist() == [3]
    assert made["blurred"][0, 0, 5, 4] == round(base[0, 0, 5, 2:7].mean())
    assert made["blurred"][0, 0, 5, 0] == round(
        (3.0 * base[0, 0, 5, 0] + base[0, 0, 5, 1:3].sum()) / 5
    )
    assert (made["flipped"][:, :, 0] == base[:, :, -1]).all()
    assert (made["inverted"].astype(int) + base == 255).all()
    assert np.abs(made["faded"] - base / 2).max() <= 0.5
    grey = np.full((99, 1, SIDE, SIDE), 128, np.uint8)
    assert ood_sets.noisy(grey, rng()).std() == pytest.approx(ood_sets.NOISE, rel=0.05)
    assert (made["striped"] == made["striped"][:, :, :1]).all() and np.ptp(made["striped"]) > 200


def test_more_constants_than_grey_levels() -> None:
    found = ood_sets.constant(np.zeros((300, 1, 2, 2), np.uint8), rng())
    assert sorted(found[:, 0, 0, 0].tolist()) == list(range(256))


def test_patches_are_where_the_masks_say_and_show() -> None:
    base = np.zeros((30, 1, SIDE, SIDE), np.uint8)
    base[:, :, 4:, 4:] = np.arange(100, 250, 5)[:, None, None, None]
    images, masks = ood_sets.pasted(base, rng())
    assert (masks.sum((1, 2)) == 16).all()
    for k, (image, mask) in enumerate(zip(images[:, 0], masks, strict=True)):
        assert (image[~mask] == base[k, 0][~mask]).all()
        piece = base[(k + 1) % 30, 0, 2:6, 2:6]
        assert (image[mask] == piece.ravel()).all()
        assert np.abs(image[mask].astype(float) - base[k, 0][mask]).mean() >= ood_sets.VISIBLE
    assert len({tuple(np.argwhere(mask)[0]) for mask in masks}) > 5


def test_sets_of_others(tmp_path: Path) -> None:
    images = rng().integers(0, 256, (20, SIDE, SIDE), dtype=np.uint8)
    np.savez(tmp_path / "letters.npz", test_images=images)
    source = f"letters={tmp_path / 'letters.npz'}"
    (letters,) = ood_sets.read_sets([source], (1, SIDE, SIDE), 12, 0)
    assert (
        letters.name == "letters" and letters.named and letters.images.shape == (12, 1, SIDE, SIDE)
    )
    rows = {row.tobytes() for row in images}
    assert len({image[0].tobytes() for image in letters.images} & rows) == 12
    for sources, expected in (
        (["letters"], "must be NAME=DATA"),
        (["=x.npz"], "must be NAME=DATA"),
        (["constant=x.npz"], "two sets of the name 'constant'"),
        ([source, source], "two sets of the name 'letters'"),
        (["a=nowhere.npz"], "no data at 'nowhere.npz'"),
    ):
        with pytest.raises(InputError, match=expected):
            ood_sets.read_sets(sources, (1, SIDE, SIDE), 12, 0)
    with pytest.raises(InputError, match=r"expected images \(3, 8, 8\).*got \(1, 8, 8\)"):
        ood_sets.read_sets([source], (3, SIDE, SIDE), 12, 0)


# The figures


def test_higher_is_more_anomalous() -> None:
    pytest.importorskip("sklearn")
    low, high = np.arange(100.0), np.arange(100.0) + 200
    assert ood_metrics.separation(low, high).tolist() == [1, 1, 0]
    auroc, aupr, fpr = ood_metrics.separation(high, low)
    assert auroc == 0 and aupr < 0.35 and fpr == 1


def test_figures_of_a_case_counted_by_hand() -> None:
    pytest.importorskip("sklearn")
    inside = np.arange(20.0)  # 95 % of them, 19, are at most 18
    outside = np.array([18.5, 19.5, 18.0, -1.0])
    auroc, aupr, fpr = ood_metrics.separation(inside, outside)
    assert auroc == pytest.approx((19 + 20 + 18.5 + 0) / 80)
    assert fpr == 0.5
    # Falling: 19.5 out · 19 in · 18.5 out · 18 both · … · -1 out
    assert aupr == pytest.approx((1 + 2 / 3 + 3 / 5 + 4 / 24) / 4)


@pytest.mark.parametrize("ties", [True, False])
def test_resamplings_have_the_figures_of_the_images_drawn(ties: bool) -> None:
    pytest.importorskip("sklearn")
    a, b = rng().normal(0, 1, 60), rng().normal(0.5, 2, 40)
    if ties:
        a, b = a.round(), b.round()
    draws = [ood_metrics.resamplings(n, 6, rng()) for n in (60, 40)]
    assert (draws[0].sum(1) == 60).all() and draws[0].max() > 1
    found = ood_metrics.resampled_separation(a, b, *draws)
    for row, ours, others in zip(found, *draws, strict=True):
        expected = ood_metrics.separation(a.repeat(ours), b.repeat(others))
        assert row == pytest.approx(expected, abs=1e-12)


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """AUROC of two unit Gaussians 1 apart is Φ(1/√2) = 0.7602."""
    generator, hits, repeats = rng(), 0, 300
    draws = ood_metrics.resamplings(80, 200, generator)
    for _ in range(repeats):
        a, b = generator.normal(0, 1, 80), generator.normal(1, 1, 80)
        found = ood_metrics.resampled_separation(a, b, draws, draws[::-1])[:, 0]
        between = ood_metrics.interval(0.0, found)
        hits += between.low <= 0.7602 <= between.high
    assert 0.90 <= hits / repeats <= 0.98


def test_scores_that_are_no_numbers() -> None:
    pytest.importorskip("sklearn")
    with pytest.raises(NumericalError, match="expected finite scores"):
        ood_metrics.separation(np.array([0.0, np.nan]), np.array([1.0]))


def test_maps_are_judged_image_by_image() -> None:
    pytest.importorskip("sklearn")
    masks = np.zeros((2, 2, 2), bool)
    masks[0, 0, 0] = masks[1, 1] = True
    maps = np.array([[[9.0, 1], [2, 3]], [[100, 5], [7, 4]]])
    assert ood_metrics.pixel_auroc(maps, masks).tolist() == [1, 0.25]


# The baselines


def test_the_gaussian_is_that_of_the_pixels() -> None:
    images = rng().integers(0, 256, (500, 1, 2, 3), dtype=np.uint8)
    fitted = PixelGaussian.fit(torch.from_numpy(images))
    x = images.reshape(500, -1) / 255
    covariance = np.cov(x.T, ddof=0)
    ridge = 1e-4 * np.trace(covariance) / 6 * np.eye(6)
    centred = x[:9] - x.mean(0)
    expected = (centred @ np.linalg.inv(covariance + ridge) * centred).sum(1)
    assert fitted.distance(images[:9]) == pytest.approx(expected)


def test_principal_components_leave_what_they_do_not_hold() -> None:
    images = smooth_images(200)
    fitted = PixelGaussian.fit(torch.from_numpy(images.copy()))
    assert fitted.components == 1
    turned = images.transpose(0, 1, 3, 2)
    assert fitted.residual(images).max() < 0.01 < 0.5 < np.median(fitted.residual(turned))
    x = turned[:1].reshape(-1) / 255
    mean, axis = fitted.mean, fitted.axes[:, 0]
    rebuilt = mean + axis * (axis @ (x - mean))
    assert fitted.residual(turned[:1])[0] == pytest.approx(np.square(x - rebuilt).sum())


@pytest.mark.parametrize("values", [5_000, 40_000])
def test_an_autoencoder_has_as_many_values_as_asked(values: int) -> None:
    network = autoencoder_of((1, 7, 10), AutoencoderRecipe(values, 1.0, latent=2))
    assert count_values(network) == pytest.approx(values, rel=0.1)
    assert network(torch.zeros(2, 1, 7, 10)).shape == (2, 1, 7, 10)


@pytest.fixture
def _clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundredth of a second between two looks."""
    looks = itertools.count()
    monkeypatch.setattr("ood_autoencoder.time.perf_counter", lambda: next(looks) / 100)


@pytest.mark.usefixtures("_clock")
def test_an_autoencoder_learns_and_is_read_again(
    train: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = AutoencoderRecipe(3_000, 1.2, latent=4, batch_size=8, learning_rate=2e-2)
    trained = load_or_train_autoencoder(tmp_path, train, recipe)
    assert trained.seconds == pytest.approx(1.2, abs=0.02) and trained.images in (960, 968)
    maps = trained.error_maps(train.images)
    assert maps.shape == (48, SIDE, SIDE) and (maps >= 0).all()
    assert trained(train.images.numpy()) == pytest.approx(maps.sum((1, 2)).numpy())
    spread = (train.images / 255 - (train.images / 255).mean(0)).square().mean()
    assert maps.mean() < 0.3 * spread
    noise = torch.from_numpy(rng().integers(0, 256, (48, 1, SIDE, SIDE), dtype=np.uint8))
    assert trained.error_maps(noise).mean() > 5 * maps.mean()

    def never(*args: Any) -> None:
        raise AssertionError("it is trained already")

    monkeypatch.setattr(ood_autoencoder, "_step", never)
    again = load_or_train_autoencoder(tmp_path, train, recipe)
    assert again.digest == trained.digest and (again.error_maps(train.images) == maps).all()


@pytest.mark.usefixtures("_clock")
def test_an_autoencoder_goes_on_where_it_was_interrupted(
    train: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = AutoencoderRecipe(3_000, 0.4, latent=4)
    step, done = ood_autoencoder._step, []

    def interrupted(*args: Any) -> None:
        if len(done) == 25:
            raise KeyboardInterrupt
        done.append(step(*args))

    monkeypatch.setattr(ood_autoencoder, "SAVE_EVERY", 0.2)
    monkeypatch.setattr(ood_autoencoder, "_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        load_or_train_autoencoder(tmp_path, train, recipe)
    done.clear()
    monkeypatch.setattr(ood_autoencoder, "_step", lambda *args: done.append(step(*args)))
    trained = load_or_train_autoencoder(tmp_path, train, recipe)
    assert len(done) in (20, 21)  # of the second half alone
    assert trained.images in [recipe.batch_size * k for k in (40, 41, 42)]


def test_softmax_and_energy_are_the_formulas() -> None:
    sure, unsure = [9.0, 0.0, 0.0], [1.0, 0.9, 0.8]
    logits = torch.tensor([[*sure, 2.0, 0.0], [*unsure, 0.1, 0.0]])
    first = logits[:, :3]
    p = first.double().softmax(1).amax(1)
    assert softmax_score(first, (3,)) == pytest.approx((-p.log()).numpy())
    expected = -np.log(np.exp(first.double().numpy()).sum(1))
    assert energy_score(first, (3,)) == pytest.approx(expected)
    for score in (softmax_score, energy_score):
        both = score(logits, (3, 2))
        assert both == pytest.approx(score(first, (3,)) + score(logits[:, 3:], (2,)))
        assert both[0] < both[1]


def test_logits_are_made_of_the_last_features(train: ImageSet) -> None:
    network = train_classifier(train, RECIPE)
    outputs = ClassifierOutputs(network, "tiny")
    features, logits = outputs.split(outputs(train.images.numpy()))
    assert features.equal(last_features(network, train.images)) and logits.shape == (48, CLASSES)
    from classifier import standardised

    assert logits.numpy() == pytest.approx(network(standardised(train.images)).numpy(), abs=1e-5)


def test_detectors_of_pytorch_ood(train: ImageSet) -> None:
    detectors = pytest.importorskip("pytorch_ood.detector")
    outputs = ClassifierOutputs(train_classifier(train, RECIPE), "tiny")
    assert train.labels is not None
    found = pytorch_ood_detectors(outputs, outputs, train.images, train.labels[:, 0])
    assert len(found) == 4
    images = train.images.numpy()
    noise = rng().integers(0, 256, images.shape, dtype=np.uint8)
    for detector in found:
        assert detector.score(images).shape == (48,) and np.isfinite(detector.score(noise)).all()
    distance = next(d.score for d in found if "Mahalanobis" in d.name)
    assert np.median(distance(noise)) > np.median(distance(images))
    logits = outputs.split(outputs(noise))[1]
    energy = detectors.EnergyBased(None).predict_logits(logits).numpy()
    assert energy_score(logits, (CLASSES,)) == pytest.approx(energy, rel=1e-5)
    softmax = detectors.MaxSoftmax(None).predict_logits(logits).numpy()
    assert np.exp(-softmax_score(logits, (CLASSES,))) == pytest.approx(-softmax, rel=1e-5)


# The whole


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
    statistics = calibrate(CDRLPipeline(model), images, data="tiny", seed=3, progress=False)
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


@pytest.mark.usefixtures("_clock")
def test_everything_is_measured_and_found_again(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("sklearn")
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


def test_scores_are_those_of_the_pipeline(calibrated_folder: Path, train: ImageSet) -> None:
    pipe = CDRLPipeline.from_pretrained(calibrated_folder)
    assert pipe.model.statistics is not None
    rows = ood.ModelScores(pipe, pipe.model.statistics, "", 5)(train.images[:7].numpy())
    for k, name in enumerate(SCORES):
        expected = pipe.score(train.images[:7], name, progress=False).scores.numpy()
        assert rows[:, k] == pytest.approx(expected, rel=1e-4), name
    assert (rows[:, -1] > 0).all()


def test_false_alarms_are_counted(calibrated_folder: Path) -> None:
    statistics = CDRLPipeline.from_pretrained(calibrated_folder).model.statistics
    assert statistics is not None
    rows = np.stack([statistics.scores(name).numpy() for name in SCORES], axis=1)
    assert all(share == 0 for share, _ in ood.false_alarms(rows, statistics).values())
    rows[-6:, 0] = rows[-1, 0] + 1
    alarms = ood.false_alarms(rows, statistics)
    assert alarms["combined"][0] == 6 / 24 and alarms["energy"][0] == 0
    assert alarms["combined"][1] == pytest.approx((0.05 * 0.95 * 2 / 24) ** 0.5)


def test_an_unequal_time_is_said_loudly(train: ImageSet, tmp_path: Path) -> None:
    network = autoencoder_of((1, SIDE, SIDE), AutoencoderRecipe(3_000, 60))
    trained = ood_autoencoder.Trained(network, "", 640, 60.0, 1)
    assert "NOT AN EQUAL TIME" not in ood.autoencoder_label(trained, 3_000, 1.01)
    assert "the model: 2.0 minutes by its config), NOT AN EQUAL TIME" in ood.autoencoder_label(
        trained, 3_000, 2.0
    )
    assert "not in its config), NOT AN EQUAL TIME" in ood.autoencoder_label(trained, 3_000, None)


def test_statistics_that_are_stored_may_be_others(calibrated_folder: Path, train: ImageSet) -> None:
    pipe = CDRLPipeline.from_pretrained(calibrated_folder)
    used = pipe.model.statistics
    assert used is not None
    near = dataclasses.replace(used, mean=used.mean * (1 + 1e-6))
    assert ood.stored_ones(near, used) == "those stored with the model are the same"
    for images, seed in ((train.images, 4), (train.images.flip(-1), 3)):
        others = calibrate(pipe, images, data="tiny", seed=seed, progress=False)
        assert ood.stored_ones(others, used) == "those stored with the model are others"


def test_the_digest_of_a_model_leaves_its_statistics_out(
    calibrated_folder: Path,
) -> None:
    before = model_digest(calibrated_folder)
    (calibrated_folder / STATISTICS).unlink()
    assert model_digest(calibrated_folder) == before


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--out", "missing/out.json"], "--out missing"),
        (["--markdown", "missing/out.md"], "--markdown missing"),
        (["--autoencoder-minutes", "0"], "--autoencoder-minutes"),
        (["--n", "23"], "--n must be at most 22"),
        (["--n", "22", "--outside", "mnist"], "must be NAME=DATA"),
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
