"""The benchmark of out-of-distribution scores: its sets and baselines, on closed cases."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import ood_autoencoder
import ood_sets
import pytest
import torch
from classifier import Recipe, train_classifier
from numpy.typing import NDArray
from ood_autoencoder import (
    AutoencoderRecipe,
    autoencoder_label,
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

from cdrl_infer.errors import InputError
from cdrl_infer.model import Attribute
from cdrl_train.data.image_set import ImageSet
from cdrl_train.evaluation.classifier import Classifier

RECIPE = Recipe(widths=(4,), epochs=1, batch_size=8)
SIDE, CLASSES = 8, 3


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def smooth_images(count: int, seed: int = 0, channels: int = 1) -> NDArray[np.uint8]:
    """(N, C, 8, 8) upright ramps of random slope: few directions hold them."""
    slopes = np.random.default_rng(seed).uniform(5, 25, (count, channels, 1, 1))
    return np.broadcast_to(slopes * np.arange(SIDE), (count, channels, SIDE, SIDE)).astype(np.uint8)


def bright_images() -> ImageSet:
    """48 images, brighter with the class."""
    labels = torch.arange(48) % CLASSES
    images = torch.from_numpy(smooth_images(48).copy() // 3) + (
        50 * labels[:, None, None, None]
    ).to(torch.uint8)
    return ImageSet(images, labels[:, None], (Attribute("class", tuple("012")),))


@pytest.fixture
def train() -> ImageSet:
    return bright_images()


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
    half = SIDE // 2
    assert (made["joined"][3, ..., :half] == base[3, ..., :half]).all()
    assert (made["joined"][3, ..., half:] == base[4, ..., half:]).all()
    assert (made["turned"][:, :, SIDE - 1, :] == base[:, :, :, 0]).all()  # the left side comes last
    assert np.abs(made["faded"] - base / 2).max() <= 0.5
    grey = np.full((99, 1, SIDE, SIDE), 128, np.uint8)
    assert ood_sets.noisy(grey, rng()).std() == pytest.approx(ood_sets.NOISE, rel=0.05)
    assert (made["striped"] == made["striped"][:, :, :1]).all() and np.ptp(made["striped"]) > 200


def test_a_turn_of_a_wide_image_turns_its_middle() -> None:
    base = rng().integers(0, 256, (2, 3, 4, 6), dtype=np.uint8)
    found = ood_sets.turned(base, rng())
    assert (found[..., 1:5] == np.rot90(base[..., 1:5], axes=(2, 3))).all()
    assert (found[..., [0, 5]] == base[..., [0, 5]]).all()


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
        (["constant=x.npz"], "two sets have the name 'constant'"),
        ([source, source], "two sets have the name 'letters'"),
        (["a=nowhere.npz"], "no data at 'nowhere.npz'"),
    ):
        with pytest.raises(InputError, match=expected):
            ood_sets.read_sets(sources, (1, SIDE, SIDE), 12, 0)
    with pytest.raises(InputError, match=r"shape \(1, 9, 9\).*got \(1, 8, 8\)"):
        ood_sets.read_sets([source], (1, 9, 9), 12, 0)


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


def slow_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundredth of a second passes between two looks."""
    looks = itertools.count()
    monkeypatch.setattr("ood_autoencoder.time.perf_counter", lambda: next(looks) / 100)


@pytest.fixture
def _clock(monkeypatch: pytest.MonkeyPatch) -> None:
    slow_clock(monkeypatch)


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


def outputs_of(train: ImageSet) -> ClassifierOutputs:
    return ClassifierOutputs(Classifier(train_classifier(train, RECIPE), train.num_classes, "tiny"))


def test_logits_come_from_the_last_features(train: ImageSet) -> None:
    outputs = outputs_of(train)
    features, logits = outputs.split(outputs(train.images.numpy()))
    assert logits.shape == (48, CLASSES)
    assert outputs.last(features).detach().numpy() == pytest.approx(logits.numpy(), abs=1e-5)
    whole = outputs.judge.network(train.images / 255)
    assert logits.numpy() == pytest.approx(whole.numpy(), abs=1e-5)


def test_detectors_of_pytorch_ood(train: ImageSet) -> None:
    detectors = pytest.importorskip("pytorch_ood.detector")
    outputs = outputs_of(train)
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


def test_an_unequal_time_is_said_loudly(train: ImageSet, tmp_path: Path) -> None:
    network = autoencoder_of((1, SIDE, SIDE), AutoencoderRecipe(3_000, 60))
    trained = ood_autoencoder.Trained(network, "", 640, 60.0, 1)
    assert "NOT AN EQUAL TIME" not in autoencoder_label(trained, 3_000, 1.01)
    assert "the model: 2.0 minutes by its config), NOT AN EQUAL TIME" in autoencoder_label(
        trained, 3_000, 2.0
    )
    assert "not in its config), NOT AN EQUAL TIME" in autoencoder_label(trained, 3_000, None)
