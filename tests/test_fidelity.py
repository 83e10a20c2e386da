"""Features of images and how near two sets of them are: closed cases, extractors, the cache."""

from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from numpy.typing import NDArray

from cdrl_infer.errors import ConfigError, InputError, NumericalError
from cdrl_train.evaluation.cache import FeatureCache
from cdrl_train.evaluation.efficientnet import EfficientNetLite0
from cdrl_train.evaluation.extractors import load_extractor
from cdrl_train.evaluation.fidelity import (
    compare,
    frechet,
    inception_score,
    kernel_distance,
    precision_recall,
)

Rows = NDArray[Any]
CPU = torch.device("cpu")
ZERO, EYE = np.zeros(3), np.eye(3)


def gaussian(mean: Rows, root: Rows, n: int = 40, seed: int = 0) -> Rows:
    """(n, D) points whose own mean is ``mean`` and own covariance ``root rootᵀ``, exactly."""
    x = np.random.default_rng(seed).standard_normal((n, len(mean)))
    q, _ = np.linalg.qr(x - x.mean(0))
    return mean + np.sqrt(n - 1) * q @ root.T


# Fréchet distance


def test_a_set_is_at_no_distance_from_itself_or_its_permutation() -> None:
    x = gaussian(ZERO, EYE)
    assert frechet(x, x) == pytest.approx(0, abs=1e-12)
    assert frechet(x, x[::-1]) == pytest.approx(0, abs=1e-12)


def test_a_shift_counts_its_squared_length() -> None:
    a, b = gaussian(ZERO, EYE), gaussian(np.array([1.0, 2.0, 2.0]), EYE, n=70, seed=1)
    assert frechet(a, b) == pytest.approx(9)


def test_commuting_covariances_count_the_difference_of_their_roots() -> None:
    a, b = np.diag([1.0, 2.0, 3.0]), np.diag([4.0, 2.0, 0.5])
    d = frechet(gaussian(ZERO, a), gaussian(ZERO, b, n=7, seed=1))
    assert d == pytest.approx(3**2 + 0 + 2.5**2)


def test_covariances_that_do_not_commute_agree_with_the_root_of_their_product() -> None:
    a, b = np.random.default_rng(5).standard_normal((2, 3, 3))
    root = scipy.linalg.sqrtm(a @ a.T @ b @ b.T).real
    expected = np.trace(a @ a.T + b @ b.T - 2 * root)
    assert frechet(gaussian(ZERO, a), gaussian(ZERO, b)) == pytest.approx(expected)


def test_fewer_images_than_features() -> None:
    a, b, shift = np.random.default_rng(7).standard_normal((3, 1280))
    expected = shift @ shift + 2 * (a @ a) + 2 * (b @ b) - 4 * abs(a @ b)  # covariances 2aaᵀ, 2bbᵀ
    assert frechet(np.stack([a, -a]), np.stack([b, -b]) + shift) == pytest.approx(expected)


def test_frechet_distance_agrees_with_torch_fidelity() -> None:
    metric = pytest.importorskip("torch_fidelity.metric_fid")
    a, b = np.random.default_rng(0).standard_normal((2, 20, 60)).astype(np.float32)
    statistics = [metric.fid_features_to_statistics(torch.from_numpy(x).double()) for x in (a, b)]
    (expected,) = metric.fid_statistics_to_metric(*statistics, verbose=False).values()
    assert frechet(a, b) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("shapes", [((1, 3), (5, 3)), ((5, 3), (5, 4)), ((5,), (5,))])
def test_sets_without_a_distance_are_refused(shapes: tuple[tuple[int, ...], ...]) -> None:
    with pytest.raises(InputError, match=r"expected features \(N, D\)"):
        frechet(*(np.zeros(shape) for shape in shapes))


# Precision and recall


def test_a_set_has_all_precision_and_recall_of_itself_and_none_of_a_far_one() -> None:
    x = np.random.default_rng(0).standard_normal((30, 5))
    assert precision_recall(x, x) == (1, 1)
    assert precision_recall(x[::-1], x) == (1, 1)
    assert precision_recall(x + 100, x) == (0, 0)


def test_a_generator_that_knows_one_of_two_modes_is_precise_but_recalls_half() -> None:
    x = np.random.default_rng(0).standard_normal((20, 2))
    both = np.concatenate([x, x + 100])
    assert precision_recall(x, both) == (1, 0.5)
    assert precision_recall(both, x) == (0.5, 1)


