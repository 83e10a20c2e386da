"""The parts of the benchmarks that need no data: comparisons, tables, samples on disk, the judge."""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
import pytest
import quality
import sampling
import torch
from classifier import Recipe, judge_warning, load_or_train
from click.testing import CliRunner
from numpy.typing import NDArray
from report import plus_minus, table
from subject import SamplePools, parse_steps, steps_name

from cdrl_infer.errors import InputError
from cdrl_infer.model import Attribute
from cdrl_infer.pipeline import CDRLPipeline
from cdrl_infer.scoring.reference import STATISTICS
from cdrl_train.data.image_set import ImageSet
from cdrl_train.evaluation.fidelity import frechet
from cdrl_train.evaluation.sampling import SEED_STRIDE, balanced_labels, model_digest, window

Array = NDArray[np.float64]


def test_distances_are_paired_with_the_floor_of_the_same_test_images() -> None:
    rng = np.random.default_rng(0)
    test = rng.standard_normal((20, 4)) + np.repeat([[0.0], [3.0]], 10, axis=0)
    train = rng.standard_normal((30, 4))
    near, far = [test[:10], test[10:]], [test[:10] + 1, test[10:] + 1]
    floor, k0, k5 = quality.compare(test, train, {"K = 0": far, "K = 5": near}, [10])
    assert floor.images == quality.TRAINING and floor.excess == [0, 0]
    assert floor.distance == [frechet(train[10 * r :][:10], test[10 * r :][:10]) for r in (0, 1)]
    assert k0.distance == pytest.approx([4, 4])
    assert k5.distance == pytest.approx([0, 0], abs=1e-9)
    assert k5.excess == pytest.approx([-d for d in floor.distance])
    rendered = quality.frechet_table(
        [floor, k0._replace(excess=[10, 20]), k5._replace(excess=[5, 12])]
    )
    assert rendered.splitlines()[-1].split("|")[-2].strip() == "-45.0 ± 7.1"


def test_windows_do_not_overlap_while_there_are_images() -> None:
    assert [window(500, r, 10_000).start for r in range(3)] == [0, 500, 1000]
    assert [window(5000, r, 10_000).start for r in range(3)] == [0, 5000, 0]
    with pytest.raises(InputError, match="at most 10000"):
        window(10_001, 0, 10_000)


def test_steps() -> None:
    assert [parse_steps(text, 15) for text in ("5", "0,5", "model")] == [5, (0, 5), 15]
    assert parse_steps("model", (1, 2)) == (1, 2)
    assert steps_name((1, 2)) == "K = 1,2"
    with pytest.raises(InputError, match="'few'"):
        parse_steps("few", 15)


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


def test_samples_are_kept_per_repeat_and_checked_on_reuse(
    tmp_path: Path, pipe: CDRLPipeline
) -> None:
    names = pipe.model.labels[0].values
    pools = SamplePools(pipe, "digest", tmp_path, batch_size=2)
    drawn = pools.images(1, 1, 5)
    assert drawn.shape == (5, 1, 8, 8) and drawn.dtype == np.uint8
    again = pipe(seeds=[SEED_STRIDE + 4], class_labels=names[1], langevin_steps=1)
    np.testing.assert_allclose(drawn[4, 0].astype(int), np.asarray(again.images[0]), atol=1)
    assert np.array_equal(pools.images(1, 1, 3), drawn[:3])
    assert pools.labels(5)[:, 0].tolist() == [0, 1, 2, 0, 1]
    two = [[0, 0], [1, 0], [0, 1], [1, 1], [0, 2], [1, 2], [0, 0]]
    assert balanced_labels((2, 3), 7).tolist() == two
    (file,) = tmp_path.iterdir()
    np.save(file, 255 - drawn)
    with pytest.raises(InputError, match="delete the file"):
        pools.images(1, 1, 5)


def test_the_digest_of_a_model_is_of_weights_and_configuration(folder: Path) -> None:
    before = model_digest(folder)
    (folder / "README.md").write_text("a card", encoding="utf-8")
    assert model_digest(folder) == before
    (folder / "README.md").unlink()
    (folder / STATISTICS).touch()
    assert model_digest(folder) == before
    (folder / STATISTICS).unlink()
    extra = folder / "ebm" / "other.json"
    extra.write_text("{}", encoding="utf-8")
    assert model_digest(folder) != before
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
    assert same == accuracy and (read(images.numpy()) == trained(images.numpy())).all()
    assert len(list(tmp_path.iterdir())) == 1
    assert read.share_recognised(images.numpy(), 1 - labels[:, None].numpy()) == 0


def test_a_judge_that_knows_little_is_told() -> None:
    assert judge_warning(0.9100) is None
    warning = judge_warning(0.9099)
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
