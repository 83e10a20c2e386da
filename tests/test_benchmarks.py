"""The parts of the benchmarks that need no data: distances, tables, what is kept on disk."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click
import numpy as np
import pytest
import quality
import sampling
import scipy.linalg
import torch
from classifier import Recipe, load_or_train, predict
from click.testing import CliRunner
from frechet import frechet_distance
from numpy.typing import NDArray
from report import grown, plus_minus, table

from cdrl_infer.errors import InputError
from cdrl_infer.model import Attribute
from cdrl_infer.pipeline import CDRLPipeline
from cdrl_train.data.image_set import ImageSet
from cdrl_train.evaluation.efficientnet import EfficientNetLite0

Array = NDArray[np.float64]


def gaussian_set(mean: Array, root: Array, n: int = 40, seed: int = 0) -> Array:
    """(n, D) points whose own mean is ``mean`` and own covariance ``root rootᵀ``, exactly."""
    x = np.random.default_rng(seed).standard_normal((n, len(mean)))
    q, _ = np.linalg.qr(x - x.mean(0))
    return mean + np.sqrt(n - 1) * q @ root.T


ZERO, EYE = np.zeros(3), np.eye(3)


def test_a_set_is_at_no_distance_from_itself_or_its_permutation() -> None:
    x = gaussian_set(ZERO, EYE)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-12)
    assert frechet_distance(x, x[::-1]) == pytest.approx(0, abs=1e-12)


def test_a_shift_counts_its_squared_length() -> None:
    a, b = gaussian_set(ZERO, EYE), gaussian_set(np.array([1.0, 2.0, 2.0]), EYE, n=70, seed=1)
    assert frechet_distance(a, b) == pytest.approx(9)


def test_commuting_covariances_count_the_difference_of_their_roots() -> None:
    a, b = np.diag([1.0, 2.0, 3.0]), np.diag([4.0, 2.0, 0.5])
    d = frechet_distance(gaussian_set(ZERO, a), gaussian_set(ZERO, b, n=7, seed=1))
    assert d == pytest.approx(3**2 + 0 + 2.5**2)


def test_covariances_that_do_not_commute_agree_with_the_root_of_their_product() -> None:
    a, b = np.random.default_rng(5).standard_normal((2, 3, 3))
    root = scipy.linalg.sqrtm(a @ a.T @ b @ b.T).real
    expected = np.trace(a @ a.T + b @ b.T - 2 * root)
    assert frechet_distance(gaussian_set(ZERO, a), gaussian_set(ZERO, b)) == pytest.approx(expected)


def test_fewer_images_than_features() -> None:
    a, b, shift = np.random.default_rng(7).standard_normal((3, 1280))
    expected = shift @ shift + 2 * (a @ a) + 2 * (b @ b) - 4 * abs(a @ b)  # covariances 2aaᵀ, 2bbᵀ
    assert frechet_distance(np.stack([a, -a]), np.stack([b, -b]) + shift) == pytest.approx(expected)


@pytest.mark.parametrize("shapes", [((1, 3), (5, 3)), ((5, 3), (5, 4)), ((5,), (5,))])
def test_sets_without_a_distance_are_refused(shapes: tuple[tuple[int, ...], ...]) -> None:
    with pytest.raises(InputError, match=r"expected features \(N, D\)"):
        frechet_distance(*(np.zeros(shape) for shape in shapes))


def test_features_see_grey_as_rgb_at_112_pixels_in_the_range_of_the_network() -> None:
    seen = []

    def network(x: torch.Tensor) -> torch.Tensor:
        seen.append(x)
        return x.repeat(1, 2, 1, 1)

    images = np.stack([np.full((1, 28, 28), value, np.uint8) for value in (0, 127, 255)])
    features = EfficientNetLite0(network, "stub", torch.device("cpu"), batch_size=2)(images)
    assert [tuple(x.shape) for x in seen] == [(2, 3, 112, 112), (1, 3, 112, 112)]
    np.testing.assert_allclose(features, np.repeat([[-127 / 128], [0], [1]], 6, axis=1))


def test_distances_are_paired_with_the_floor_of_the_same_test_images() -> None:
    rng = np.random.default_rng(0)
    test = rng.standard_normal((20, 4)) + np.repeat([[0.0], [3.0]], 10, axis=0)
    train = rng.standard_normal((30, 4))
    near, far = [test[:10], test[10:]], [test[:10] + 1, test[10:] + 1]
    floor, k0, k5 = quality.compare(test, train, {"K = 0": far, "K = 5": near}, [10])
    assert floor.images == quality.TRAINING and floor.excess == [0, 0]
    assert floor.distance == [
        frechet_distance(train[10 * r :][:10], test[10 * r :][:10]) for r in (0, 1)
    ]
    assert k0.distance == pytest.approx([4, 4])
    assert k5.distance == pytest.approx([0, 0], abs=1e-9)
    assert k5.excess == pytest.approx([-d for d in floor.distance])
    rendered = quality.frechet_table(
        [floor, k0._replace(excess=[10, 20]), k5._replace(excess=[5, 12])]
    )
    assert rendered.splitlines()[-1].split("|")[-2].strip() == "-45.0 ± 7.1"


def test_windows_do_not_overlap_while_there_are_images() -> None:
    assert [quality.window(500, r, 10_000).start for r in range(3)] == [0, 500, 1000]
    assert [quality.window(5000, r, 10_000).start for r in range(3)] == [0, 5000, 0]
    with pytest.raises(InputError, match="at most 10000"):
        quality.window(10_001, 0, 10_000)


def test_steps() -> None:
    assert [quality.parse_steps(text, 15) for text in ("5", "0,5", "model")] == [5, (0, 5), 15]
    assert quality.parse_steps("model", (1, 2)) == (1, 2)
    assert quality.steps_name((1, 2)) == "K = 1,2"
    with pytest.raises(InputError, match="'few'"):
        quality.parse_steps("few", 15)


def test_tables() -> None:
    assert table(["a", "long name"], [["x", 1], ["wider", 22]]) == (
        "| a     | long name |\n| ----- | --------: |\n| x     |         1 |\n| wider |        22 |"
    )
    with pytest.raises(InputError, match="rows of 2 cells, got 1"):
        table(["a", "b"], [["x"]])
    assert plus_minus([1, 2, 3]) == "2.0 ± 1.0" and plus_minus([4]) == "4.0"
    rows = quality.accuracy_table({"K = 0": 0.8}, 400, 0.9, 10_000).splitlines()
    assert [cell.strip() for cell in rows[2].split("|")[1:-1]] == [
        "K = 0",
        "400",
        "80.0 ± 2.0",
        "-10.0",
    ]


def test_an_array_on_disk_is_extended_from_where_it_stopped(tmp_path: Path) -> None:
    asked = []

    def make(start: int, stop: int) -> Array:
        asked.append((start, stop))
        if stop > 5:
            raise KeyboardInterrupt
        return np.arange(start, stop)[:, None]

    file = tmp_path / "rows.npy"
    with pytest.raises(KeyboardInterrupt):
        grown(file, 9, make, 2)
    assert [p.name for p in tmp_path.iterdir()] == ["rows.npy"]
    assert grown(file, 5, make, 2).ravel().tolist() == [0, 1, 2, 3, 4]
    assert grown(file, 3, make, 2).ravel().tolist() == [0, 1, 2]
    assert asked == [(0, 0), (0, 2), (2, 4), (4, 6), (4, 5)]


def test_samples_are_kept_per_repeat_and_checked_on_reuse(
    tmp_path: Path, pipe: CDRLPipeline
) -> None:
    names = pipe.model.labels[0].values
    pools = quality.SamplePools(pipe, "digest", (len(names),), tmp_path, batch_size=2)
    drawn = pools.images(1, 1, 5)
    assert drawn.shape == (5, 1, 8, 8) and drawn.dtype == np.uint8
    again = pipe(seeds=[quality.SEED_STRIDE + 4], class_labels=names[1], langevin_steps=1)
    np.testing.assert_allclose(drawn[4, 0].astype(int), np.asarray(again.images[0]), atol=1)
    assert np.array_equal(pools.images(1, 1, 3), drawn[:3])
    assert pools.labels(5)[:, 0].tolist() == [0, 1, 2, 0, 1]
    two = dataclasses.replace(pools, num_classes=(2, 3))
    assert two.labels(7).tolist() == [[0, 0], [1, 0], [0, 1], [1, 1], [0, 2], [1, 2], [0, 0]]
    (file,) = tmp_path.iterdir()
    np.save(file, 255 - drawn)
    with pytest.raises(InputError, match="delete it"):
        pools.images(1, 1, 5)


def test_features_are_extracted_once(tmp_path: Path) -> None:
    calls = []

    def network(x: torch.Tensor) -> torch.Tensor:
        calls.append(len(x))
        return x

    features = quality.Features(EfficientNetLite0(network, "stub", torch.device("cpu")), tmp_path)
    images = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.ones((1, 1, 4, 4), np.uint8)
    first = features(images[:4], "four", part=2)
    np.testing.assert_allclose(features(images, "five", part=2)[:4], first)
    assert calls == [2, 2, 1]
    np.testing.assert_allclose(first[:, 0], (np.arange(4) - 127) / 128)


def test_the_digest_of_a_model_is_of_weights_and_configuration(folder: Path) -> None:
    before = quality.model_digest(folder)
    (folder / "README.md").write_text("a card", encoding="utf-8")
    assert quality.model_digest(folder) == before
    (folder / "README.md").unlink()
    extra = folder / "ebm" / "other.json"
    extra.write_text("{}", encoding="utf-8")
    assert quality.model_digest(folder) != before
    extra.unlink()


def test_the_judge_learns_and_is_read_back(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(120) % 2
    images = torch.randint(0, 100, (120, 1, 8, 8), generator=generator)
    images = (images + 100 * labels[:, None, None, None]).to(torch.uint8)
    data = ImageSet(images, labels[:, None], (Attribute("tone", ("dark", "light")),))
    recipe = Recipe(widths=(4, 4), epochs=4, batch_size=10, learning_rate=0.02)
    trained, accuracy = load_or_train(tmp_path, data, data, recipe)
    assert accuracy == 1
    read, same = load_or_train(tmp_path, data, data, recipe)
    assert same == accuracy and torch.equal(predict(read, images), predict(trained, images))
    assert len(list(tmp_path.iterdir())) == 1
    assert quality.share_recognised(read, images.numpy(), 1 - labels[:, None]) == 0


def test_a_judge_that_knows_little_is_told() -> None:
    assert quality.judge_warning(0.9100) is None
    warning = quality.judge_warning(0.9099)
    assert warning is not None and warning.startswith("WARNING: the judge recognises 90.99 %")


@pytest.mark.parametrize(
    ("main", "arguments"),
    [
        (quality.main, ["--data", "nowhere.npz", "--out", "missing/q.json"]),
        (quality.main, ["--data", "nowhere.npz", "--model", "nowhere"]),
        (sampling.main, ["--model", "nowhere"]),
    ],
)
def test_mistakes_are_one_line(main: click.Command, arguments: list[str]) -> None:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert result.output.startswith(f"{main.name}: error: ") and result.output.count("\n") == 1


def test_operations_of_a_gradient_grow_with_the_batch(pipe: CDRLPipeline) -> None:
    _, one = sampling.gradient_work(pipe, 1)
    call, four = sampling.gradient_work(pipe, 4)
    energies, gradient = call()
    assert energies.shape == (4,) and gradient.shape == (4, 1, 8, 8)
    multiplied = [m for m in pipe.model.ebm.modules() if isinstance(m, torch.nn.Conv2d)]
    assert four == 4 * one and one > 2 * sum(m.weight.numel() for m in multiplied) > 0


def test_summaries() -> None:
    assert sampling.summary([3, 1, 2]) == ["1.00", "2.00", "3.00"]