@pytest.mark.parametrize(("k", "expected"), [(1, (0, 0)), (2, (0.5, 0.25)), (3, (0.75, 0.5))])
def test_balls_reach_to_the_kth_neighbour(k: int, expected: tuple[float, float]) -> None:
    real = np.array([[0.0], [1.0], [2.0], [3.0]])  # the last one's ball reaches to 4, 5, 6
    generated = np.array([[4.5], [5.0], [6.0], [7.0]])  # the first one's to 4, 3, 2
    assert precision_recall(generated, real, k) == expected


def test_large_sets_are_compared_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = np.random.default_rng(0).standard_normal((2, 60, 3))
    whole = precision_recall(a, b)
    monkeypatch.setattr("cdrl_train.evaluation.fidelity.ROWS", 7)
    assert precision_recall(a, b) == whole and 0 < whole[0] < 1


def test_precision_and_recall_agree_with_torch_fidelity() -> None:
    metric = pytest.importorskip("torch_fidelity.metric_prc")
    a, b = np.random.default_rng(0).standard_normal((2, 100, 5)).astype(np.float32)
    found = metric.prc_features_to_metric(
        torch.from_numpy(a),
        torch.from_numpy(b),
        prc_neighborhood=3,
        prc_batch_size=50,
        save_cpu_ram=True,
        verbose=False,
    )
    assert precision_recall(a, b) == pytest.approx((found["precision"], found["recall"]))


def test_sets_without_neighbours_are_refused() -> None:
    with pytest.raises(InputError, match=r"N and M at least 4, got \(9, 2\) and \(3, 2\)"):
        precision_recall(np.zeros((9, 2)), np.zeros((3, 2)))
    with pytest.raises(InputError, match=r"expected features \(N, D\)"):
        precision_recall(np.zeros((9, 2)), np.zeros((9, 3)))


# KID and inception score, by torch-fidelity


def test_kernel_distance_of_all_images_is_the_unbiased_formula() -> None:
    pytest.importorskip("torch_fidelity")
    a, b = (gaussian(np.full(4, mean), np.eye(4), 30, seed) for mean, seed in ((0, 0), (0.5, 1)))

    def kernel(x: Rows, y: Rows) -> Rows:
        result: Rows = (x @ y.T / 4 + 1) ** 3
        return result

    inner = [(k.sum() - k.trace()) / (30 * 29) for k in (kernel(a, a), kernel(b, b))]
    expected = sum(inner) - 2 * kernel(a, b).mean()
    assert kernel_distance(a, b) == pytest.approx(expected, rel=1e-6)


def test_inception_score_is_the_number_of_classes_that_are_told_apart() -> None:
    pytest.importorskip("torch_fidelity")
    sure = 100 * np.eye(5, dtype=np.float32)[np.random.default_rng(0).integers(0, 5, 5000)]
    assert inception_score(sure) == pytest.approx(5, rel=0.01)
    assert inception_score(np.zeros((50, 5), np.float32)) == pytest.approx(1)


def test_only_features_are_compared_and_only_what_is_asked() -> None:
    rows = np.random.default_rng(0).standard_normal((30, 3)).astype(np.float32)
    others = rows + np.array([0, 0, 100], np.float32)  # of the logit
    assert compare(rows, others, 2, ["fid"]) == {"fid": pytest.approx(0, abs=1e-9)}
    assert compare(rows, others, 2, ["prc"]) == {"precision": 1, "recall": 1}


def test_features_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(NumericalError, match="not finite"):
        frechet(np.array([[np.nan], [1]]), np.zeros((2, 1)))


# Extractors


def test_efficientnet_sees_grey_as_rgb_at_112_pixels_in_the_range_of_the_network() -> None:
    seen = []

    def network(x: torch.Tensor) -> torch.Tensor:
        seen.append(x)
        return x.repeat(1, 2, 1, 1)

    images = np.stack([np.full((1, 28, 28), value, np.uint8) for value in (0, 127, 255)])
    features = EfficientNetLite0(network, "stub", CPU, batch_size=2)(images)
    assert [tuple(x.shape) for x in seen] == [(2, 3, 112, 112), (1, 3, 112, 112)]
    np.testing.assert_allclose(features, np.repeat([[-127 / 128], [0], [1]], 6, axis=1))


def test_extractors_that_cannot_be_loaded(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown extractor 'resnet'"):
        load_extractor("resnet", None, CPU)
    with pytest.raises(InputError, match="expected a file, found none"):
        load_extractor("efficientnet-lite0", tmp_path / "nowhere", CPU)


@pytest.fixture(scope="session")
def inception_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random ones in the right form."""
    pytest.importorskip("torch_fidelity")
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    place = tmp_path_factory.mktemp("inception")
    torch.save({}, place / "none.pth")
    with torch.random.fork_rng(devices=[]), pytest.MonkeyPatch.context() as patch:
        torch.manual_seed(0)
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
        network = FeatureExtractorInceptionV3(
            "x", ["2048"], feature_extractor_weights_path=str(place / "none.pth")
        )
    torch.save(network.state_dict(), place / "random.pth")
    return place / "random.pth"


def test_inception_with_weights_of_ones_own(inception_weights: Path) -> None:
    extractor = load_extractor("inception-v3-compat", inception_weights, CPU)
    images = np.random.default_rng(0).integers(0, 256, (3, 1, 8, 8), np.uint8)
    rows = extractor(images)
    assert rows.shape == (3, extractor.feature_dim + extractor.logits) == (3, 3056)
    np.testing.assert_allclose(extractor(images.repeat(3, axis=1)), rows, rtol=1e-4, atol=1e-4)
    state = torch.load(inception_weights, weights_only=True)
    state["fc.bias"][0] += 1
    torch.save(state, inception_weights.with_name("other.pth"))
    other = load_extractor("inception-v3-compat", inception_weights.with_name("other.pth"), CPU)
    assert other.digest != extractor.digest


class Evil:
    """Runs code where it is unpickled without limits."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return Path.touch, (self.file,)


def test_a_file_of_weights_is_not_run(tmp_path: Path) -> None:
    pytest.importorskip("torch_fidelity")
    file, ran = tmp_path / "weights.pth", tmp_path / "ran"
    torch.save({"a": Evil(ran)}, file)
    for content in (file.read_bytes(), pickle.dumps(Evil(ran)), b"", b"junk"):
        file.write_bytes(content)
        with pytest.raises(InputError, match="expected torch-fidelity's weights of Inception v3"):
            load_extractor("inception-v3-compat", file, CPU)
    assert not ran.exists()


# The cache


@dataclasses.dataclass
class Counting:
    """Three numbers of each image; counts its calls."""

    name: str = "counting"
    digest: str = "d"
    calls: int = 0

    def __call__(self, images: NDArray[np.uint8]) -> Rows:
        self.calls += 1
        x = images.reshape(len(images), -1).astype(np.float32)
        return np.stack([x.mean(1), x.std(1), x.max(1)], axis=1)


def test_features_are_computed_once_for_each_content_and_extractor(tmp_path: Path) -> None:
    cache, extractor = FeatureCache(tmp_path / "new" / "cache"), Counting()
    images = np.random.default_rng(0).integers(0, 256, (5, 1, 4, 4), np.uint8)
    rows = cache(extractor, images)
    assert (cache(extractor, images.copy()) == rows).all() and extractor.calls == 1
    cache(extractor, images[::-1].copy())
    assert extractor.calls == 2
    other = Counting(digest="e")
    cache(other, images)
    assert other.calls == 1 and len(list(cache.folder.iterdir())) == 3


def test_many_images_are_kept_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cdrl_train.evaluation.cache.PART", 2)
    cache, extractor = FeatureCache(tmp_path), Counting()
    images = np.random.default_rng(0).integers(0, 256, (5, 1, 4, 4), np.uint8)
    first = cache.rows(extractor, images[:4])
    assert (first == extractor(images[:4])).all() and extractor.calls == 2 + 1
    assert (cache.rows(extractor, images)[:4] == first).all() and extractor.calls == 4


@pytest.mark.parametrize("damage", ["cut", "turned", "empty", "shape", "npy"])
def test_a_damaged_file_is_made_again(tmp_path: Path, damage: str) -> None:
    cache, extractor = FeatureCache(tmp_path), Counting()
    images = np.random.default_rng(0).integers(0, 256, (50, 1, 4, 4), np.uint8)
    rows = cache(extractor, images)
    (file,) = tmp_path.iterdir()
    content = bytearray(file.read_bytes())
    if damage == "turned":
        content[len(content) // 2] ^= 1
    file.write_bytes(content[: {"cut": 200, "empty": 0}.get(damage, len(content))])
    with file.open("ab") as stream:
        if damage in ("shape", "npy"):
            stream.truncate(0)
        if damage == "shape":
            np.savez(stream, rows=rows[:-1])
        if damage == "npy":
            np.save(stream, rows)
    assert (cache(extractor, images) == rows).all() and extractor.calls == 2
    assert (cache(extractor, images) == rows).all() and extractor.calls == 2


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="choose another --cache"):
        FeatureCache(tmp_path / "file")
